"""Exporting a run: what is asked for before any work, accuracy before and after, and what is refused."""

import json

import pytest
import torch

from scalablevit import Predictor, export, extras, save_model, scalablevit_nano
from scalablevit.classification import exports
from scalablevit.classification.evaluation import evaluate
from scalablevit.classification.exports import Accuracy
from scalablevit.cli import main
from scalablevit.exporting import open_export

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")
pytest.importorskip("nncf")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"int8": True}, "int8 needs images to find ranges of activations on: name a folder with --calibrate"),
        ({"int8": True, "calibrate": "x"}, "int8 changes the answers of a model: name labelled images with --data"),
        ({"calibrate": "x"}, "calibrate is given without int8"),
        ({"bf16": True, "data": "x"}, "bf16 is what OpenVINO can compute in, not what --to onnx makes"),
        ({"int8": True, "to": "pt2", "out": "m.pt2"}, "int8 is for --to onnx and --to openvino, not for --to pt2"),
        ({"max_lost": -1}, "max_lost is -1; it must be a number of at least 0"),
        ({"data": "no-such"}, "no-such does not exist"),
        ({"to": "pt2", "out": "m.pt2"}, "images of 8 x 8 pixels, but --to pt2 serves no height or width below 17"),
    ],
)
def test_options_that_do_not_go_together(options, message, run, tmp_path):
    out = tmp_path / options.pop("out", "m.onnx")
    with pytest.raises(ValueError, match=message):
        export(run.run, out, **options)
    assert not list(tmp_path.iterdir())


def test_what_is_no_run(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        export(tmp_path / "run", tmp_path / "m.onnx")


@pytest.mark.parametrize(("out", "package"), [("m.onnx", "onnxruntime"), ("m.xml", "nncf")])
def test_a_missing_quantiser_is_named_before_any_work(out, package, run, data, tmp_path, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == package else name)
    with pytest.raises(extras.MissingExtraError, match=rf"^{package} is not installed.*scalablevit\[export\]"):
        export(run.run, tmp_path / out, int8=True, calibrate=data, data=data)


def test_calibration_images_are_of_train_and_evenly_taken(data, tmp_path):
    files = exports._calibration_files(data, 6)
    assert [file.relative_to(data).as_posix() for file in files] == [
        f"train/{name}/{index:03}.png" for name in ("above", "below", "dark") for index in (0, 8)
    ]
    assert len(exports._calibration_files(data, 1000)) == 48
    with pytest.raises(ValueError, match="holds no images to calibrate with"):
        exports._calibration_files(tmp_path, 6)


def test_a_calibration_image_that_cannot_be_read_is_named_before_the_work(run, data, tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "x.png").write_text("no image")
    monkeypatch.setattr(exports, "write_export", None)
    with pytest.raises(ValueError, match=r"x\.png is not an image"):
        export(run.run, tmp_path / "m.onnx", int8=True, calibrate=tmp_path / "images", data=data)


def test_a_network_without_a_classifier_is_refused(tmp_path):
    save_model(scalablevit_nano(0), tmp_path / "model")
    with pytest.raises(ValueError, match=r"model holds a network without a classifier, which gives no logits"):
        export(tmp_path / "model", tmp_path / "m.onnx")
    with pytest.raises(ValueError, match=r"model holds a network without a classifier, which names no classes"):
        Predictor(tmp_path / "model")


@pytest.mark.parametrize("after", [84.4, float("nan")])
def test_an_export_that_lost_too_much_is_refused(after, tmp_path):
    accuracy = Accuracy(data="d", images=9, metric="top1", before=85.0, after=after)
    with pytest.raises(ValueError, match=r"m.onnx was not written: its top1 on 9 images is .*, the model's 85.00 %"):
        exports._check_accuracy(accuracy, tmp_path / "m.onnx", 0.5)


def test_accuracy_may_be_lost_as_asked(tmp_path):
    for after in (84.5, 90.0):
        exports._check_accuracy(
            Accuracy(data="d", images=9, metric="top1", before=85.0, after=after), tmp_path / "m.onnx", 0.5
        )


def test_scores_of_a_callable_are_those_of_evaluate(run, data):
    from scalablevit.classification.sources import find_evaluation_data
    from scalablevit.preprocessing import Preprocessing
    from scalablevit.weights import load_model, read_config

    config = read_config(run.run)
    model = load_model(run.run)
    images = find_evaluation_data(data, config["label_names"])
    found = exports._score(lambda x: model(x), images, Preprocessing.from_pretrained_cfg(config["pretrained_cfg"]))
    assert found.top1 == evaluate(run.run, data, report=False).top1


@pytest.mark.slow
def test_a_quantised_onnx_file_by_the_command(run, data, tmp_path, capsys):
    out = tmp_path / "m.onnx"
    options = ["--int8", "--calibrate", str(data), "--data", str(data), "--max-lost", "20"]
    assert main(["export", str(run.run), "--out", str(out), *options]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert lines[0].startswith(f"{out}: scalablevit_nano, 3 classes, int8 and fp32, ")
    assert lines[2].startswith("top1 on 18 images: ")
    opened = open_export(out)
    assert opened.description.weights == "int8"
    assert opened.description.notes["calibration_images"] == 48
    assert opened.description.notes["accuracy"]["images"] == 18
    assert list(tmp_path.iterdir()) == [out]
    assert out.stat().st_size < 2.5e6  # of 5.3
    for size in (8, 21):
        assert opened(torch.randn(3, 1, size, size + 1)).shape == (3, 3)


@pytest.mark.slow
def test_a_quantised_openvino_model_in_bfloat16(run, data, tmp_path, monkeypatch):
    out = tmp_path / "m.xml"
    result = export(run.run, out, int8=True, bf16=True, calibrate=data, data=data, max_lost=20)
    assert result.accuracy.images == 18
    opened = open_export(out)
    assert (opened.description.weights, opened.description.arithmetic) == ("int8", "bf16")
    assert json.loads(json.dumps(opened.description.notes)) == result.description.notes
    assert opened(torch.randn(3, 1, 21, 9)).shape == (3, 3)
    monkeypatch.setattr(exports, "open_export", lambda path: lambda images: torch.zeros(len(images), 3))
    with pytest.raises(ValueError, match="was not written"):
        export(run.run, out, bf16=True, data=data, max_lost=0, overwrite=True)
    assert open_export(out).description == opened.description
