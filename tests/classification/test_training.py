"""Training as a whole: what it leaves behind, that it can be repeated, and that it learns."""

import json
import logging

import numpy as np
import pytest
import pytorch_lightning as pl
import safetensors.torch
import torch
import yaml
from PIL import Image

from scalablevit.classification.evaluation import evaluate
from scalablevit.classification.faults import TrainingFault
from scalablevit.classification.run_folder import RunFolder
from scalablevit.classification.training import train
from scalablevit.weights import load_model, read_config
from tests.conftest import TINY, write_images

# Python warns of forks in a process with threads, which is what a loader's workers are, and PyTorch of more of them
# than there are cores.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]


def weights(result):
    return safetensors.torch.load_file(result.run / "model.safetensors")


def same(first, second):
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_learns(data, tmp_path):
    result = train(data, tmp_path / "run", **{**TINY, "epochs": 6})
    assert result.scores.top1 > 80  # by chance 33
    assert result.epochs == 6


def test_leaves_all_that_is_promised(run, data):
    folder = RunFolder(run.run)
    names = {"config.yaml", "model.safetensors", "config.json", "checkpoints", "metrics.csv", "evaluate.json"}
    assert {path.name for path in run.run.iterdir()} == names | {
        "versions.json",
        "images.json",
        "input_rate.json",
        "report",
    }
    assert {path.name for path in folder.checkpoints.iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    with Image.open(folder.report / "curves.png") as image:
        assert image.format == "PNG"
    assert "<html" in (folder.report / "index.html").read_text()
    config = read_config(run.run)
    assert config["label_names"] == ["above", "below", "dark"]
    assert config["pretrained_cfg"]["input_size"] == [1, 8, 8]  # the images are 12x8, in grey
    assert json.loads(folder.versions_file.read_text())["seed"] == 3


def test_scores_are_of_the_best_epoch(run):
    rows = RunFolder(run.run).read_metrics()
    assert [row.epoch for row in rows] == [1, 2]
    evaluation = json.loads((run.run / "evaluate.json").read_text())
    assert evaluation["top1"] == pytest.approx(max(row.val_score for row in rows), rel=1e-5)
    assert evaluation["top1"] == run.scores.top1
    assert evaluation["images"] == 18
    best = rows[run.best_epoch - 1]
    assert best.val_score == pytest.approx(run.scores.top1, rel=1e-5)
    assert best.val_loss == pytest.approx(run.scores.loss, rel=1e-4)


def test_the_best_epoch_is_saved_and_not_the_last(data, tmp_path):
    class Spoiling(pl.Callback):
        """Forgets all that was learned after the fourth epoch."""

        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 3:
                for parameter in pl_module.parameters():
                    torch.nn.init.zeros_(parameter)

    result = train(data, tmp_path / "run", **{**TINY, "epochs": 5}, callbacks=[Spoiling()])
    rows = RunFolder(result.run).read_metrics()
    assert rows[4].val_score < rows[result.best_epoch - 1].val_score
    assert evaluate(result.run, data).top1 == pytest.approx(rows[result.best_epoch - 1].val_score, rel=1e-5)


def test_the_last_epoch_is_saved_where_that_is_wanted(data, tmp_path):
    # Nothing that follows the first epoch is better, as nothing is learned.
    result = train(data, tmp_path / "run", **{**TINY, "learning_rate": 1e-12, "erasing": 0.5}, keep="last")
    folder = RunFolder(result.run)
    assert (result.best_epoch, result.epochs, result.ended_early) == (2, 2, False)
    assert not folder.best_checkpoint.exists()
    last = torch.load(folder.last_checkpoint, weights_only=True)["state_dict"]
    assert same(weights(result), {name.removeprefix("model."): tensor for name, tensor in last.items()})
    assert "these images chose nothing" in (folder.report / "index.html").read_text()


def test_a_frozen_network_learns_in_its_head_alone(run, data, tmp_path):
    options = {**TINY, "epochs": 1, "weights": str(run.run), "freeze_backbone": True}
    result = train(data, tmp_path / "run", **options, drop_path=0.5)
    # Stochastic depth belongs to training, and what is frozen does not train.
    assert same(weights(result), weights(train(data, tmp_path / "other", **options)))
    first, second = weights(run), weights(result)
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    assert changed
    assert all(name.startswith("head.") for name in changed)


def test_measures_are_plausible(run):
    for row in RunFolder(run.run).read_metrics():
        assert row.learning_rate > 0
        assert 0 < row.seconds < 60
        assert row.images_per_second > 48 / row.seconds  # which includes validation


def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before(run, data, tmp_path):
    torch.manual_seed(1234)
    state = torch.get_rng_state()
    assert same(weights(run), weights(train(data, tmp_path / "again", **TINY)))
    assert torch.equal(torch.get_rng_state(), state)
    assert not same(weights(run), weights(train(data, tmp_path / "other", **{**TINY, "seed": 4})))


def test_workers_do_not_change_the_weights(run, data, tmp_path):
    assert same(weights(run), weights(train(data, tmp_path / "run", **TINY, workers=2)))


def test_everything_random_depends_on_the_position(data, tmp_path):
    class Drawing(pl.Callback):
        """Draws random numbers of its own before each step."""

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            torch.rand(3)
            np.random.random(3)  # the global generator

    options = {**TINY, "drop_path": 0.3, "mixup": 0.5, "cutmix": 0.5, "erasing": 0.5, "random_crop": "resize"}
    first = train(data, tmp_path / "first", **options)
    assert same(weights(first), weights(train(data, tmp_path / "second", callbacks=[Drawing()], **options)))


def test_the_configuration_says_how_to_run_it_again(run, data, tmp_path):
    config = yaml.safe_load((run.run / "config.yaml").read_text())
    assert config["data"] == str(data)
    assert (config["size"], config["channels"]) == ([8, 8], 1)
    assert same(weights(run), weights(train(out=tmp_path / "again", **config)))


def test_gradients_are_cut(data, tmp_path):
    options = {**TINY, "epochs": 1, "optimizer": "adamw"}
    # Below AdamW's epsilon of 1e-8 the length of a gradient matters.
    cut, whole = (train(data, tmp_path / str(clip), **options, clip=clip) for clip in (1e-8, 0.0))
    assert not same(weights(cut), weights(whole))


def test_the_last_step_of_an_epoch_weighs_its_batches_as_the_others_do(data, tmp_path):
    """Of three batches, all that there are: as if three were asked for, and not eight, five of which are missing."""
    options = {**TINY, "epochs": 1, "optimizer": "sgd", "learning_rate": 0.1, "clip": 0.0}
    three, eight = (train(data, tmp_path / str(count), **options, accumulate=count) for count in (3, 8))
    for name, tensor in weights(three).items():
        torch.testing.assert_close(weights(eight)[name], tensor, rtol=1e-4, atol=1e-6)


def test_images_in_colour_make_a_model_for_colour(tmp_path):
    write_images(tmp_path / "data" / "train", 3, seed=0, mode="RGB")
    write_images(tmp_path / "data" / "val", 2, seed=1, mode="RGB")
    result = train(tmp_path / "data", tmp_path / "run", **{**TINY, "epochs": 1})
    assert load_model(result.run).in_chans == 3
    assert result.epochs == 1


def test_the_average_of_the_weights_is_what_is_saved(data, tmp_path):
    result = train(data, tmp_path / "run", **TINY, ema=0.5)
    checkpoint = torch.load(result.run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    saved = weights(result)
    assert same(saved, {name: checkpoint[f"average.module.{name}"] for name in saved})
    assert not same(saved, {name: checkpoint[f"model.{name}"] for name in saved})
    assert evaluate(result.run, data).top1 == result.scores.top1


def test_channels_last_is_a_layout_in_memory_and_nothing_else(run, data, tmp_path):
    layouts = []

    class Looking(pl.Callback):
        """Notes the layout of a convolution's weights."""

        def on_fit_start(self, trainer, pl_module):
            weight = pl_module.model.stages[1].patch_embedding.conv.weight
            layouts.append(weight.is_contiguous(memory_format=torch.channels_last))

    result = train(data, tmp_path / "run", **TINY, channels_last=True, callbacks=[Looking()])
    assert layouts == [True]
    first, second = weights(run), weights(result)
    assert all(tensor.is_contiguous() for tensor in second.values())
    assert all(torch.allclose(tensor, second[name], atol=1e-3) for name, tensor in first.items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_compiled_network_trains_goes_on_and_has_the_same_names(data, tmp_path):
    class Failing(pl.Callback):
        """Ends a run before its last step."""

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 1:
                raise RuntimeError("a defect")

    options = {**TINY, "epochs": 1, "batch_size": 24, "ema": 0.5, "checkpoint_every_steps": 1}
    plain = train(data, tmp_path / "plain", **options)
    with pytest.raises(RuntimeError, match="a defect"):
        train(data, tmp_path / "run", **options, compile=True, callbacks=[Failing()])
    result = train(out=tmp_path / "run", resume=True)
    states = [torch.load(RunFolder(each.run).last_checkpoint, weights_only=True) for each in (plain, result)]
    assert states[0]["state_dict"].keys() == states[1]["state_dict"].keys()
    assert states[0]["global_step"] == states[1]["global_step"] == 2
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(weights(result)[name], tensor, atol=1e-2, rtol=0)


def test_mistakes_leave_nothing_behind(data, tmp_path):
    write_images(tmp_path / "data" / "train", 2, seed=0)
    write_images(tmp_path / "data" / "val", 2, seed=0)
    (tmp_path / "data" / "val" / "dark" / "000.png").write_text("no image")
    with pytest.raises(ValueError, match=r"dark/000\.png"):
        train(tmp_path / "data", tmp_path / "run", **TINY)
    with pytest.raises(ValueError, match="epochs is 0"):
        train(data, tmp_path / "run", epochs=0)
    with pytest.raises(TypeError, match="epochz"):
        train(data, tmp_path / "run", epochz=1)
    assert not (tmp_path / "run").exists()


def test_a_mistake_in_the_data_does_not_cost_an_earlier_run(data, tmp_path):
    first = train(data, tmp_path / "run", **{**TINY, "epochs": 1})
    before = weights(first)
    with pytest.raises(ValueError, match="does not exist"):
        train(tmp_path / "nowhere", tmp_path / "run", **TINY, overwrite=True)
    assert same(before, weights(first))


def test_weights_that_grow_without_bound_end_the_run(data, tmp_path):
    with pytest.raises(TrainingFault, match=r"train again with a lower --learning-rate or --precision 32-true"):
        train(data, tmp_path / "run", **{**TINY, "learning_rate": 1e30, "clip": 0.0, "warmup_epochs": 0})


def test_an_accelerator_that_is_not_there_is_named(data, tmp_path):
    for accelerator in ("abacus", "tpu"):
        with pytest.raises(ValueError, match=accelerator):
            train(data, tmp_path / accelerator, **{**TINY, "accelerator": accelerator})


def test_lightning_is_quiet_and_as_loud_as_before_afterwards(data, tmp_path, caplog, capfd):
    lightning = logging.getLogger("pytorch_lightning")
    level = lightning.level
    train(data, tmp_path / "run", **{**TINY, "epochs": 1})
    assert lightning.level == level
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""
    assert not [record for record in caplog.records if record.name.startswith(("pytorch_lightning", "lightning"))]
