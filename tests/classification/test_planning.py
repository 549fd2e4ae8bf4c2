"""What is chosen from the images, and what a run is said to need."""

import numpy as np
import pytest
import torch
from PIL import Image

from scalablevit import scalablevit_nano
from scalablevit.benchmarking.cost import count_parameters
from scalablevit.classification.configuration import TrainConfig
from scalablevit.classification.images import LabelledImages
from scalablevit.classification.planning import Survey, count_steps, decide, estimate_memory_mb, survey
from scalablevit.classification.preparation import prepare, side_needed
from scalablevit.preprocessing import IMAGENET_MEAN, IMAGENET_STD


def images(count):
    return LabelledImages(paths=("x",) * count, labels=((0,),) * count, classes=("a", "b"))


def decided(count=6000, side=28, colour=False, mb=0.0, **options):
    seen = Survey(paths=(), shorter_side=side, in_colour=colour, decoded_mb=mb)
    config, choices = decide(TrainConfig(**options), seen, images(count))
    return config, {choice.name: choice for choice in choices}


def test_small_grey_images():
    config, choices = decided()
    assert (config.model, config.size, config.channels) == ("scalablevit_nano", (28, 28), 1)
    assert (config.epochs, config.batch_size, config.warmup_epochs) == (9, 64, 1.0)
    assert (config.random_crop, config.padding, config.workers) == ("pad", 1, 0)
    assert decided(memory_mb=0, mb=0.1)[0].workers > 0
    assert config.learning_rate == 5e-3
    assert str(choices["epochs"]) == "epochs 9: 6000 images to train on"
    assert str(choices["size"]) == "size 28x28: the images' shorter sides have a median of 28 pixels"


def test_photographs():
    config, choices = decided(300, side=480, colour=True)
    assert (config.model, config.size, config.channels) == ("scalablevit_tiny", (224, 224), 3)
    assert (config.epochs, config.batch_size, config.warmup_epochs) == (100, 18, 5.0)
    assert config.random_crop == "resize"
    assert config.workers > 0
    assert decided(side=150)[0].size == (128, 128)
    assert "costs much" in str(choices["size"])


def test_a_short_run_does_not_end_in_its_warmup():
    assert [decided(epochs=epochs)[0].warmup_epochs for epochs in (1, 2, 19, 60)] == [0.5, 1.0, 1.0, 3.0]


def test_what_is_given_is_kept():
    options = {"size": (30, 40), "epochs": 2, "batch_size": 7, "model": "scalablevit_small", "warmup_epochs": 0.5}
    config, choices = decided(**options)
    assert {name: getattr(config, name) for name in options} == options
    assert not choices.keys() & options.keys()


def test_from_weights_the_network_is_theirs_and_the_steps_are_smaller():
    config, choices = decided(weights="somewhere", optimizer="adamw")
    assert config.model is None
    assert config.learning_rate == pytest.approx(2e-4)
    assert config.epochs == 5
    assert "model" not in choices


def test_the_learning_rate_grows_with_the_square_root_of_the_images_in_a_step():
    config, choices = decided(batch_size=128, accumulate=2)
    assert config.learning_rate == pytest.approx(0.01)  # four times 64
    assert str(choices["learning_rate"]) == (
        "learning_rate 0.01: what suits muon at 64 images a step, times the square root of 256/64"
    )
    config, choices = decided(batch_size=16, optimizer="adamw", weights="somewhere")
    assert config.learning_rate == pytest.approx(1e-4)  # half of 1e-3, and a fifth of that
    assert "a fifth of it from trained weights" in str(choices["learning_rate"])
    assert decided(batch_size=16, learning_rate=0.3)[0].learning_rate == 0.3


def test_the_learning_rate_of_the_authors_grows_with_the_images_in_a_step():
    config, choices = decided(batch_size=128, accumulate=2, optimizer="adamw", learning_rate_rule="linear")
    assert config.learning_rate == pytest.approx(2.5e-4)
    assert str(choices["learning_rate"]) == "learning_rate 0.00025: 0.0005 for 512 images a step, times 256/512"
    with pytest.raises(ValueError, match="'linear' and optimizer 'muon': that rule is known for adamw alone; use"):
        TrainConfig(learning_rate_rule="linear")


