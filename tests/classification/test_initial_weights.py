"""Training that starts from weights: what is kept, what is adapted, what is new, and what is refused."""

import argparse
import io

import pytest
import timm
import torch
from rich.console import Console
from timm.models._hub import save_for_hf
from vit_pytorch.scalable_vit import ScalableViT as VitPytorch

import scalablevit.timm_models  # noqa: F401  # registers scalablevit_*
from scalablevit import ScalableViT, convert_state_dict, save_model, scalablevit_nano
from scalablevit.classification.initial_weights import (
    adapt_channels,
    build_from,
    load_into,
    read_initial_weights,
)
from scalablevit.classification.progress import ProgressDisplay
from scalablevit.classification.training import train
from scalablevit.weights import load_model
from tests.conftest import TINY

NETWORK = {"dim": 32, "depth": (1, 1), "heads": (1, 2), "reduction_factor": (2, 1), "window_size": (4, 2)}
IMAGES = torch.randn(2, 3, 32, 32)


def start(source, classes=("a", "b"), channels=3, **options):
    initial = read_initial_weights(source, **options)
    model = build_from(initial, classes, channels).eval()
    return model, load_into(model, initial, classes), initial


def test_a_saved_folder_is_kept_whole_for_the_same_classes(tmp_path):
    saved = scalablevit_nano(2).eval()
    save_model(saved, tmp_path, ["a", "b"])
    model, notes, _ = start(tmp_path)
    assert torch.equal(model(IMAGES), saved(IMAGES))
    assert notes == [
        f"kept: {len(saved.state_dict())} of {len(saved.state_dict())} parameters, 1.17 M values, of {tmp_path}"
    ]


def test_a_folder_by_timm_is_kept_whole_too(tmp_path):
    saved = timm.create_model("scalablevit_nano", num_classes=2).eval()
    save_for_hf(saved, tmp_path, model_config={"label_names": ["a", "b"]})
    model, _, _ = start(tmp_path)
    assert torch.equal(model(IMAGES), saved(IMAGES))


@pytest.mark.parametrize("labels", [["b", "a"], ["a", "b", "c"], None])
def test_other_classes_get_a_new_classifier(tmp_path, labels):
    saved = scalablevit_nano(3 if labels is None else len(labels)).eval()
    save_model(saved, tmp_path, labels)
    model, notes, _ = start(tmp_path)
    assert torch.equal(model.forward_features(IMAGES), saved.forward_features(IMAGES))
    assert notes[1].startswith("new: the classifier, for 2 classes")
    assert model(IMAGES).shape == (2, 2)


def test_a_file_of_the_authors_form(tmp_path):
    saved = scalablevit_nano(5, head="hidden", patch_size=4).eval()
    state = convert_state_dict(saved.state_dict(), saved, to="paper")
    torch.save({"model": state, "args": argparse.Namespace(lr=1)}, tmp_path / "theirs.pth")
    model, _, initial = start(tmp_path / "theirs.pth")
    assert initial.layout == "paper"
    assert initial.arguments["window_size"] == 7
    assert initial.normalisation == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert model.config["head"] == "hidden"
    names = [name for name in saved.state_dict() if "patch_embedding" in name]
    assert all(torch.equal(model.state_dict()[name], saved.state_dict()[name]) for name in names)


def test_a_file_of_vit_pytorch(tmp_path):
    theirs = VitPytorch(num_classes=4, **NETWORK).eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    model, notes, initial = start(tmp_path / "theirs.pt", "abcd", window_size=(4, 2))
    assert initial.arguments["heads"] == (1, 2)  # 32 wide
    assert len(notes) == 2  # the classes have no names there
    theirs.mlp_head[2].load_state_dict(model.get_classifier().state_dict())
    torch.testing.assert_close(model(IMAGES), theirs(IMAGES), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 3)])
def test_grey_images_look_the_same_whatever_the_channels(tmp_path, before, after):
    saved = scalablevit_nano(2, channels=before).eval()
    save_model(saved, tmp_path, ["a", "b"])
    model, notes, _ = start(tmp_path, channels=after)
    grey = torch.randn(2, 1, 28, 28)
    given, wanted = (grey.expand(-1, channels, -1, -1) for channels in (after, before))
    torch.testing.assert_close(model(given), saved(wanted), rtol=1e-4, atol=1e-5)
    assert notes[-1] == f"adapted: the first convolution, from {before} to {after} channels"


def test_channels_by_hand():
    weight = torch.tensor([1.0, 2.0, 6.0]).view(1, 3, 1, 1)
    assert adapt_channels(weight, 1).flatten().tolist() == [9.0]
    assert adapt_channels(adapt_channels(weight, 1), 3).flatten().tolist() == [3.0, 3.0, 3.0]


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere does not exist: give a run folder"):
        read_initial_weights(tmp_path / "nowhere")
    save_model(scalablevit_nano(2), tmp_path / "nano")
    with pytest.raises(ValueError, match="says itself what heads and window_size are"):
        read_initial_weights(tmp_path / "nano", heads=[1])
    with pytest.raises(ValueError, match=r"model\.safetensors holds parameters alone.*: give its folder, .*/nano$"):
        read_initial_weights(tmp_path / "nano" / "model.safetensors")
    torch.save(scalablevit_nano(2).state_dict(), tmp_path / "own.pt")
    with pytest.raises(ValueError, match=r"own\.pt holds parameters alone.*: give a folder by save_model"):
        read_initial_weights(tmp_path / "own.pt")
    other = ScalableViT(num_classes=2, **NETWORK)
    with pytest.raises(ValueError, match="leave --model out"):
        load_into(other, read_initial_weights(tmp_path / "nano"), ["a", "b"])
    torch.save(
        VitPytorch(num_classes=4, **{**NETWORK, "dim": 20, "heads": 1}, iwsa_dim_value=20).state_dict(),
        tmp_path / "x.pt",
    )
    with pytest.raises(ValueError, match="do not say how many heads there are: give --heads"):
        read_initial_weights(tmp_path / "x.pt")


def test_training_goes_on_from_a_run(run, data, tmp_path):
    options = {**TINY, "epochs": 1, "weights": str(run.run), "learning_rate": 1e-8}
    display = ProgressDisplay(Console(file=io.StringIO()))
    result = train(data, tmp_path / "run", **options, callbacks=[display])
    assert "\nscalablevit_nano with 1.17 M" in display.console.file.getvalue()
    before, after = load_model(run.run).state_dict(), load_model(result.run).state_dict()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-4, atol=1e-5)
    assert result.scores.top1 == pytest.approx(run.scores.top1)
