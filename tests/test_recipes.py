"""Every recipe is whole, can be read, and trains."""

import re
from dataclasses import fields

import pytest
import torch
import yaml
from timm.data import create_transform

from scalablevit.classification.configuration import MAY_CHANGE, TrainConfig
from scalablevit.classification.images import LabelledImages
from scalablevit.classification.planning import Survey, decide
from scalablevit.classification.preparation import prepare
from scalablevit.classification.run_folder import RunFolder
from scalablevit.classification.training import train
from scalablevit.cli import main
from scalablevit.images import read_image
from scalablevit.preprocessing import Preprocessing
from scalablevit.recipes import read_recipe, recipe_file, recipe_names, shorter_warmup
from tests.conftest import write_images

# What a recipe has no say in: the data, the weights, the machine, and chance.
OF_THE_DATA = {"val_fraction", "train_split", "val_split", "target_key", "weights", "heads", "window_size", "seed"}


def test_the_names_are_those_of_the_files():
    assert recipe_names() == ("finetune", "imagenet-base", "imagenet-large", "imagenet-small", "sample", "small-images")


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_names_each_option_that_is_learned_by_and_no_other(name):
    options = read_recipe(name)
    config = TrainConfig(**options)
    learned = {field.name for field in fields(TrainConfig)} - set(MAY_CHANGE) - OF_THE_DATA
    assert set(options) == learned
    assert config.learning_rate is not None or config.learning_rate_rule == "linear"
    head = recipe_file(name).read_text().split("\n\n")[0]
    assert re.findall(r"^# (command|data|hardware|time|score)\b", head, flags=re.MULTILINE) == [
        "command",
        "data",
        "hardware",
        "time",
        "score",
    ]
    assert f"--recipe {name}" in head


@pytest.mark.parametrize("name", ["imagenet-small", "imagenet-base", "imagenet-large"])
def test_the_learning_rate_of_the_authors_goes_with_the_batch(name):
    seen, images = (
        Survey(paths=(), shorter_side=400, in_colour=True),
        LabelledImages(paths=("x",) * 9, labels=((0,),) * 9, classes=("a",)),
    )

    def decided(**options):
        return decide(TrainConfig(**{**read_recipe(name), **options}), seen, images)[0]

    config = decided()
    assert config.learning_rate == pytest.approx(1e-3)
    assert decided(batch_size=128, accumulate=2).learning_rate == pytest.approx(2.5e-4)
    assert decided(batch_size=128, learning_rate=0.1).learning_rate == 0.1
    assert config.learning_rate * config.final_learning_rate == pytest.approx(1e-5)
    assert config.learning_rate * config.first_learning_rate == pytest.approx(1e-6)
    assert config.drop_path == (0.2 if name == "imagenet-small" else 0.5)


@pytest.mark.parametrize("name", ["imagenet-small", "imagenet-base", "imagenet-large"])
def test_images_are_seen_as_the_authors_have_them(name, tmp_path):
    """As timm's `create_transform` makes it of their options: resized to 256, the centre of 224 cut out."""
    write_images(tmp_path / "data", 4, seed=0, mode="RGB", side=300)
    prepared = prepare(tmp_path / "data", TrainConfig(**read_recipe(name)))
    assert prepared.preprocessing == Preprocessing(size=(224, 224), crop_fraction=0.875)
    image = read_image(prepared.data.training.paths[0], 3)
    seen = prepared.preprocessing.normalise(prepared.preprocessing.to_pixels(image)[None])[0]
    theirs = create_transform(224, interpolation="bicubic", crop_pct=0.875)(image)
    torch.testing.assert_close(seen, theirs, atol=1e-5, rtol=0)


def test_the_sample_has_what_would_be_chosen_for_it():
    recipe = read_recipe("sample")
    images = LabelledImages(paths=("x",) * 6000, labels=((0,),) * 6000, classes=("a",))
    config, _ = decide(TrainConfig(), Survey(paths=(), shorter_side=28, in_colour=False), images)
    assert TrainConfig(**{**recipe, "channels": 1, "workers": config.workers}) == config


