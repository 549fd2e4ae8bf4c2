import pytest
import torch

from scalablevit.exporting import export_onnx, export_program, smallest_side
from tests.exporting.conftest import SHORT
from tests.networks import SIZES, all_designs, randomise, small_network

onnxruntime = pytest.importorskip("onnxruntime")

EXTRA_SIZES = [(40, 33), (33, 500)]
warnings = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def networks():
    for design in all_designs():
        marks = () if design == "paper" else pytest.mark.slow
        yield pytest.param(small_network(design, **SHORT), id=f"{design}-short", marks=marks)
        yield pytest.param(small_network(design), id=design, marks=pytest.mark.slow)
    mixed = small_network("vit-pytorch", window_size=(7, 3, None, None))
    yield pytest.param(mixed, id="whole-map", marks=pytest.mark.slow)


@warnings
@pytest.mark.parametrize("model", list(networks()))
def test_one_program_serves_every_batch_and_every_size_from_the_smallest_side(model, tmp_path):
    model, side = randomise(model).eval(), smallest_side(model)
    torch.export.save(export_program(model), tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    for batch in (1, 2, 3):
        for size in [*SIZES[2:], *EXTRA_SIZES, (side, side)]:
            images = torch.randn(batch, 3, *size)
            if min(size) >= side:
                torch.testing.assert_close(program(images), model(images), rtol=1e-4, atol=1e-5)
            else:
                with pytest.raises((AssertionError, RuntimeError), match=rf">= {side}"):
                    program(images)


@warnings
@pytest.mark.parametrize("model", list(networks()))
def test_one_onnx_file_serves_every_batch_and_every_size(model, tmp_path):
    model = randomise(model).eval()
    path = export_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 2, 3):
        for size in [*SIZES[2:], *EXTRA_SIZES]:
            images = torch.randn(batch, 3, *size)
            (logits,) = session.run(["logits"], {"images": images.numpy()})
            torch.testing.assert_close(torch.from_numpy(logits), model(images).detach(), rtol=1e-4, atol=1e-4)


def test_a_model_in_training_mode_is_refused(tmp_path):
    for export in (export_program, lambda model: export_onnx(model, tmp_path / "model.onnx")):
        with pytest.raises(ValueError, match=r"call model.eval\(\)"):
            export(small_network())
    assert not list(tmp_path.iterdir())
