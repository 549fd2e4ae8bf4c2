"""What a run leaves to be chosen, chosen from the images, each with the reason; and what the run will need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean, median
from typing import Any

import torch

from scalablevit.benchmarking.cost import count_parameters, count_saved_bytes
from scalablevit.classification.configuration import TrainConfig
from scalablevit.classification.images import LabelledImages
from scalablevit.classification.learning_rates import default_learning_rate
from scalablevit.classification.machine_checks import available_cores
from scalablevit.images import ImageHeader, ImagePlace, read_header, read_image
from scalablevit.scalable_vit import ScalableViT

LARGEST_SIZE = 224  # what the published networks are trained at
SMALL_SIZE = 64  # up to it, nano, whose patches are 2 pixels wide, and no resizing
VIEWS = 54_000  # of images, that a small network needs from scratch: nine epochs of 6,000
SURVEYED = 256  # images that are looked at


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An option that was left out, what it became, and why."""

    name: str
    value: Any
    reason: str

    def __str__(self) -> str:
        value = "x".join(map(str, self.value)) if isinstance(self.value, tuple) else self.value
        return f"{self.name} {value}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What some of the images are like.

    Args:
        paths: The readable ones.
        shorter_side: Median, in pixels.
        in_colour: Whether one of them is.
        decoded_mb: What one takes in memory, on average.
    """

    paths: tuple[ImagePlace, ...]
    shorter_side: int
    in_colour: bool
    decoded_mb: float = 0.0


def survey(paths: Sequence[ImagePlace]) -> Survey:
    """Looks at images.

    Raises:
        ValueError: If none of them can be read.
    """
    found: list[tuple[ImagePlace, ImageHeader]] = []
    problem = ""
    for path in paths:
        try:
            header = read_header(path)
            read_image(path, 1)  # decoded whole, which a truncated file cannot be
            found.append((path, header))
        except (ValueError, OSError) as error:
            problem = str(error)
    if not found:
        raise ValueError(f"none of the images that were looked at can be read, for example: {problem}")
    return Survey(
        paths=tuple(path for path, _ in found),
        shorter_side=round(median(min(header.size) for _, header in found)),
        in_colour=not all(header.is_grey for _, header in found),
        decoded_mb=mean(header.size[0] * header.size[1] * (1 if header.is_grey else 4) for _, header in found) / 1e6,
    )


def decide(config: TrainConfig, seen: Survey, training: LabelledImages) -> tuple[TrainConfig, list[Choice]]:
    """Fills in what is left out of the options.

    Args:
        config: The options.
        seen: What the images are like.
        training: The images to train on.

    Returns:
        The options, nothing left out but `model` where there are weights; and the choices.
    """
    choices: list[Choice] = []
    images = len(training)

    def choose(name: str, value: Any, reason: str) -> Any:
        given = getattr(config, name)
        if given is not None:
            return given
        choices.append(Choice(name=name, value=value, reason=reason))
        return value

    size = choose("size", *_size(seen.shorter_side))
    is_small = min(size) <= SMALL_SIZE
    model = config.model
    if config.weights is None:
        kind = "small" if is_small else "larger"
        model = choose(
            "model",
            "scalablevit_nano" if is_small else "scalablevit_tiny",
            f"made for {kind} images, up to 10 M parameters",
        )
    channels = choose(
        "channels",
        3 if seen.in_colour else 1,
        "there are images in colour" if seen.in_colour else "all images are grey",
    )
    batch_size = choose("batch_size", min(64, max(8, images // 16)), f"{images} images to train on")
    views = VIEWS if config.weights is None else VIEWS // 5
    epochs = choose(
        "epochs",
        min(100, max(9 if config.weights is None else 5, round(views / images))),
        f"{images} images to train on{'' if config.weights is None else ', from trained weights'}",
    )
    rate = config.learning_rate
    if rate is None:
        images_per_step, is_tuned = batch_size * config.accumulate, config.weights is not None
        default, reason = default_learning_rate(
            config.optimizer, images_per_step, from_weights=is_tuned, rule=config.learning_rate_rule
        )
        rate = choose("learning_rate", default, reason)
    warmup = choose("warmup_epochs", min(max(1.0, epochs / 20), epochs / 2), f"a part of {epochs} epochs")
    crop = choose("random_crop", "pad" if is_small else "resize", f"images of {min(size)} pixels")
    padding = choose("padding", min(size) // 28, "a 28th of the size")
    in_memory = is_small and not training.stretches and seen.decoded_mb * images <= config.memory_mb
    workers = choose(
        "workers",
        0 if in_memory else min(available_cores(), 8),
        "small images, kept in memory" if in_memory else "images are read beside the training",
    )
    return (
        replace(
            config,
            size=size,
            model=model,
            channels=channels,
            batch_size=batch_size,
            epochs=epochs,
            learning_rate=rate,
            warmup_epochs=warmup,
            random_crop=crop,
            padding=padding,
            workers=workers,
        ),
        choices,
    )


def _size(shorter_side: int) -> tuple[tuple[int, int], str]:
    reason = f"the images' shorter sides have a median of {shorter_side} pixels"
    if shorter_side > LARGEST_SIZE:
        return (LARGEST_SIZE, LARGEST_SIZE), f"{reason}; more than {LARGEST_SIZE} costs much and gives little"
    if shorter_side > SMALL_SIZE:
        side = shorter_side // 32 * 32
        return (side, side), f"{reason}; a multiple of 32 uses the network's grid in full"
    return (shorter_side, shorter_side), reason


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will do and need.

    Args:
        training: Images of each class to train on.
        validation: Images of each class to validate with.
        config: The options, filled in.
        choices: What was filled in, and why.
        notes: What else there is to know, as lines.
        steps: Of the whole run.
        parameters: Of the network.
        macs: Multiply-accumulates per image.
        memory_mb: What a step needs, for weights, gradients, the optimiser and activations; an estimate.
    """

    training: dict[str, int]
    validation: dict[str, int]
    config: TrainConfig
    choices: tuple[Choice, ...]
    notes: tuple[str, ...]
    steps: int
    parameters: int
    macs: int
    memory_mb: float


def estimate_memory_mb(model: ScalableViT, config: TrainConfig) -> float:
    """What a training step needs, in megabytes: from what autograd keeps for two images, in float32."""
    assert config.size is not None
    assert config.batch_size is not None
    # Activations grow with the pixels, so that a smaller image says it too.
    shrink = max(1.0, max(config.size) / LARGEST_SIZE)
    height, width = (max(round(side / shrink), 1) for side in config.size)
    per_pixel = count_saved_bytes(model, torch.zeros(2, model.in_chans, height, width)) / (2 * height * width)
    activations = per_pixel * config.size[0] * config.size[1] * config.batch_size
    states = 4 if config.optimizer == "adamw" else 3  # weights, gradients, and one or two averages
    return (activations + states * 4 * count_parameters(model)) / 1e6


def count_steps(images: int, config: TrainConfig) -> int:
    """Steps of the whole run."""
    assert config.batch_size is not None
    assert config.epochs is not None
    batches = max(images // config.batch_size, 1)
    return config.epochs * -(-batches // config.accumulate)
