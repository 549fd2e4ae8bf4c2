"""The command line: what it prints, what it needs, and one line for each mistake."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from scalablevit import __version__, extras
from scalablevit.classification.configuration import TrainConfig
from scalablevit.classification.faults import TrainingFault
from scalablevit.classification.stopping import StoppedBySignal
from scalablevit.cli import VERBS, main
from scalablevit.cli.messages import print_json
from scalablevit.exporting.writing import beside
from tests.conftest import CHOSEN, TINY, write_images

OPTIONS = [f"--{name}={value}" for name, value in TINY.items()]


def refusal(capsys, *arguments):
    """What is said of a mistake."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith("\n")
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("scalablevit: error: ")
    return captured.err


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    assert VERBS[verb].summary in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["predict", "serve"])
def test_what_opens_exports_says_so(verb, capsys):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    assert "Or a file by scalablevit export." in " ".join(capsys.readouterr().out.split())


def test_help_of_training_explains_every_option(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for field in fields(TrainConfig):
        assert f"--{field.name} " in text
    assert "(type: float, default: 0.1)" in text
    assert "How often the model sees each image." in text


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.strip() == f"scalablevit {__version__}"


def test_what_runs_quickly_imports_nothing_heavy():
    code = (
        "import sys; from scalablevit.cli import main; main(['models'])\n"
        "heavy = {'pytorch_lightning', 'torchmetrics', 'matplotlib', 'timm', 'torchvision'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert rows["scalablevit_small"].split()[1:4] == ["32.00", "4.28", "83.1"]
    assert "arXiv:2203.10790" in rows["scalablevit_large"]
    for ours in ("scalablevit_nano", "scalablevit_tiny"):
        assert rows[ours].split()[3] == "-"
        assert "not published" in rows[ours]


def test_training_tells_how_it_goes(data, tmp_path, capsys):
    assert main(["train", str(data), "--out", str(tmp_path / "run"), *OPTIONS]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert "channels 1: all images are grey" in lines[: len(CHOSEN)]
    lines = lines[len(CHOSEN) :]
    assert len(lines) == 6
    assert lines[0].startswith("scalablevit_nano with 1.17 M")
    assert "48 images of 3 classes, at 8x8 pixels in grey" in lines[0]
    for line, start in ((lines[2], "reads "), (lines[4], "last epoch: reads ")):
        assert line.startswith(start)
        assert re.search(r"images/s, trains [\d,]+ images/s(: the network is|: reading is|, in turn)", line)
    for epoch, line in enumerate(lines[1:4:2], 1):
        assert line.startswith(f"epoch {epoch}/2  loss ")
        for part in ("val loss", "val top-1", "lr", "images/s", "left"):
            assert part in line
    top1 = json.loads((tmp_path / "run" / "evaluate.json").read_text())["top1"]
    assert lines[5].startswith(f"{tmp_path / 'run'}: val top-1 {top1:.1f} %")
    assert lines[5].endswith(f"Report: {tmp_path / 'run' / 'report' / 'index.html'}")


def test_evaluates(own_run, data, capsys):
    (own_run / "evaluate.json").unlink()
    assert main(["evaluate", str(own_run), str(data)]) == 0
    result = json.loads((own_run / "evaluate.json").read_text())
    *lines, report = capsys.readouterr().out.splitlines()
    assert report == f"Report: {own_run / 'report' / 'index.html'}"
    assert lines[-1].startswith(f"top-1 {result['top1']:.1f} %, loss {result['loss']:.4f}, calibration")
    assert [line.split()[0] for line in lines[:-1]] == ["class", "above", "below", "dark"]


def test_without_a_verb_there_is_help(capsys):
    assert main([]) == 2
    assert "Train a model on a folder of images." in capsys.readouterr().err


def test_images_that_were_trained_on_are_told(data, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", str(data / "train"), "--out", str(out), *OPTIONS]) == 0
    assert main(["evaluate", str(out), str(data / "train")]) == 0  # its own: those that were drawn
    captured = capsys.readouterr()
    assert "warning" not in captured.err
    assert "\nScored on the 9 images that the run drew for validation.\n" in captured.out
    shutil.copytree(data / "train", tmp_path / "copy")
    assert main(["evaluate", str(out), str(tmp_path / "copy")]) == 0
    captured = capsys.readouterr()
    assert "by their names, 39 of the 48 images are among those that the run was trained on" in captured.err
    assert "if they are the same images, the scores are too good" in captured.err
    assert f"Report: {out / 'evaluations' / 'copy' / 'report' / 'index.html'}" in captured.out
    assert "Scored on" not in captured.out


def test_predicts(own_run, data, capsys):
    images = [str(data / "val" / name / "000.png") for name in ("above", "dark")]
    assert main(["predict", str(own_run), *images, "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == images
    assert all(line.count(" %") == 2 for line in lines)


ODD_NAMES = [("new\nline.png", r"new\nline.png"), ("\x1b[2J.png", r"\x1b[2J.png"), ("\udcff.png", r"\udcff.png")]


@pytest.mark.parametrize(("name", "shown"), ODD_NAMES)
@pytest.mark.parametrize("verb", ["predict", "explain"])
def test_names_of_files_never_break_a_line(tmp_path, capsys, monkeypatch, verb, name, shown):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (28, 28)).save("image.png")
    Path("image.png").rename(name)
    Path("broken").mkdir()
    Path("broken", name).write_bytes(b"")
    assert main([verb, "fashion", name, f"broken/{name}", "--device", "cpu"]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0].startswith(f"{shown}: ")
    assert captured.err.startswith("scalablevit: error: ")
    assert captured.err.endswith(".png is empty (0 bytes): replace or remove it\n")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("coding", "name", "option"), [("utf-8", "\udcff.png", "--json"), ("ascii", "\xfc.png", "--top=5")]
)
def test_names_that_the_output_cannot_hold_are_written_out(tmp_path, coding, name, option):
    Image.new("L", (28, 28)).save(tmp_path / "image.png")
    (tmp_path / "image.png").rename(tmp_path / name)
    command = [sys.executable, "-m", "scalablevit", "predict", "fashion", name, "--device", "cpu", option]
    environment = {**os.environ, "PYTHONIOENCODING": f"{coding}:strict"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    line = done.stdout.decode(coding)
    assert json.loads(line)["path"] == name if option == "--json" else line.startswith(r"\xfc.png: ")


def test_images_that_a_folder_holds_and_nobody_looks_for_are_told(tmp_path, capsys):
    for name in ("a.png", "b.HEIC", "deep/c.avif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (28, 28)).save(tmp_path / name, "PNG")
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["predict", "fashion", str(tmp_path), "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    assert captured.err == (
        "scalablevit: warning: images left out, of kinds that are not looked for in folders (.avif, .heic): 2, for"
        f" example {tmp_path / 'b.HEIC'}; convert them to JPEG or PNG\n"
    )


def test_a_run_can_be_repeated_from_its_configuration(own_run, tmp_path, capsys):
    assert main(["train", "--config", str(own_run / "config.yaml"), "--out", str(tmp_path / "again")]) == 0
    first, again = (load_file(folder / "model.safetensors") for folder in (own_run, tmp_path / "again"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


def test_flags_go_before_the_configuration_file(tmp_path, capsys):
    (tmp_path / "options.yaml").write_text(yaml.safe_dump({"data": "there", "epochs": 3, "batch_size": 7}))
    arguments = ["--config", str(tmp_path / "options.yaml"), "--epochs", "5", "--out", "run", "--print_config"]
    with pytest.raises(SystemExit):
        main(["train", *arguments])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["data"], printed["epochs"], printed["batch_size"]) == ("there", 5, 7)
    assert printed["flip"] == TrainConfig().flip


def test_each_mistake_is_one_line(own_run, data, tmp_path, capsys):
    out = tmp_path / "run"
    assert "nowhere does not exist" in refusal(capsys, "train", tmp_path / "nowhere", "--out", out)
    assert "data is not given" in refusal(capsys, "train", "--out", out)
    assert "epochs is 0; it must be" in refusal(capsys, "train", data, "--out", out, "--epochs", "0")
    assert "epochs" in refusal(capsys, "train", data, "--out", out, "--epochs", "many")
    assert "--lr" in refusal(capsys, "train", data, "--out", out, "--lr", "1")
    assert "out" in refusal(capsys, "train", data)
    assert "holds an earlier run" in refusal(capsys, "train", data, "--out", own_run)
    assert "no.yaml" in refusal(capsys, "train", "--config", tmp_path / "no.yaml", "--out", out)
    assert "holds no config.json" in refusal(capsys, "evaluate", data, data)
    assert "device is 'abacus'" in refusal(capsys, "predict", own_run, "x.png", "--device", "abacus")
    assert "invalid choice: 'trian'" in refusal(capsys, "trian")
    assert "epochs is 'many'; it must be a whole number" in refusal(
        capsys, "train", data, "--out", out, "--epochs", "many"
    )
    assert "(did you mean nadam?)" in refusal(capsys, "train", data, "--out", out, "--optimizer=nadamv")
    assert "did you mean --learning-rate?" in refusal(capsys, "train", data, "--out", out, "--lr", "1")
    misspelt = refusal(capsys, "train", data, "--out", out, "--batch-sizes", "1")
    assert "--batch-sizes" in misspelt
    assert "(did you mean --batch-size?)" in misspelt
    assert "(did you mean train?)" in refusal(capsys, "trian")
    assert "out" in refusal(capsys, "train", data)
    assert "leave --dry-run" in refusal(capsys, "train", "--resume", "--dry-run", "--out", own_run)
    near = refusal(capsys, "train", str(data)[:-1] + "x", "--out", out)
    assert f"did you mean {data}?" in near
    assert "max_lost is 'much'; it must be a number" in refusal(
        capsys, "export", own_run, "--out", "a.onnx", "--max-lost", "much"
    )
    assert "timeout_s is 'nan'; it must be a number" in refusal(capsys, "serve", own_run, "--timeout-s", "nan")
    assert "out is .; its name must end in" in refusal(capsys, "explain", own_run, "x.png", "--out", "")
    assert "window_size is '8.5'; it must be whole numbers, or none" in refusal(
        capsys, "convert", own_run, "x", "--window-size", "8.5", "none"
    )
    assert "max_unreadable is -1.0" in refusal(capsys, "evaluate", own_run, data, "--max-unreadable=-1")
    assert not out.exists()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_mistake_found_by_a_worker_is_one_line_too(own_run, tmp_path, capsys):
    write_images(tmp_path / "some", 1, seed=0)
    (tmp_path / "some" / "dark" / "000.png").write_text("no image")
    message = refusal(capsys, "evaluate", own_run, tmp_path / "some", "--workers", "1")
    assert "1 of 3 images cannot be read" in message
    assert "000.png (is not an image" in message


def test_a_run_is_resumed_by_its_folder_alone_and_refuses_what_would_make_it_another(own_run, data, capsys):
    for arguments in (
        ["--resume", str(own_run)],
        ["--resume", "--out", str(own_run)],
        ["--resume", "--out=" + str(own_run)],
    ):
        assert main(["train", *arguments]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        assert f"{own_run}: val top-1" in captured.out
    message = refusal(capsys, "train", "--resume", own_run, "--epochs", "9", "--seed=0", "--workers", "1")
    assert "epochs is 9, but the run in" in message
    assert "seed is 0, but the run in" in message  # although 0 is what it usually is
    assert "workers is" not in message
    assert "but for accelerator, devices, nodes, strategy, workers, memory_mb" in message
    assert "--out other: leave --out out" in refusal(capsys, "train", "--resume", own_run, "--out", "other")
    assert "name the run folder" in refusal(capsys, "train", "--resume")
    assert "nowhere is not a run folder" in refusal(capsys, "train", "--resume", "nowhere")
    assert "non_finite is 'skp'; it must be one of stop, skip (did you mean skip?)" in refusal(
        capsys, "train", data, "--out", own_run, "--non-finite", "skp"
    )


@pytest.mark.parametrize(("error", "code"), [(StoppedBySignal("stopped by SIGTERM"), 75), (TrainingFault("x"), 3)])
def test_ends_that_are_nobodys_mistake_have_codes_of_their_own(own_run, capsys, monkeypatch, error, code):
    def end(*arguments, **options):
        raise error

    monkeypatch.setattr("scalablevit.classification.training.train", end)
    assert main(["train", "--resume", str(own_run)]) == code
    assert capsys.readouterr().err == f"scalablevit: {'error: ' if code == 3 else ''}{error}\n"


def interrupt(*arguments, **options):
    raise KeyboardInterrupt


@pytest.mark.parametrize(("place", "is_new"), [("prepare", False), ("_fit", True), ("_evaluate", True)])
def test_how_to_go_on_is_told_of_the_new_run_alone(own_run, data, capsys, monkeypatch, place, is_new):
    monkeypatch.setattr(f"scalablevit.classification.training.{place}", interrupt)
    assert main(["train", str(data), "--out", str(own_run), "--overwrite", *OPTIONS]) == 130
    hint = [f"To go on: scalablevit train --resume {own_run}"] if is_new else []
    assert capsys.readouterr().err.splitlines() == [*hint, "scalablevit: interrupted"]


def test_a_missing_extra_is_asked_for_by_name(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    message = refusal(capsys, "train", data, "--out", tmp_path / "run")
    assert "pytorch_lightning, torchmetrics, matplotlib are not installed: install scalablevit[train]" in message


def test_a_programming_error_is_not_hidden(monkeypatch, data):
    def fail(*arguments, **options):
        raise RuntimeError("a defect")

    monkeypatch.setattr("scalablevit.classification.evaluation.evaluate", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        main(["evaluate", "run", str(data)])


def test_a_signal_to_end_leaves_nothing_unfinished(tmp_path, monkeypatch):
    def run(arguments):
        with beside(tmp_path / "model.onnx") as unfinished:
            unfinished.write_bytes(b"half of it")
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setitem(VERBS, "models", replace(VERBS["models"], run=run))
    with pytest.raises(SystemExit) as ended:
        main(["models"])
    assert ended.value.code == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_single_number_in_a_configuration_file_is_told_of(tmp_path, capsys):
    (tmp_path / "options.yaml").write_text("size: 64\n")
    assert main(["train", "sample", "--config", str(tmp_path / "options.yaml"), "--out", str(tmp_path / "run")]) == 2
    assert "is no list in a configuration file: write for example size: [64]" in capsys.readouterr().err


def test_lines_of_json_stay_json_where_the_output_lacks_signs(monkeypatch):
    output = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", output)
    print_json('{"path": "ü 猫.png"}')
    output.flush()
    assert json.loads(output.buffer.getvalue().decode("latin-1")) == {"path": "ü 猫.png"}
