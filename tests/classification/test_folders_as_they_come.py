"""Training and evaluation on folders that are not as they should be, and on images with several labels."""

import json

import numpy as np
import pytest
from PIL import Image

from scalablevit.classification.configuration import TrainConfig
from scalablevit.classification.evaluation import evaluate
from scalablevit.classification.prediction import FailedPrediction, predict, predict_each
from scalablevit.classification.preparation import prepare
from scalablevit.classification.scores import MultiLabelResult
from scalablevit.classification.training import train
from scalablevit.weights import read_config
from tests.conftest import TINY, make, write_images

SHORT = {**TINY, "epochs": 1}


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / "data" / "train", 16, seed=0)
    write_images(tmp_path / "data" / "val", 6, seed=1)
    return tmp_path / "data"


@pytest.mark.parametrize("memory_mb", [0, 100])
def test_a_bad_file_is_skipped_counted_and_listed(folder, tmp_path, memory_mb):
    bad = folder / "train" / "dark" / "bad.jpg"
    bad.write_bytes(b"")
    result = train(folder, tmp_path / "run", **SHORT, memory_mb=memory_mb, max_unreadable=0.02)
    skipped = json.loads((result.run / "skipped.json").read_text())
    assert list(skipped) == [str(bad)]
    assert "bad.jpg" in (result.run / "report" / "index.html").read_text()


@pytest.mark.parametrize("memory_mb", [0, 100])
def test_too_many_bad_files_are_an_error(folder, tmp_path, memory_mb):
    (folder / "train" / "dark" / "bad.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 of 67 images cannot be read, more than 1 %, for example .*dark/bad\.jpg"):
        train(folder, tmp_path / "run", **SHORT, memory_mb=memory_mb)


def test_a_bad_file_in_validation_counts_for_nothing(folder, tmp_path):
    bad = folder / "val" / "dark" / "bad.jpg"
    bad.write_text("no image")
    result = train(folder, tmp_path / "run", **SHORT, max_unreadable=0.1)
    assert result.scores.images == 18
    assert list(result.scores.skipped) == [str(bad)]
    assert evaluate(result.run, folder, max_unreadable=0.1).top1 == result.scores.top1


def test_a_class_that_is_missing_from_val(folder, tmp_path):
    for path in (folder / "val" / "dark").iterdir():
        path.unlink()
    result = train(folder, tmp_path / "run", **SHORT)
    assert set(result.scores.recall) == {"above", "below"}
    assert read_config(result.run)["label_names"] == ["above", "below", "dark"]


def test_non_images_beside_them_and_names_of_all_kinds(folder, tmp_path):
    (folder / "train" / "dark").rename(folder / "train" / "dunkel & <leer> ü")
    (folder / "val" / "dark").rename(folder / "val" / "dunkel & <leer> ü")
    (folder / "train" / "above" / "Thumbs.db").write_bytes(b"x")
    (folder / "train" / "above" / ".DS_Store").write_bytes(b"x")
    (folder / "README.txt").write_text("about this data set")
    result = train(folder, tmp_path / "run", **SHORT)
    assert "dunkel & <leer> ü" in result.scores.recall
    assert predict(result.run, folder / "val" / "dunkel & <leer> ü", top=3)[0].path.name == "000.png"


def test_images_of_kinds_that_are_not_read_are_told(folder):
    assert not any("left out" in note for note in prepare(folder, TrainConfig()).notes)
    for name in ("dark/1.HEIC", "dark/2.heic", "above/deep/3.avif", "above/.4.heic", "above/notes.txt"):
        make(folder / "train", name)
    note = next(note for note in prepare(folder, TrainConfig()).notes if "left out" in note)
    assert note == (
        "images left out, of kinds that are not read here (.avif, .heic): 3, for example"
        f" {folder}/train/above/deep/3.avif; convert them to JPEG or PNG"
    )


def test_predictions_go_on_after_a_bad_file(run, folder):
    (folder / "val" / "dark" / "0bad.png").write_bytes(b"")
    found = list(
        predict_each(run.run, [folder / "val" / "dark", folder / "gone.png", str(folder / "val" / "*" / "001*")])
    )
    failed = [each.path.name for each in found if isinstance(each, FailedPrediction)]
    assert failed == ["0bad.png", "gone.png"]
    assert len(found) == 7 + 1 + 3
    with pytest.raises(ValueError, match=r"0bad\.png"):
        predict(run.run, folder / "val" / "dark")
    with pytest.raises(ValueError, match="holds no images: give image files"):
        predict(run.run, str(folder / "*.nothing"))


def test_several_labels_per_image(tmp_path):
    random = np.random.default_rng(0)
    lines = ["path,labels,split"]
    for index in range(96):
        above, below = random.random(2) < 0.5
        pixels = random.integers(0, 60, (8, 8), dtype=np.uint8)
        pixels[:4] += np.uint8(150 * above)
        pixels[4:] += np.uint8(150 * below)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        labels = ";".join(name for name, there in (("above", above), ("below", below)) if there)
        lines.append(f"{index}.png,{labels},{'val' if index % 4 == 0 else 'train'}")
    (tmp_path / "data.csv").write_text("\n".join(lines))
    result = train(tmp_path / "data.csv", tmp_path / "run", **{**TINY, "epochs": 8, "padding": 0, "flip": 0.0})
    assert isinstance(result.scores, MultiLabelResult)
    assert result.scores.mean_average_precision > 90  # by chance 50
    assert json.loads((result.run / "evaluate.json").read_text())["mean_average_precision"] > 90
    assert read_config(result.run)["problem_type"] == "multi_label_classification"
    again = evaluate(result.run, tmp_path / "data.csv")
    assert again.mean_average_precision == pytest.approx(result.scores.mean_average_precision)
    sums = [sum(each.probabilities) for each in predict(result.run, [tmp_path / f"{index}.png" for index in range(20)])]
    assert max(sums) > 1.5  # both labels
    assert min(sums) < 0.5  # none
    with pytest.raises(ValueError, match=r"any number of labels to an image, which .* cannot say: give a CSV file"):
        evaluate(result.run, tmp_path)
