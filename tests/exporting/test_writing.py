"""Exports as files: what they say of themselves, that they give what the model gives, and what is refused."""

import copy
import errno
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from scalablevit import __version__, extras
from scalablevit.exporting import is_export, open_export, write_export, writing
from scalablevit.exporting.description import Description
from tests.exporting.conftest import IMAGES, LABELS, SHORT
from tests.networks import randomise, small_network

onnxruntime = pytest.importorskip("onnxruntime")
openvino = pytest.importorskip("openvino")
KINDS = ("onnx", "openvino", "pt2")


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_opens_with_all_that_the_model_came_with(kind, exports):
    written = exports[kind]
    assert is_export(written.path)
    assert written.difference < 1e-5
    opened = open_export(str(written.path), device="cpu")
    assert opened.description == written.description
    assert opened.labels == LABELS
    assert opened.multi_label
    assert opened.num_classes == 5
    assert {name: opened.pretrained_cfg[name] for name in IMAGES} == IMAGES
    assert opened.description.version == __version__
    assert opened.description.license == "cc-by-4.0"


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_gives_what_the_model_gives_in_sizes_that_were_not_checked(kind, exports, model):
    opened = open_export(exports[kind].path)
    for batch, height, width in ((1, 40, 33), (4, 57, 30), (2, 9, 121)):
        images = torch.randn(batch, 3, height, width)
        logits = opened(images)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, model(images).detach(), rtol=1e-4, atol=1e-5)