def test_a_process_that_may_use_few_cores_has_few_workers(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {5}, raising=False)
    config, _ = decided(memory_mb=0, mb=0.1)
    assert config.workers == 1


def test_a_survey_looks_at_some_and_passes_over_the_unreadable(data, tmp_path):
    paths = sorted((data / "train").glob("*/*.png"))
    broken = tmp_path / "broken.png"
    broken.write_bytes(paths[0].read_bytes()[:50])
    seen = survey([broken, *paths[:4]])
    assert seen.paths == tuple(paths[:4])
    assert (seen.shorter_side, seen.in_colour) == (8, False)
    with pytest.raises(ValueError, match=r"none of the images .*broken\.png"):
        survey([broken])


def test_one_image_in_colour_makes_a_set_one_in_colour(tmp_path):
    for name, mode, size in (("a.png", "L", (90, 50)), ("b.png", "L", (40, 60)), ("c.png", "RGB", (70, 80))):
        Image.new(mode, size).save(tmp_path / name)
    paths = sorted(tmp_path.iterdir())
    assert (survey(paths[:2]).in_colour, survey(paths).in_colour) == (False, True)
    assert survey(paths).shorter_side == 50  # the median of 50, 40 and 70


def test_memory_grows_with_the_batch_and_holds_the_weights():
    model = scalablevit_nano(3, channels=1)
    small, large = (
        estimate_memory_mb(model, TrainConfig(size=(16, 16), batch_size=size, optimizer="adamw")) for size in (2, 4)
    )
    weights = 16 * count_parameters(model) / 1e6
    assert large - weights == pytest.approx(2 * (small - weights), rel=1e-6)
    assert small > weights


def test_pixels_are_normalised_and_cut_out_as_wanted(data, tmp_path):
    options = {"normalisation": "imagenet", "crop_fraction": 0.8, "random_crop": "none", "flip": 0.0, "workers": 0}
    with pytest.raises(ValueError, match=r"images are read in grey: give --channels 3, or --normalisation measured"):
        prepare(data, TrainConfig(**options))
    prepared = prepare(data, TrainConfig(**options, channels=3, size=10))
    assert (prepared.preprocessing.mean, prepared.preprocessing.std) == (IMAGENET_MEAN, IMAGENET_STD)
    training, validation = prepared.loaders
    image = Image.open(prepared.data.validation.paths[0]).convert("RGB")
    middle = image.resize((12, 18), Image.Resampling.BICUBIC).crop((1, 4, 11, 14))  # of 8x12 pixels
    assert (validation.dataset[0][0].permute(1, 2, 0).numpy() == np.asarray(middle)).all()
    # What training sees is drawn by other options.
    image = Image.open(prepared.data.training.paths[0]).convert("RGB")
    whole = image.resize((10, 15), Image.Resampling.BICUBIC).crop((0, 2, 10, 12))
    assert (training.dataset[0, 0][0].permute(1, 2, 0).numpy() == np.asarray(whole)).all()


def test_a_plan_says_what_will_be_trained(data):
    plan = prepare(data, TrainConfig(epochs=2, batch_size=16)).plan()
    assert plan.training == {"above": 16, "below": 16, "dark": 16}
    assert plan.validation == {"above": 6, "below": 6, "dark": 6}
    assert plan.steps == count_steps(48, plan.config) == 6
    assert plan.parameters == count_parameters(scalablevit_nano(3, channels=1))
    assert plan.memory_mb > 10
    assert torch.tensor(plan.macs) > 0


@pytest.mark.parametrize(
    ("crop", "area", "side"), [("resize", 0.75, 299), ("resize", 0.35, 438), ("resize", 0.08, 915), ("none", 0.35, 448)]
)
def test_a_part_that_is_cut_out_never_has_to_be_enlarged(crop, area, side):
    assert side_needed((224, 224), crop, area) == side
    # The smallest part of a square image of that side, at the ratio 3:4, still has as many pixels as the model takes.
    assert crop == "none" or side * (area * 3 / 4) ** 0.5 >= 224
