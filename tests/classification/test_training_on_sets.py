"""Training and evaluation on sets by name: what holds for files holds for them."""

import json
import shutil
import signal

import pytest
import pytorch_lightning as pl
import safetensors.torch

from scalablevit.classification import stretches
from scalablevit.classification.checking import check
from scalablevit.classification.evaluation import evaluate
from scalablevit.classification.faults import TrainingFault
from scalablevit.classification.readers import streams
from scalablevit.classification.run_folder import RunFolder
from scalablevit.classification.sources import Parts, find_evaluation_data, find_training_data
from scalablevit.classification.training import train
from tests.classification.readers import sets

OPTIONS = {"epochs": 2, "batch_size": 8, "seed": 3, "accelerator": "cpu", "size": 8, "val_split": "test"}


class Interrupt(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 1):
            signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def interruptible():
    """Ctrl-C as it is in a terminal; a job in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def idx(tmp_path_factory):
    return sets.write_idx(tmp_path_factory.mktemp("idx") / "digits")


@pytest.fixture(scope="module")
def run(idx, tmp_path_factory):
    """A run on idx files; not to be changed."""
    return train(idx, tmp_path_factory.mktemp("runs") / "run", **OPTIONS)


def weights(run):
    tensors = safetensors.torch.load_file(run.run / "model.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def test_the_same_images_in_shards_give_the_same_weights(run, tmp_path):
    for split in ("train", "test"):
        sets.write_shards(tmp_path / "set", split)
    assert weights(train(f"wds/{tmp_path / 'set'}", tmp_path / "run", **OPTIONS)) == weights(run)


@pytest.mark.slow
def test_the_same_images_in_a_table_give_the_same_weights(run, tmp_path):
    datasets = pytest.importorskip("datasets")
    parts = {split: sets.table(split, names=["0", "1", "2"]) for split in ("train", "test")}
    datasets.disable_progress_bars()
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "set"))
    assert weights(train(f"hfds/{tmp_path / 'set'}", tmp_path / "run", **OPTIONS)) == weights(run)


def test_a_run_that_is_interrupted_within_an_epoch_comes_to_the_same(run, idx, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(idx, tmp_path / "run", callbacks=[Interrupt()], **OPTIONS)
    assert weights(train(out=tmp_path / "run", resume=True)) == weights(run)


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """The same images in Parquet files, in groups of 4 rows."""
    pytest.importorskip("datasets").disable_progress_bars()
    folder = tmp_path_factory.mktemp("parquet") / "digits"
    (folder / "data").mkdir(parents=True)
    for split in ("train", "test"):
        part = sets.table(split, names=["0", "1", "2"])
        part.to_parquet(str(folder / "data" / f"{split}.parquet"), batch_size=4)
    return folder


# Of 30 images, those of 3 groups are mixed.
@pytest.fixture
def few_at_once(monkeypatch):
    monkeypatch.setattr(stretches, "MIXED", 12)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:This DataLoader will create:UserWarning")
def test_a_stream_goes_on_within_an_epoch_and_does_not_ask_who_reads_it(few_at_once, run, idx, parquet, tmp_path):
    data = f"hfids/{parquet}:{tmp_path / 'kept'}"
    whole = train(data, tmp_path / "whole", **OPTIONS)
    assert weights(train(data, tmp_path / "workers", workers=2, **OPTIONS)) == weights(whole)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "run", callbacks=[Interrupt()], **OPTIONS)
    assert weights(train(out=tmp_path / "run", resume=True)) == weights(whole)
    found, expected = (evaluate(run.run, of, split="test", report=False) for of in (data, idx))
    assert (found.top1, found.loss) == (expected.top1, expected.loss)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_that_breaks_off_ends_the_run_which_goes_on_later(
    few_at_once, parquet, tmp_path, monkeypatch, workers
):
    data = f"hfids/{parquet}:{tmp_path / 'kept'}"
    whole = weights(train(data, tmp_path / "whole", **OPTIONS))
    monkeypatch.setattr(streams, "WAITS", ())
    read, broken = streams.RowGroup.read, tmp_path / "broken"  # a file, which processes that read see, too

    def breaking(group, columns):
        if broken.exists() and columns == ["image"] and "train" in group.file:
            raise ConnectionError("404\n\nnobody answers")
        return read(group, columns)

    class Cut(pl.Callback):
        def on_validation_start(self, trainer, pl_module):
            broken.touch()

    monkeypatch.setattr(streams.RowGroup, "read", breaking)
    shutil.rmtree(tmp_path / "kept")
    monkeypatch.setattr(streams, "stretches_at_once", lambda lengths: -3)  # two are kept
    with pytest.raises(TrainingFault, match=r"404 nobody answers\).*to go on: scalablevit train --resume"):
        train(data, tmp_path / "run", callbacks=[Cut()], workers=workers, **OPTIONS)
    broken.unlink()
    assert weights(train(out=tmp_path / "run", resume=True)) == whole


def test_images_of_a_stream_are_not_drawn_from_anywhere(parquet, tmp_path):
    with pytest.raises(ValueError, match=r"balance is 'sampling'.*streamed: give --balance weights"):
        train(f"hfids/{parquet}", tmp_path / "run", balance="sampling", **OPTIONS)


def test_the_report_shows_the_images_and_scores_are_repeated(run, idx):
    page = (run.run / "report" / "index.html").read_text(encoding="utf-8")
    assert 'title="' + f"{idx}/test/" in page
    assert page.count("data:image/png;base64") > 12
    again = evaluate(run.run, idx, report=False)
    assert (again.top1, again.loss) == (run.scores.top1, pytest.approx(run.scores.loss, rel=1e-5))
    assert again.images == 12
    assert evaluate(run.run, idx, split="train", report=False).images == 30


@pytest.mark.slow
def test_validation_images_are_drawn_where_there_are_none_and_drawn_again(idx, tmp_path):
    options = {name: value for name, value in OPTIONS.items() if name != "val_split"}
    result = train(idx, tmp_path / "run", **{**options, "epochs": 1})
    folder = RunFolder(result.run)
    assert not folder.split_file.exists()
    assert json.loads(folder.images_file.read_text())["validation"] == 6
    again = evaluate(result.run, idx, report=False)
    assert (again.images, again.top1) == (6, result.scores.top1)
    assert evaluate(result.run, idx, split="test").images == 12
    assert (result.run / "evaluations" / "digits-test" / "evaluate.json").is_file()
    folder.last_checkpoint.unlink()
    assert train(out=result.run, resume=True).scores.top1 == result.scores.top1


def test_parts_of_a_set(idx):
    def find(**parts):
        return find_training_data(idx, seed=0, val_fraction=0.2, parts=Parts(**parts))

    assert (find().drawn, find().unused, len(find().training)) == (True, ("test",), 24)
    told = find(val_split="test")
    assert (told.drawn, told.unused, len(told.training), len(told.validation)) == (False, (), 30, 12)
    assert len(find(train_split="test", val_split="train").training) == 12
    with pytest.raises(ValueError, match=r"'train' of .* is to be trained on and validated with"):
        find(val_split="train")
    with pytest.raises(ValueError, match=r"has no split 'tset' \(did you mean test\?\); it has train, test"):
        find(val_split="tset")


def test_the_parts_of_folders_are_not_named(data):
    with pytest.raises(ValueError, match="train_split, val_split and target_key are for sets by name"):
        find_training_data(data, seed=0, val_fraction=0.2, parts=Parts(val_split="test"))


def test_classes_are_those_of_the_model_by_name(idx):
    images = find_evaluation_data(idx, ["2", "1", "other", "0"])
    assert images.targets().tolist() == [(3, 1, 0)[label] for label in sets.labels("test")]
    with pytest.raises(ValueError, match="holds the class '2', which the model does not have; it has 0, 1"):
        find_evaluation_data(idx, ["0", "1"])
    with pytest.raises(ValueError, match="the model gives any number of labels"):
        find_evaluation_data(idx, ["0", "1", "2"], multi_label=True)


def test_check_reads_every_image_of_a_set(idx):
    result = check(idx, val_split="test")
    assert result.counts == {"train": {"0": 10, "1": 10, "2": 10}, "val": {"0": 4, "1": 4, "2": 4}}
    assert (result.images, result.grey, result.smallest, result.unreadable) == (42, 42, (28, 28), {})


def test_images_of_a_set_that_cannot_be_read_are_skipped_and_listed(tmp_path):
    for split in ("train", "test"):
        sets.write_shards(tmp_path / "set", split, damaged=4 if split == "train" else None)
    data = f"wds/{tmp_path / 'set'}"
    result = train(data, tmp_path / "run", **{**OPTIONS, "epochs": 1}, max_unreadable=0.05)
    (skipped,) = RunFolder(result.run).read_skipped()
    assert skipped.endswith("train-000000.tar/train/00004.png")
    assert list(check(data, val_split="test").unreadable) == [skipped]
    with pytest.raises(ValueError, match="1 of 42 images cannot be read"):
        train(data, tmp_path / "other", **OPTIONS)
