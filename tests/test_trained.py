"""Trained models that come with the package."""

from pathlib import Path

import pytest

from scalablevit import load_model, save_model, scalablevit_nano
from scalablevit.trained import TRAINED_MODELS, model_folder


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
