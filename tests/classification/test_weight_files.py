"""`convert`: every layout into every other, as files, with the references run where they can be."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from vit_pytorch.scalable_vit import ScalableViT as Reference

from scalablevit import convert, load_model, save_model, scalablevit_nano
from scalablevit.classification import weight_files
from scalablevit.cli import main
from scalablevit.weights import read_config
from tests.references import golden_case

ARGUMENTS = {
    "num_classes": 5, "dim": 32, "depth": (1, 1), "heads": (1, 2), "reduction_factor": (2, 1), "window_size": (4, 2),
}  # fmt: skip


@pytest.fixture
def theirs(tmp_path):
    torch.manual_seed(0)
    model = Reference(**ARGUMENTS).eval()
    torch.save(model.state_dict(), tmp_path / "theirs.pt")
    return model


def test_of_vit_pytorch_and_back(theirs, tmp_path):
    result = convert(tmp_path / "theirs.pt", tmp_path / "ours", window_size=[4, 2])
    assert (result.source, result.target) == ("vit-pytorch", "scalablevit")
    assert len(result.checks) == 3
    assert "the source, in vit-pytorch: logits at 16x16 and 16x32 differ" in result.checks[2]
    images = torch.randn(1, 3, 16, 48)
    torch.testing.assert_close(load_model(tmp_path / "ours")(images), theirs(images))

    back = convert(tmp_path / "ours", tmp_path / "back.safetensors", to="vit-pytorch")
    assert "the result, in vit-pytorch" in back.checks[-1]
    state = load_file(tmp_path / "back.safetensors")
    assert state.keys() == theirs.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in theirs.state_dict().items())


def test_of_the_authors_and_back(tmp_path):
    case = golden_case("paper_tiny")
    torch.save({"model": case.state_dict, "epoch": 3}, tmp_path / "theirs.pth")
    known = {name: case.arguments[name] for name in ("heads", "window_size")}
    convert(tmp_path / "theirs.pth", tmp_path / "ours", **known)
    torch.testing.assert_close(load_model(tmp_path / "ours")(case.images), case.logits, atol=1e-4, rtol=1e-4)
    convert(tmp_path / "ours", tmp_path / "back.pth", to="paper")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert all(torch.equal(back[name], tensor) for name, tensor in case.state_dict.items())


def test_a_folder_keeps_what_it_knows_and_a_file_is_one_of_a_variant(tmp_path):
    save_model(scalablevit_nano(2, channels=1), tmp_path / "a", ["x", "y"], {"input_size": [1, 28, 28], "mean": [0.3]})
    convert(tmp_path / "a", tmp_path / "b.safetensors")
    convert(tmp_path / "a", tmp_path / "c")
    assert read_config(tmp_path / "c")["label_names"] == ["x", "y"]
    assert read_config(tmp_path / "c")["pretrained_cfg"]["mean"] == [0.3]
    convert(tmp_path / "b.safetensors", tmp_path / "d", model="scalablevit_nano")
    first, last = load_model(tmp_path / "a").state_dict(), load_model(tmp_path / "d").state_dict()
    assert all(torch.equal(first[name], last[name]) for name in first)


def test_what_does_not_agree_is_not_written(theirs, tmp_path, monkeypatch):
    original = weight_files.convert_state_dict

    def damaged(state, model, **options):
        converted = original(state, model, **options)
        return {**converted, "head.classifier.weight": converted["head.classifier.weight"] + 1}

    with monkeypatch.context() as patch:
        patch.setattr(weight_files, "_difference", lambda *_: 0.5)
        with pytest.raises(ValueError, match=r"differ by .* of their spread, more than 0\.0001; nothing was written"):
            convert(tmp_path / "theirs.pt", tmp_path / "ours", window_size=[4, 2])
    monkeypatch.setattr(weight_files, "convert_state_dict", damaged)
    with pytest.raises(ValueError, match=r"head\.classifier\.weight is not the same when it is read again"):
        convert(tmp_path / "theirs.pt", tmp_path / "ours", window_size=[4, 2])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs.pt"]


def test_the_number_of_heads_is_given_where_it_is_not_the_usual_one(tmp_path):
    torch.save(Reference(**{**ARGUMENTS, "heads": (2, 4)}).state_dict(), tmp_path / "theirs.pt")
    result = convert(tmp_path / "theirs.pt", tmp_path / "ours", heads=[2, 4], window_size=[4, 2])
    assert "in vit-pytorch" in result.checks[2]


def test_mistakes_are_told(theirs, tmp_path):
    source = tmp_path / "theirs.pt"
    save_model(scalablevit_nano(2), tmp_path / "nano", ["x", "y"])
    save_file(
        {name: each.contiguous() for name, each in scalablevit_nano(2).state_dict().items()}, tmp_path / "a.safetensors"
    )
    (tmp_path / "mine").mkdir()
    save_model(scalablevit_nano(2), tmp_path / "notes", ["x", "y"])
    (tmp_path / "notes" / "thesis.txt").write_text("years")
    for destination, options, message in (
        ("new", {"to": "torch"}, "to is 'torch'; it must be one of"),
        ("new", {"to": "vit-pytorch"}, "is written into a file"),
        ("nano", {}, "exists: give another destination, or --overwrite"),
        ("mine", {"overwrite": True}, "was not written by save_model alone"),
        ("notes", {"overwrite": True}, "holds 'thesis.txt' as well"),
        ("theirs.pt", {"overwrite": True}, "the source itself"),
        ("new", {"model": "scalablevit_nan"}, r"did you mean scalablevit_nano\?"),
        ("new", {"model": "scalablevit_nano"}, "theirs.pt holds no scalablevit_nano|does not|give"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(source, tmp_path / destination, **options)
    with pytest.raises(ValueError, match=r"holds parameters alone.* or name the variant with --model"):
        convert(tmp_path / "a.safetensors", tmp_path / "new")
    with pytest.raises(ValueError, match="whose heads and windows are known"):
        convert(tmp_path / "a.safetensors", tmp_path / "new", model="scalablevit_nano", heads=[99])
    assert (tmp_path / "notes" / "thesis.txt").read_text() == "years"
    with pytest.raises(ValueError, match="does not exist"):
        convert(tmp_path / "none.pt", tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["new.bin", "new.ckpt", "new.PTH", "new.Safetensors"])
def test_a_name_of_a_file_does_not_become_a_folder(theirs, tmp_path, name):
    with pytest.raises(ValueError, match="files of weights are written that end in"):
        convert(tmp_path / "theirs.pt", tmp_path / name, window_size=[4, 2])
    assert not (tmp_path / name).exists()


def test_a_folder_is_not_replaced_by_what_comes_out_of_it(tmp_path):
    save_model(scalablevit_nano(2), tmp_path / "nano", ["x", "y"])
    with pytest.raises(ValueError, match="nano, which holds the source: give another"):
        convert(tmp_path / "nano" / "model.safetensors", tmp_path / "nano", model="scalablevit_nano", overwrite=True)
    assert read_config(tmp_path / "nano")["label_names"] == ["x", "y"]


def test_a_destination_that_cannot_be_written_is_told_before_the_work(theirs, tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files, "_read", None)
    with pytest.raises(ValueError, match=r"theirs\.pt is a file and no folder"):
        convert(tmp_path / "theirs.pt", tmp_path / "theirs.pt" / "deep" / "new")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ValueError, match="you may not write into"):
        convert(tmp_path / "theirs.pt", tmp_path / "deep" / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs.pt"]


def test_numbers_that_are_not_finite_are_told(theirs, tmp_path):
    state = theirs.state_dict()
    next(iter(state.values()))[0] = torch.nan
    torch.save(state, tmp_path / "theirs.pt")
    with pytest.raises(ValueError, match=r"theirs\.pt holds numbers that are not finite, in stages\.0"):
        convert(tmp_path / "theirs.pt", tmp_path / "new", window_size=[4, 2])


def test_stages_without_windows(tmp_path):
    torch.save(Reference(**{**ARGUMENTS, "window_size": (4, None)}).state_dict(), tmp_path / "theirs.pt")
    paths = [str(tmp_path / name) for name in ("theirs.pt", "ours")]
    assert main(["convert", *paths, "--window-size", "4", "none"]) == 0
    assert read_config(paths[1])["scalablevit"]["arguments"]["window_size"] == [4, None]
    (tmp_path / "options.yaml").write_text("window_size: [4, null]\n")
    with pytest.raises(SystemExit):
        main(["train", "--config", str(tmp_path / "options.yaml"), "--print_config"])


def test_the_command(theirs, tmp_path, capsys):
    assert main(["convert", str(tmp_path / "theirs.pt"), str(tmp_path / "ours"), "--window-size", "4", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("from the layout vit-pytorch to scalablevit")
    assert len(lines) == 4
