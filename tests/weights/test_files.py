"""`read_weights`: what is read, and above all what is not run."""

import argparse
import os
import pathlib
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import safetensors.torch
import torch

from scalablevit import ScalableViT
from scalablevit.weights import convert_state_dict, infer_arguments, read_weights
from tests.references import golden_case

STATE = {"norm.weight": torch.arange(4.0), "norm.bias": torch.zeros(4)}


def same(state, other):
    return state.keys() == other.keys() and all(torch.equal(state[key], other[key]) for key in state)


def checkpoint_of_the_authors(state):
    """What their training script saves, with the kinds of values that its arguments hold."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    arguments = argparse.Namespace(
        model="scalable_vit_small",
        lr=1e-3,
        opt_betas=None,
        output_dir=pathlib.Path("runs/small"),
        best_accuracy=np.float64(83.1),
        loss=np.float32(0.9),
        seen=np.int64(1281167),
        distributed=np.bool_(True),
        device=torch.device("cuda"),
    )
    return {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": {"t_initial": 300, "warmup_steps": [0.1, 0.2]},
        "epoch": 299,
        "scaler": {"scale": 65536.0, "_growth_tracker": 3},
        "args": arguments,
    }


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_checkpoint_of_the_authors_is_read(tmp_path, is_zip):
    case = golden_case("paper_tiny")
    file = tmp_path / "checkpoint.pth"
    torch.save(checkpoint_of_the_authors(OrderedDict(case.state_dict)), file, _use_new_zipfile_serialization=is_zip)

    state = read_weights(file)

    assert same(state, case.state_dict)
    arguments = infer_arguments(state, heads=case.arguments["heads"])
    model = ScalableViT(**arguments, window_size=case.arguments["window_size"]).eval()
    model.load_state_dict(convert_state_dict(state, model))
    assert (model(case.images) - case.logits).abs().max() < 1e-4


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt"])
@pytest.mark.parametrize("wrapped", [lambda state: state, lambda state: {"state_dict": state, "epoch": 1}])
def test_plain_and_wrapped_checkpoints_are_read(tmp_path, suffix, wrapped):
    file = tmp_path / f"weights{suffix}"
    torch.save(wrapped(STATE), file)

    assert same(read_weights(file), STATE)
    assert same(read_weights(str(file), device="cpu"), STATE)


def test_safetensors_are_read(tmp_path):
    file = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({f"module.{name}": tensor for name, tensor in STATE.items()}, file)

    assert same(read_weights(file), STATE)


class Hostile:
    """Unpickled by anything that trusts a file, it makes a marker file."""

    def __init__(self, marker, how):
        self.marker, self.how = marker, how

    def __reduce__(self):
        if self.how == "os.system":
            return os.system, (f"touch '{self.marker}'",)
        if self.how == "eval":
            return eval, (f"__import__('pathlib').Path({str(self.marker)!r}).touch()",)
        return pathlib.Path.touch, (pathlib.Path(self.marker),)


@pytest.mark.parametrize("place", ["args", "model", "in the state dict"])
@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize(
    ("how", "refused"), [("os.system", r"posix\.system|nt\.system"), ("eval", "eval"), ("touch", "getattr")]
)
def test_a_hostile_pickle_is_refused_and_does_not_run(tmp_path, how, refused, is_zip, place):
    marker, file = tmp_path / "marker", tmp_path / "hostile.pth"
    hostile = Hostile(marker, how)
    content = {
        "args": {"model": STATE, "args": hostile},
        "model": {"model": hostile},
        "in the state dict": {**STATE, "x": hostile},
    }[place]
    torch.save(content, file, _use_new_zipfile_serialization=is_zip)

    with pytest.raises(ValueError, match=rf"hostile\.pth was refused: it holds ({refused}), .* Nothing of it was run"):
        read_weights(file)

    assert not marker.exists()
    torch.load(file, weights_only=False)
    assert marker.exists()  # the file would have done it


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_hostile_pickle_of_any_protocol_does_not_run(tmp_path, protocol):
    marker, file = tmp_path / "marker", tmp_path / "hostile.pt"
    file.write_bytes(pickle.dumps(Hostile(marker, "os.system"), protocol=protocol))

    with pytest.raises(ValueError, match=r"hostile\.pt (was refused|is damaged)") as caught:
        read_weights(file)

    assert not marker.exists()
    assert "weights_only" not in str(caught.value)  # torch advises to open such files without it


def test_a_pickled_model_is_refused(tmp_path):
    file = tmp_path / "model.pt"
    torch.save(torch.nn.Linear(2, 2), file)

    with pytest.raises(ValueError, match=r"it holds torch\.nn\.modules\.linear\.Linear, which is not on the list"):
        read_weights(file)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.99])
def test_a_file_that_is_cut_short_is_named(tmp_path, suffix, kept):
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"model": STATE}, file)
    else:
        safetensors.torch.save_file(STATE, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])

    problem = "is damaged, or no" if kept else r"is empty \(0 bytes\), and no"
    with pytest.raises(ValueError, match=rf"{file.name} {problem} .*: get it again"):
        read_weights(file)


@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors"])
def test_text_in_the_place_of_weights_is_called_so(tmp_path, suffix):
    kind = "a safetensors file" if suffix == ".safetensors" else "a checkpoint of torch.save"
    for content, shown in (
        ("hello", "'hello'"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0", r"'version https://git-lfs\.github\.com/spec/'"),
        ("\n<!DOCTYPE html>\n" + 99 * "é", "'<!DOCTYPE html>'"),
    ):
        file = tmp_path / f"weights{suffix}"
        file.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=rf"is text, and not {kind}: it begins with {shown}: get it again"):
            read_weights(file)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_no_checkpoint_is_named(tmp_path, suffix):
    file = tmp_path / f"image{suffix}"
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))

    with pytest.raises(ValueError, match=rf"{file.name} is damaged, or no "):
        read_weights(file)


def test_damage_at_any_place_is_a_value_error(tmp_path):
    good, file = tmp_path / "good.pth", tmp_path / "damaged.pth"
    torch.save(checkpoint_of_the_authors(STATE), good)
    with zipfile.ZipFile(good) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    (pickled,) = (name for name in parts if name.endswith("data.pkl"))
    random = np.random.RandomState(0)
    for _ in range(100):
        damaged = bytearray(parts[pickled])
        for place in random.randint(0, len(damaged), 3):
            damaged[place] = random.randint(256)
        with zipfile.ZipFile(file, "w") as archive:  # with checksums that are right
            for name, content in {**parts, pickled: bytes(damaged)}.items():
                archive.writestr(name, content)
        error = value_error_of(file)
        assert error is None or str(file) in error  # the damage may be to a value, and unnoticed


def value_error_of(file):
    try:
        read_weights(file)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no weights: a state dict is needed, .* this is a list"),
        ({"model": {}}, "holds no weights: a state dict is needed, .* this is empty"),
        ({"epoch": 3}, "holds no weights: .* 'epoch' holds a int"),
    ],
)
def test_a_file_without_weights_is_named(tmp_path, content, message):
    file = tmp_path / "other.pth"
    torch.save(content, file)

    with pytest.raises(ValueError, match=rf"other\.pth {message}"):
        read_weights(file)


def test_a_missing_file_a_folder_and_another_suffix_are_named(tmp_path):
    (tmp_path / "weights.npz").touch()

    with pytest.raises(ValueError, match=r"nowhere\.pth does not exist"):
        read_weights(tmp_path / "nowhere.pth")
    with pytest.raises(ValueError, match="is a folder: give a file of weights in it, or use load_model"):
        read_weights(tmp_path)
    with pytest.raises(ValueError, match=r"weights\.npz has the suffix '\.npz'; .* end in \.safetensors, \.pth"):
        read_weights(tmp_path / "weights.npz")


@pytest.mark.parametrize(
    ("version", "message"),
    [("2", "holds layout version 2, and this version of scalablevit knows versions up to 1"), ("x", "'x'; it must be")],
)
def test_a_newer_layout_is_refused(tmp_path, version, message):
    file = tmp_path / "new.safetensors"
    safetensors.torch.save_file(STATE, file, metadata={"scalablevit_layout": version})

    with pytest.raises(ValueError, match=message):
        read_weights(file)
