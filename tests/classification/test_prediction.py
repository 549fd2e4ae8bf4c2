"""Predictions, against the model called by hand."""

import pytest
import torch
from PIL import Image

from scalablevit import scalablevit_nano
from scalablevit.classification.prediction import predict
from scalablevit.preprocessing import Preprocessing
from scalablevit.weights import load_model, read_config, save_model


@pytest.fixture
def images(data):
    return sorted((data / "val").glob("*/*.png"))[::5]


def test_are_the_models(run, images):
    preprocessing = Preprocessing.from_pretrained_cfg(read_config(run.run)["pretrained_cfg"])
    model = load_model(run.run)
    for prediction, path in zip(predict(run.run, images, top=2), images, strict=True):
        with torch.no_grad():
            probabilities = model(preprocessing.normalise(preprocessing.load(path)[None]))[0].softmax(0)
        order = probabilities.argsort(descending=True)[:2]
        assert prediction.path == path
        assert prediction.labels == tuple(["above", "below", "dark"][index] for index in order)
        assert prediction.probabilities == pytest.approx(probabilities[order].tolist(), rel=1e-4)
        assert (prediction.label, prediction.probability) == (prediction.labels[0], prediction.probabilities[0])


def test_batches_do_not_matter(run, images):
    whole, parts = predict(run.run, images), predict(run.run, images, batch_size=3)
    assert [each.labels for each in whole] == [each.labels for each in parts]
    for one, other in zip(whole, parts, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, rel=1e-4)


def test_there_are_no_more_classes_than_there_are(run, images):
    prediction = predict(run.run, images[0], top=10)[0]
    assert set(prediction.labels) == {"above", "below", "dark"}
    assert sum(prediction.probabilities) == pytest.approx(1)


def test_images_of_any_size_and_colour_are_taken(run, tmp_path):
    Image.new("RGB", (50, 31), "red").save(tmp_path / "red.jpg")
    assert len(predict(run.run, [tmp_path / "red.jpg"])) == 1


def test_classes_without_names_are_numbers(tmp_path, images):
    save_model(scalablevit_nano(4), tmp_path, pretrained_cfg={"input_size": [3, 8, 8]})
    assert set(predict(tmp_path, images[:1])[0].labels) == {"0", "1", "2", "3"}


def test_mistakes_are_named(run, images, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.png does not exist"):
        predict(run.run, [tmp_path / "missing.png"])
    with pytest.raises(ValueError, match="top is 0"):
        predict(run.run, images, top=0)
    with pytest.raises(ValueError, match="does not exist: give the folder"):
        predict(tmp_path / "nowhere", images)
