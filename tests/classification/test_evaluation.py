"""Evaluation, against predictions one by one."""

import json
import shutil
from dataclasses import asdict

import pytest
import torch

from scalablevit import scalablevit_nano
from scalablevit.classification.evaluation import choose_device, evaluate
from scalablevit.classification.prediction import predict
from scalablevit.weights import save_model


def test_is_what_predictions_one_by_one_say(own_run, data):
    paths = sorted((data / "val").glob("*/*.png"))
    predictions = [predict(own_run, path)[0] for path in paths]
    right = [prediction.label == path.parent.name for prediction, path in zip(predictions, paths, strict=True)]
    result = evaluate(own_run, data, batch_size=5)
    assert result.images == len(paths) == 18
    assert result.top1 == pytest.approx(100 * sum(right) / 18)
    for name in ("above", "below", "dark"):
        of_class = [hit for hit, path in zip(right, paths, strict=True) if path.parent.name == name]
        assert result.recall[name] == pytest.approx(100 * sum(of_class) / 6)


def test_writes_what_it_returns(own_run, data):
    (own_run / "evaluate.json").unlink()
    result = evaluate(own_run, data)
    written = json.loads((own_run / "evaluate.json").read_text())
    assert written == json.loads(json.dumps(asdict(result)))
    assert written["data"] == str(data)
    assert (written["top5"], written["images"]) == (100.0, 18)
    assert sum(map(sum, written["confusion"])) == 18
    assert "Training</h2>" in (own_run / "report" / "index.html").read_text()


def test_other_data_do_not_overwrite_the_scores_of_the_run(own_run, data):
    before = (own_run / "evaluate.json").read_text()
    result = evaluate(own_run, data / "train")
    assert (own_run / "evaluate.json").read_text() == before
    elsewhere = own_run / "evaluations" / "train"
    assert json.loads((elsewhere / "evaluate.json").read_text())["images"] == result.images == 48
    assert "Training</h2>" not in (elsewhere / "report" / "index.html").read_text()
    assert evaluate(own_run, data, split="train", report=False).top1 == result.top1


def test_scores_a_single_class_with_the_names_of_all(own_run, data, tmp_path):
    shutil.copytree(data / "val" / "dark", tmp_path / "some" / "dark")
    assert evaluate(own_run, tmp_path / "some").recall.keys() == {"dark"}


def test_mistakes_are_named(run, data, tmp_path):
    with pytest.raises(ValueError, match="nowhere does not exist"):
        evaluate(tmp_path / "nowhere", data)
    with pytest.raises(ValueError, match="nowhere does not exist"):
        evaluate(run.run, tmp_path / "nowhere")
    save_model(scalablevit_nano(3, channels=1), tmp_path / "model")
    with pytest.raises(ValueError, match="has no names of classes, which evaluation needs: save it with labels"):
        evaluate(tmp_path / "model", data)


def test_a_model_of_one_class_is_refused(data, tmp_path):
    save_model(scalablevit_nano(1, channels=1), tmp_path / "model", ["dark"])
    with pytest.raises(ValueError, match=r"has 1 class, 'dark', so that no answer can be wrong: .* at least 2"):
        evaluate(tmp_path / "model", data)


def test_a_device_is_chosen_or_refused():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device(None).type in ("cpu", "cuda", "mps", "xpu")
    with pytest.raises(ValueError, match="device is 'abacus', which cannot be used here"):
        choose_device("abacus")