def printed(capsys, *arguments):
    with pytest.raises(SystemExit):
        main(["train", *arguments, "--out", "run", "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


def test_flags_go_before_the_recipe_wherever_they_are_and_so_does_a_configuration_file(tmp_path, capsys):
    (tmp_path / "own.yaml").write_text("clip: 3.0\nepochs: 7\n")
    options = printed(
        capsys, "--epochs", "2", "--flip=0.5", "--config", str(tmp_path / "own.yaml"), "--recipe", "imagenet-base"
    )
    own, recipe = {"epochs": 2, "clip": 3.0}, read_recipe("imagenet-base")
    assert {name: options[name] for name in recipe} == {**recipe, **own}


def warmup_of(out):
    return yaml.safe_load((out / "config.yaml").read_text())["warmup_epochs"]


SHORT = ["--recipe", "finetune", "--epochs", "2", "--size", "8", "--batch-size", "24", "--workers", "0"]
REMARK = "warmup_epochs 0.2: the recipe's 3 of 30 epochs, in proportion to 2"


def test_a_recipes_warmup_is_shortened_with_the_run(data, tmp_path, capsys, caplog):
    command = ["train", str(data), *SHORT, "--learning-rate", "1e-3"]
    assert main([*command, "--out", str(tmp_path / "a")]) == 0
    assert REMARK in capsys.readouterr().out.splitlines()
    assert warmup_of(tmp_path / "a") == 0.2
    options = {**HERE, "epochs": 2, "size": 8}
    del options["warmup_epochs"], options["padding"]
    with caplog.at_level("WARNING", logger="scalablevit"):
        train(data, tmp_path / "b", recipe="finetune", **options)
    assert REMARK in caplog.messages
    assert warmup_of(tmp_path / "b") == 0.2


@pytest.mark.parametrize("where", ["flag", "file"])
def test_a_users_own_warmup_must_fit_into_the_run(data, tmp_path, capsys, where):
    (tmp_path / "own.yaml").write_text("warmup_epochs: 3.0\n")
    own = ["--warmup-epochs", "3"] if where == "flag" else ["--config", str(tmp_path / "own.yaml")]
    assert main(["train", str(data), "--out", str(tmp_path / "run"), *SHORT, *own]) == 2
    assert "warmup_epochs is 3.0; it must be" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "epochs", "warmup"), [("finetune", 6, None), ("finetune", 5, 0.5), ("imagenet-small", 1, 0.0167)]
)
def test_a_warmup_of_more_than_half_of_a_run_is_shortened(name, epochs, warmup):
    shorter = shorter_warmup(name, epochs)
    assert (shorter and shorter.epochs) == warmup


def test_an_unknown_recipe_is_met_with_the_nearest(data, tmp_path, capsys):
    assert main(["train", str(data), "--out", str(tmp_path / "run"), "--recipe", "imagenet-smal"]) == 2
    captured = capsys.readouterr().err
    assert "recipe is 'imagenet-smal'; it must be one of finetune, imagenet-base" in captured
    assert captured.endswith("(did you mean imagenet-small?)\n")
    with pytest.raises(ValueError, match="did you mean sample"):
        train(data, tmp_path / "run", recipe="sampel")


def test_a_resumed_run_has_its_own_options(own_run, capsys):
    assert main(["train", "--resume", str(own_run), "--recipe", "sample"]) == 2
    assert "--recipe out" in capsys.readouterr().err
    with pytest.raises(ValueError, match="leave recipe out"):
        train(out=own_run, resume=True, recipe="sample")


# On a CPU, at tiny sizes, and from scratch.
HERE = {"accelerator": "cpu", "batch_size": 24, "epochs": 1, "warmup_epochs": 0, "padding": 1, "workers": 0}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) for name in recipe_names() if name != "sample"] + ["sample"]
)
def test_trains_two_steps(name, data, tmp_path):
    options = {**HERE, "size": 12}
    if name.startswith("imagenet"):
        write_images(tmp_path / "colour" / "train", 16, seed=0, mode="RGB")
        write_images(tmp_path / "colour" / "val", 2, seed=1, mode="RGB")
        data = tmp_path / "colour"
    result = train(data, tmp_path / "run", recipe=name, **options)
    config = RunFolder(result.run).read_config()
    assert {key: value for key, value in config.items() if key in read_recipe(name) and key not in options} == {
        key: config[key] if value is None else value for key, value in read_recipe(name).items() if key not in options
    }
    assert result.epochs == 1
