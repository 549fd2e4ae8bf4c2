"""Trained models that come with the package."""

from pathlib import Path

import pytest

from scalablevit import evaluate, load_model, save_model, scalablevit_nano
from scalablevit.cli import main
from scalablevit.sample import sample_images
from scalablevit.trained import TRAINED_MODELS, model_folder
from scalablevit.weights import read_config

TOP1 = 95.3  # of the embedded validation images, per cent


def test_a_name_means_a_trained_model_and_a_path_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = model_folder("fashion")
    assert shipped.is_absolute()
    assert shipped.name == "fashion"
    assert model_folder("./fashion") == Path("fashion")
    assert model_folder(Path("fashion")) == Path("fashion")
    assert model_folder("other") == Path("other")


def test_a_model_of_that_name_in_the_working_directory_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("fashion/evaluations").mkdir(parents=True)  # what an evaluation of the trained model leaves
    assert model_folder("fashion").is_absolute()
    own = scalablevit_nano(3)
    save_model(own, "fashion")
    assert model_folder("fashion") == Path("fashion")
    assert load_model("fashion").num_classes == 3


def test_an_unknown_model_is_told_the_names(tmp_path):
    with pytest.raises(ValueError, match=rf"does not exist.*trained model \({', '.join(TRAINED_MODELS)}\)"):
        load_model(tmp_path / "fashon")


def test_fashion_knows_the_embedded_validation_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the evaluation goes
    result = evaluate("fashion", "sample", device="cpu", report=False)
    assert result.images == 1000
    assert result.top1 == pytest.approx(TOP1, abs=0.2)  # two images, for other processors' rounding
    assert not (model_folder("fashion") / "evaluate.json").exists()


def test_fashion_names_images_right_after_the_installation(capsys):
    images = sample_images(20)
    assert main(["predict", "fashion", *map(str, images), "--top", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    right = sum(f": {path.parent.name} " in line for path, line in zip(images, lines, strict=True))
    assert right >= 18


def test_every_trained_model_has_a_card_and_a_licence():
    for name in TRAINED_MODELS:
        folder = model_folder(name)
        assert (folder / "README.md").read_text(encoding="utf-8").startswith(f"# {name}: ")
        assert read_config(folder)["pretrained_cfg"]["license"] == "mit"
