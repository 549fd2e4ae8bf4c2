"""What an explanation holds, against the modules' own outputs, and what it leaves of the model."""

import gc
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from scalablevit import explain, scalablevit_nano
from scalablevit.attention import InteractiveWindowedSelfAttention, ScalableSelfAttention
from scalablevit.cli import main
from scalablevit.explanation import Question, Subject, attention_picture, explain_image
from scalablevit.explanation.attention_maps import attention_probabilities, key_grid, mean_attention
from scalablevit.explanation.evidence import find_evidence
from scalablevit.explanation.forward_pass import run
from scalablevit.explanation.lattice import HeatMap
from scalablevit.explanation.windows import interact, window_changes
from scalablevit.explanation.writing import write
from scalablevit.preprocessing import Preprocessing
from scalablevit.weights import save_model
from tests.networks import all_designs, randomise, small_network

LABELS = ["cat", "dog", "hen", "cow", "pig"]


@pytest.fixture(scope="module")
def subject():
    preprocessing = Preprocessing(size=(64, 96), channels=3)
    return Subject(model=randomise(small_network()), preprocessing=preprocessing, labels=LABELS)


@pytest.fixture(scope="module")
def photo():
    rows, columns = np.mgrid[:120, :200]
    return Image.fromarray(np.stack([rows, columns, (rows * columns) % 256], 2).astype(np.uint8))