def test_what_an_export_says_is_found_without_this_package(exports):
    said = onnxruntime.InferenceSession(exports["onnx"].path).get_modelmeta().custom_metadata_map
    assert json.loads(said["labels"]) == list(LABELS)
    assert json.loads(said["pretrained_cfg"])["mean"] == [0.4, 0.5, 0.6]
    assert said["scalablevit_version"] == __version__
    assert "divided by its std" in said["input"]
    with zipfile.ZipFile(exports["pt2"].path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/extra/scalablevit.json"))
        assert json.loads(archive.read(name)) == {**said, "smallest_side": "9"}
    model = openvino.Core().read_model(exports["openvino"].path)
    assert {name: str(model.get_rt_info(["scalablevit", name]).value) for name in said} == said


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_tells_no_paths_of_the_machine(kind, exports):
    content = exports[kind].path.read_bytes()
    if kind == "pt2":
        with zipfile.ZipFile(exports[kind].path) as archive:
            content = b"".join(archive.read(name) for name in archive.namelist())
    assert b"scalable_vit.py" not in content


@pytest.mark.parametrize("kind", KINDS)
def test_images_that_an_export_does_not_take_are_named(kind, exports):
    opened = open_export(exports[kind].path)
    for images in (torch.zeros(3, 40, 33), torch.zeros(1, 1, 40, 33), torch.zeros(1, 3, 40, 33, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"takes torch.float32 of shape \(batch, 3, height, width\)"):
            opened(images)
    if kind == "pt2":
        with pytest.raises(ValueError, match=r"images are 8 x 40 pixels, but .* takes no height or width below 9"):
            opened(torch.zeros(1, 3, 8, 40))
    else:
        assert opened(torch.zeros(1, 3, 1, 1)).shape == (1, 5)


def test_bfloat16_is_openvinos(exports, model):
    for kind in ("onnx", "pt2"):
        with pytest.raises(ValueError, match="precision is 'bf16', which OpenVINO alone"):
            open_export(exports[kind].path, precision="bf16")
    with pytest.raises(ValueError, match="precision is 'half'; it must be one of fp32, bf16"):
        open_export(exports["openvino"].path, precision="half")
    images = torch.randn(2, 3, 40, 33)
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(ValueError, match="in which cpu does not compute here"):
            open_export(exports["openvino"].path, precision="bf16")
        return
    difference = (open_export(exports["openvino"].path, precision="bf16")(images) - model(images)).abs().max()
    assert 1e-4 < difference < 0.1


def test_threads_and_devices_are_the_runtimes(exports):
    images = torch.randn(1, 3, 40, 33)
    for kind in ("onnx", "openvino"):
        assert open_export(exports[kind].path, threads=1)(images).shape == (1, 5)
        with pytest.raises(ValueError, match=r"device is 'tpu'"):
            open_export(exports[kind].path, device="tpu")
    with pytest.raises(ValueError, match=r"device is 'tpu', on which PyTorch does not compute here: "):
        open_export(exports["pt2"].path, device="tpu")
    with pytest.raises(ValueError, match=r"device is 'cuda:99', on which PyTorch does not compute here: "):
        open_export(exports["pt2"].path, device="cuda:99")
    with pytest.raises(ValueError, match=r"torch\.set_num_threads"):
        open_export(exports["pt2"].path, threads=1)


def test_an_export_that_differs_is_not_handed_over(exports, tmp_path, monkeypatch):
    other = randomise(small_network(**SHORT), seed=1).eval()
    wrong = replace(writing.KINDS["onnx"], write=lambda model, path, _: shutil.copy(exports["onnx"].path, path))
    monkeypatch.setitem(writing.KINDS, "onnx", wrong)
    out = tmp_path / "model.onnx"
    with pytest.raises(ValueError, match=r"model.onnx was not written: for 1 images of 224 x 224 pixels its logits"):
        write_export(other, out)
    assert not list(tmp_path.iterdir())
    out.write_text("earlier")
    with pytest.raises(ValueError, match="was not written"):
        write_export(other, out, overwrite=True)
    assert out.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda images: 1 / 0, r"for 1 images of 40 x 33 pixels it fails \(division by zero\): try another --to"),
        (lambda images: torch.zeros(1, 1), r"gives logits of shape \(1, 1\) rather than \(1, 5\): try another --to"),
    ],
)
def test_an_export_that_does_not_run_is_not_handed_over(answer, message, exports, model, tmp_path, monkeypatch):
    copied = replace(writing.KINDS["onnx"], write=lambda model, path, _: shutil.copy(exports["onnx"].path, path))
    monkeypatch.setitem(writing.KINDS, "onnx", copied)
    monkeypatch.setattr("scalablevit.exporting.opening.OpenedExport.__call__", lambda _, images: answer(images))
    with pytest.raises(ValueError, match=rf"model.onnx was not written: .*{message}"):
        write_export(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_changed_weight_is_found(exports, model, tmp_path, monkeypatch):
    import onnx

    def write(model, path, metadata):
        graph = onnx.load(exports["onnx"].path)
        weight = max(graph.graph.initializer, key=lambda each: len(each.raw_data))
        values = np.frombuffer(weight.raw_data, np.float32).copy()
        values[len(values) // 2] += 0.5
        weight.raw_data = values.tobytes()
        onnx.save(graph, path)

    monkeypatch.setitem(writing.KINDS, "onnx", replace(writing.KINDS["onnx"], write=write))
    with pytest.raises(ValueError, match=r"model.onnx was not written: .* its logits differ from the model's"):
        write_export(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_and_nothing_is_left(model, tmp_path, monkeypatch):
    def write(model, path, metadata):
        path.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setitem(writing.KINDS, "onnx", replace(writing.KINDS["onnx"], write=write))
    with pytest.raises(OSError, match=r"model.onnx was not written \(No space left on device\): make room"):
        write_export(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no limits of a process")
def test_a_full_disk_does_not_end_the_process(tmp_path):
    code = (
        "import pathlib, resource, sys, torch\n"
        "from scalablevit.exporting.program import save_program\n"
        "program = torch.export.export(torch.nn.Linear(64, 64), (torch.zeros(2, 64),))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
        "try:\n    save_program(program, pathlib.Path(sys.argv[1]), {})\n"
        "except OSError as error:\n    print('refused', error.errno)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "m.pt2")], capture_output=True, text=True
    )
    assert (ran.returncode, ran.stdout.split()[:1]) == (0, ["refused"]), ran.stderr


def test_a_folder_that_may_not_be_written_into_is_told_before_the_work(model, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # which root always may
    with pytest.raises(ValueError, match=r"model.onnx: you may not write into .*: name another folder"):
        write_export(model, tmp_path / "model.onnx")
    monkeypatch.undo()

    def refuse(**_):
        raise OSError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(writing.tempfile, "TemporaryDirectory", refuse)  # as /proc does
    with pytest.raises(OSError, match=r"model.onnx was not written: nothing can be written into .* \(No such file"):
        write_export(model, tmp_path / "model.onnx")


def test_nothing_is_overwritten_unasked(exports, model, tmp_path, monkeypatch):
    right = replace(writing.KINDS["onnx"], write=lambda model, path, _: shutil.copy(exports["onnx"].path, path))
    monkeypatch.setitem(writing.KINDS, "onnx", right)
    out = tmp_path / "model.onnx"
    out.write_text("earlier")
    with pytest.raises(ValueError, match=r"model.onnx exists: give another --out, or --overwrite"):
        write_export(model, out)
    assert out.read_text() == "earlier"
    write_export(model, out, overwrite=True)
    assert open_export(out).labels == LABELS
    assert list(tmp_path.iterdir()) == [out]
    (tmp_path / "model.bin").write_text("of another")
    with pytest.raises(ValueError, match=r"model.bin exists"):
        write_export(model, tmp_path / "model.xml")


@pytest.mark.parametrize(
    ("name", "to", "message"),
    [
        ("model.ONNX", None, "write the ending in small letters, .onnx"),
        ("model.bin", None, r"whose ending says no kind of export: give --to, or one of .onnx"),
        ("model.onnx", "onxx", r"to is 'onxx' \(did you mean onnx\?\); it must be one of onnx, openvino, pt2, aoti"),
        ("model.onnx", "openvino", r"--to openvino writes a file that ends in .xml"),
        ("no/model.onnx", None, r"there is no folder .*no: make it"),
    ],
)
def test_places_and_kinds_that_do_not_fit(name, to, message, model, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_export(model, tmp_path / name, to)


def test_the_model_stays_as_it_is(model, tmp_path):
    given = copy.deepcopy(model).double()
    write_export(given, tmp_path / "model.onnx")
    assert {parameter.dtype for parameter in given.parameters()} == {torch.float64}


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((2, 5), "gives no finite logits"),
        pytest.param((1, 4), "gives no finite logits", marks=pytest.mark.slow),
    ],
)
def test_what_was_changed_is_run_once_more(size, message, model, tmp_path, monkeypatch):
    def change(path, description):
        broken = torch.full(size, float("nan"))
        monkeypatch.setattr("scalablevit.exporting.opening.OpenedExport.__call__", lambda *_: broken)
        return description

    with pytest.raises(ValueError, match=message):
        write_export(model, tmp_path / "model.onnx", change=change)
    assert list(tmp_path.iterdir()) == []


def test_a_program_for_images_smaller_than_it_serves_is_refused(tmp_path):
    small = small_network(**SHORT).eval()
    small.pretrained_cfg = {"input_size": [3, 8, 40]}
    with pytest.raises(ValueError, match=r"images of 8 x 40 pixels, but --to pt2 serves no height or width below 9"):
        write_export(small, tmp_path / "model.pt2")


def test_a_missing_package_is_named_before_any_work(model, tmp_path, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name in ("openvino", "onnxruntime") else name)
    with pytest.raises(extras.MissingExtraError, match=r"^openvino is not installed.*scalablevit\[export\]"):
        write_export(model, tmp_path / "model.xml")
    (tmp_path / "model.onnx").write_text("")
    with pytest.raises(extras.MissingExtraError, match=r"^onnxruntime is not installed"):
        open_export(tmp_path / "model.onnx")


def test_a_missing_compiler_is_named_before_any_work(model, tmp_path, monkeypatch):
    from torch._inductor.exc import InvalidCxxCompiler

    def find():
        raise InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", find)
    with pytest.raises(ValueError, match=r"AOTInductor needs a C\+\+ compiler, .* install g\+\+, name one in .* CXX"):
        write_export(model, tmp_path / "model.pt2", "aoti")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
def test_what_is_no_export_of_ours(suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    with pytest.raises(ValueError, match="does not exist"):
        open_export(path)
    path.write_text("no model")
    path.with_suffix(".bin").write_text("")
    with pytest.raises(ValueError, match=f"model{suffix} is not an"):
        open_export(path)


@pytest.mark.parametrize(
    ("part", "message"),
    [("models/model.json", "does not load here"), ("extra/scalablevit.json", r"is damaged \(.*\): get it again")],
)
def test_a_damaged_program_is_named(part, message, exports, tmp_path):
    damaged = tmp_path / "damaged.pt2"
    with zipfile.ZipFile(exports["pt2"].path) as before, zipfile.ZipFile(damaged, "w") as after:
        for name in before.namelist():
            after.writestr(name, b'{"a": \x00}' if name.endswith(part) else before.read(name))
    with pytest.raises(ValueError, match=rf"damaged\.pt2 {message}"):
        open_export(damaged)


def test_a_file_that_says_nothing_of_itself_is_refused(exports, tmp_path):
    import onnx

    model = onnx.load(exports["onnx"].path)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(ValueError, match="was not written by `scalablevit export`"):
        open_export(tmp_path / "bare.onnx")


def test_a_graph_without_its_weights_is_named(exports, tmp_path):
    shutil.copy(exports["openvino"].path, tmp_path / "model.xml")
    with pytest.raises(ValueError, match=r"model.bin is missing.*copy both"):
        open_export(tmp_path / "model.xml")


def test_folders_and_other_files_are_no_exports(tmp_path):
    (tmp_path / "run.onnx").mkdir()
    assert not is_export(tmp_path / "run.onnx")
    assert not is_export(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"is not an export: its name must end in .onnx, .pt2, .xml"):
        open_export(tmp_path / "model.safetensors")


def test_a_damaged_description_is_an_error(exports):
    strings = exports["onnx"].description.to_strings()
    assert Description.from_strings({**strings, "of others": "too"}, "it") == exports["onnx"].description
    for change in ({"labels": "["}, {"weights": "int4"}, {"num_classes": ""}):
        with pytest.raises(ValueError, match="what it says of itself cannot be read"):
            Description.from_strings({**strings, **change}, "it")


@pytest.mark.slow
def test_a_compiled_package(model, tmp_path):
    written = write_export(model, tmp_path / "model.pt2", "aoti")
    assert written.difference < 1e-5
    opened = open_export(written.path)
    assert opened.description == written.description
    for batch, height, width in ((1, 40, 33), (4, 57, 30), (2, 9, 121)):
        images = torch.randn(batch, 3, height, width)
        torch.testing.assert_close(opened(images), model(images).detach(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"images are 8 x 40 pixels, but .* takes no height or width below 9"):
        opened(torch.zeros(1, 3, 8, 40))
    assert torch._inductor.aoti_load_package(str(written.path)).get_metadata()["license"] == "cc-by-4.0"