@pytest.mark.parametrize("size", [(64, 96), (50, 70), (7, 5)])
@pytest.mark.parametrize("design", all_designs())
def test_probabilities_times_values_are_what_ssa_gives(design, size):
    model = randomise(small_network(design)).eval()
    passed = run(model, torch.randn(1, 3, *size))
    for module in model.modules():
        if not isinstance(module, ScalableSelfAttention):
            continue
        x = passed.inputs[module]
        probabilities = attention_probabilities(module, x)  # (n, q, k)
        rows, columns = key_grid(module, *x.shape[1:3])
        assert probabilities.shape == (module.heads, x.shape[1] * x.shape[2], rows * columns)
        values = module.keys_values(x)[1][0].unflatten(1, (module.heads, -1))  # (k, n, d)
        mixed = torch.einsum("nqk,knd->qnd", probabilities, values).flatten(1)
        torch.testing.assert_close(module.to_out(mixed).view_as(x[0]), module(x)[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mean_attention(module, x), probabilities.mean(1))
        torch.testing.assert_close(attention_probabilities(module, x, [0])[:, 0], probabilities[:, 0])


@pytest.mark.parametrize("design", all_designs())
def test_the_pass_gives_the_models_logits(design):
    model = randomise(small_network(design)).eval()
    images = torch.randn(1, 3, 50, 70)
    torch.testing.assert_close(run(model, images).logits, model(images)[0])


@pytest.mark.parametrize("design", all_designs())
def test_lim_alone_carries_a_window_across_its_border_by_one_position(design):
    model = randomise(small_network(design)).eval()
    block = next(m for m in model.modules() if isinstance(m, InteractiveWindowedSelfAttention))
    x = torch.randn(1, 21, 24, 8)
    torch.testing.assert_close(interact(block, x, lim=True), block(x), rtol=1e-4, atol=1e-5)
    whole, without = window_changes(model, block, x, (7, 14, 7, 14))
    inside, around = torch.zeros(21, 24, dtype=torch.bool), torch.zeros(21, 24, dtype=torch.bool)
    inside[7:14, 7:14], around[6:15, 6:15] = True, True
    assert without[inside].min() > 1e-3
    assert without[~inside].max() < 1e-5
    assert whole[around].min() > 1e-3
    assert whole[~around].max() < 1e-5


def test_integrated_gradients_are_those_of_the_definition():
    model = randomise(small_network()).eval()
    passed = run(model, torch.randn(1, 3, 32, 48))
    found = find_evidence(model, passed, 2, steps=4)
    mean, total = passed.patches.mean((1, 2), keepdim=True), 0
    for part in (0.125, 0.375, 0.625, 0.875):
        x = (mean + part * (passed.patches - mean)).requires_grad_()
        y = model.stages[0].norm(model.stages[0].layers(x))
        for stage in list(model.stages)[1:]:
            y = stage(y)
        logits = model.forward_head(y.permute(0, 3, 1, 2))[0]
        total = total + torch.autograd.grad(logits[2] - logits.mean(), x)[0] / 4
    expected = ((passed.patches - mean) * total).sum(-1)[0].relu()
    rows, columns = (np.exp(-((np.arange(n)[:, None] - np.arange(n)) ** 2) / (2 * (12 / 32) ** 2)) for n in (8, 12))
    shares = rows / rows.sum(1, keepdims=True), columns / columns.sum(1, keepdims=True)
    expected = np.einsum("ij,jk,lk->il", shares[0], expected.numpy(), shares[1])  # each place with its neighbours
    np.testing.assert_allclose(found.values, expected, rtol=1e-3, atol=1e-6)
    assert (found.first, found.spacing) == (0, 4)


def test_grad_cam_is_that_of_the_definition():
    model = randomise(small_network()).eval()
    passed = run(model, torch.randn(1, 3, 64, 64))
    x = passed.maps[1].clone().requires_grad_()  # (1, 8, 8, c), the last with 7 positions
    y = x
    for stage in list(model.stages)[2:]:
        y = stage(y)
    logits = model.forward_head(y.permute(0, 3, 1, 2))[0]
    gradient = torch.autograd.grad(logits[1] - logits.mean(), x)[0]
    expected = (x.detach() * gradient.mean((1, 2), keepdim=True)).sum(-1)[0].relu()
    found = find_evidence(model, passed, 1, "grad-cam")
    np.testing.assert_allclose(found.values, expected.numpy(), rtol=1e-3, atol=1e-6)


def test_the_model_is_left_as_it_was_and_twice_gives_the_same(subject, photo):
    model = subject.model.train()
    model.stages[1].eval()
    frozen = next(model.parameters()).requires_grad_(False)

    def state():
        modules = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
        return modules, [(p.requires_grad, p.grad) for p in model.parameters()]

    before, values = state(), [p.clone() for p in model.parameters()]
    first, second = (explain_image(subject, photo, Question(method="grad-cam")) for _ in range(2))
    third, fourth = (explain_image(subject, photo) for _ in range(2))
    assert state() == before
    assert all(torch.equal(*pair) for pair in zip(values, model.parameters(), strict=True))
    for one, other in ((first, second), (third, fourth)):
        assert np.array_equal(one.evidence.values, other.evidence.values)
        assert np.array_equal(one.attention[0].maps, other.attention[0].maps)
    assert first.picture().tobytes() == second.picture().tobytes()
    frozen.requires_grad_(True)
    model.eval()


def test_what_an_explanation_holds(subject, photo):
    found = explain_image(subject, photo, Question(label="hen", stages=[1, 3], heads=[1], points=[(0.5, 0.5)]))
    assert found.label == "hen"
    assert sorted(found.labels) == sorted(LABELS)
    assert list(found.probabilities) == sorted(found.probabilities, reverse=True)
    assert sum(found.probabilities) == pytest.approx(1)
    assert found.evidence.values.shape == (16, 24)
    assert [look.maps.shape for look in found.attention] == [(1, 2, 3), (1, 2, 3)]
    assert all(look.maps.sum() == pytest.approx(1) for look in found.attention)
    assert found.windows.with_lim.values.shape == (16, 24)
    assert found.picture().width == 1400


def test_maps_lie_where_their_kernels_are_centred():
    heat = HeatMap(values=np.array([[0.0, 1.0], [2.0, 0.0]]), first=1.0, spacing=4.0)
    assert heat.peak_pixel == (5.0, 1.0)
    smooth = heat.smooth(8, 8)
    assert smooth[5, 1] == pytest.approx(2)
    assert smooth[1, 5] == pytest.approx(1)
    assert smooth[7, 0] == pytest.approx(2)  # beyond the last position
    assert heat.blocks(8, 8, 2)[:, 0].tolist() == [0.0] * 7 + [2.0] * 9


@pytest.mark.parametrize(
    ("size", "channels", "mode", "multi_label"),
    [((28, 28), 1, "RGB", False), ((33, 20), 3, "L", True), ((130, 60), 3, "RGBA", False)],
)
def test_images_of_any_size_and_colour(size, channels, mode, multi_label, photo):
    model = scalablevit_nano(2, channels=channels).eval()
    preprocessing = Preprocessing(size=size, channels=channels, mean=(0.5,) * channels, std=(0.5,) * channels)
    picture = attention_picture(model, preprocessing, ["a", "b"], photo.convert(mode), multi_label=multi_label)
    assert picture.width == 1400


def test_one_window_and_one_class_and_no_windows(photo):
    for overrides in ({}, {"window_size": None}):
        model = randomise(small_network(num_classes=1, **overrides)).eval()
        one = Subject(model=model, preprocessing=Preprocessing(size=(16, 16)), labels=["only"], multi_label=True)
        found = explain_image(one, photo)
        assert found.windows is None
        assert found.picture().width == 1400


@pytest.fixture
def folder(tmp_path, subject, photo):
    save_model(subject.model, tmp_path / "model", LABELS, {"input_size": [3, 64, 96]})
    (tmp_path / "photos").mkdir()
    for name in ("one.png", "two.png"):
        photo.save(tmp_path / "photos" / name)
    return tmp_path


def test_a_picture_a_page_and_no_overwriting(folder, capsys):
    out, page = folder / "out.png", folder / "page.html"
    arguments = ["explain", str(folder / "model"), str(folder / "photos" / "one.png"), "--out", str(out)]
    assert main(arguments) == 0
    with Image.open(out) as picture:
        assert picture.width == 1400
    assert main(arguments) == 2
    assert "exists: give another name by --out, or --overwrite" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0
    (folder / "photos" / "three.png").write_bytes(b"no image")
    assert main(["explain", str(folder / "model"), str(folder / "photos"), "--out", str(page)]) == 1
    assert "three.png is not an image" in capsys.readouterr().err
    html = page.read_text()
    assert html.count("<figure>") == 2 * 9
    assert 'src="http' not in html
    assert not list(folder.glob(".*partial"))


def test_equal_names_in_several_folders_are_told_apart(folder, photo):
    page = folder / "page.html"
    (folder / "photos" / "more").mkdir()
    photo.save(folder / "photos" / "more" / "one.png")
    explanations = explain(folder / "model", folder / "photos", page)
    names = ["one.png", "two.png", "more/one.png"]
    headings = [f"{name}: {each.answer}" for name, each in zip(names, explanations, strict=True)]
    assert [each.heading for each in explanations] == headings
    for name in names:
        assert f">{name}: " in page.read_text()
    assert str(folder) not in page.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "dgo"}, r"label is 'dgo' \(did you mean dog\?\)"),
        ({"stages": [5]}, "stages has 5; the network has stages 1 to 4"),
        ({"stages": [0]}, r"stages is \[0\]; it must hold numbers from 1"),
        ({"heads": [4], "stages": [2]}, "heads has 4, but stage 2 has 2"),
        ({"points": [(0.5, 2)]}, r"points has \(0.5, 2\)"),
        ({"method": "grad_cam"}, r"did you mean grad-cam"),
        ({"out": "x.jpg"}, "must end in .png"),
    ],
)
def test_mistakes_are_named(folder, options, message):
    with pytest.raises(ValueError, match=message):
        explain(folder / "model", folder / "photos" / "one.png", **options)


def test_what_cannot_be_read_is_named(folder):
    (folder / "text.png").write_text("text")
    with pytest.raises(ValueError, match="is not an image"):
        explain(folder / "model", folder / "text.png")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        explain(folder / "model", folder / "nowhere.png")
    with pytest.raises(ValueError, match="but there are 2 images"):
        explain(folder / "model", folder / "photos", folder / "out.png")


def test_a_page_keeps_no_explanation_but_its_panels(subject, photo, tmp_path):
    made = []

    def explanations():
        for _ in range(4):
            gc.collect()
            assert sum(each() is not None for each in made) <= 2  # the first, which is in hand, and the last
            explanation = explain_image(subject, photo)
            made.append(weakref.ref(explanation))
            yield explanation
            del explanation

    assert write(explanations(), tmp_path / "page.html", run="run")
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<figure>") % 4 == 0
    assert not write(iter([]), tmp_path / "none.html", run="run")
    assert not (tmp_path / "none.html").exists()


def test_a_folder_that_may_not_be_written_into_is_told_before_the_work(folder, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ValueError, match="you may not write into"):
        explain(folder / "model", folder / "photos" / "one.png", folder / "new.png")
