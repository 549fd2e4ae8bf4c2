"""All that is settled before the first step of a run: the images, the options, the network, the batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, SequentialSampler

from scalablevit.benchmarking.cost import count_macs, count_parameters
from scalablevit.classification.augmentation import Augmentation, RandomCrop
from scalablevit.classification.balance import BalancedSampler, describe_balance
from scalablevit.classification.class_folders import OTHER_IMAGE_SUFFIXES
from scalablevit.classification.configuration import TrainConfig
from scalablevit.classification.data import (
    BatchParts,
    DecodedImages,
    EpochSampler,
    EvaluationSet,
    TrainingSet,
    UnreadableImages,
    collate,
)
from scalablevit.classification.devices import Processes, find_processes
from scalablevit.classification.images import LabelledImages
from scalablevit.classification.initial_weights import InitialWeights, build_from, load_into, read_initial_weights
from scalablevit.classification.input_rate import TimedLoader, measure_reading
from scalablevit.classification.machine_checks import check_machine
from scalablevit.classification.optimisers import freeze_backbone
from scalablevit.classification.planning import SURVEYED, Choice, Plan, count_steps, decide, estimate_memory_mb, survey
from scalablevit.classification.sources import Parts, TrainingData, find_training_data, left_out_files
from scalablevit.classification.stopping import shield_worker
from scalablevit.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, measure_preprocessing
from scalablevit.scalable_vit import ScalableViT
from scalablevit.variants import VARIANTS


@dataclass(kw_only=True)
class Prepared:
    """A run before its first step.

    Args:
        data: The images.
        config: The options, filled in.
        choices: What was filled in, and why.
        preprocessing: What is done to images outside training.
        initial: The weights that training starts from; None: from scratch.
        unreadable: Where images are noted that cannot be read.
        processes: Those that train.

    Attributes:
        notes: What else there is to know, as lines.
    """

    data: TrainingData
    config: TrainConfig
    choices: list[Choice]
    preprocessing: Preprocessing
    initial: InitialWeights | None
    unreadable: UnreadableImages
    processes: Processes = field(default_factory=Processes)
    notes: list[str] = field(default_factory=list)

    def build_model(self) -> ScalableViT:
        """The model as it is before the first step; the seed, and the weights it starts from, say its values."""
        torch.manual_seed(self.config.seed)
        classes, config = self.data.training.classes, self.config
        assert config.channels is not None
        if config.model is not None:
            model = VARIANTS[config.model].build(len(classes), channels=config.channels, drop_path=config.drop_path)
        else:
            assert self.initial is not None  # else `decide` has chosen a model
            model = build_from(self.initial, classes, config.channels, drop_path=config.drop_path)
        if self.initial is not None:
            self.notes += load_into(model, self.initial, classes)
        if config.freeze_backbone:
            freeze_backbone(model)
        model.set_grad_checkpointing(config.grad_checkpointing)
        if config.channels_last:
            model.to(memory_format=torch.channels_last)
        return model

    @cached_property
    def loaders(self) -> tuple[DataLoader[Any], DataLoader[Any]]:
        """Batches to train on, and to validate on. Images that are kept in memory are decoded when this is first read.

        Raises:
            ValueError: If more images than the options allow are known to be unreadable.
        """
        config, preprocessing, data = self.config, self.preprocessing, self.data
        assert config.workers is not None
        assert config.batch_size is not None
        train_images, val_images = self._decode(data.training, at_least=self._side()), self._decode(data.validation)
        common: dict[str, Any] = {
            "num_workers": config.workers,
            "persistent_workers": config.workers > 0,
            "collate_fn": collate,
            "worker_init_fn": shield_worker,
        }
        train_batches = BatchParts(
            self._sampler(),
            config.batch_size,
            # A last, smaller batch would weigh its images more than others; each epoch leaves out other images.
            drop_last=len(data.training) >= config.batch_size,
            processes=self.processes,
        )
        train_set = TrainingSet(train_images, data.training, self._augmentation(), seed=config.seed)
        val_set = EvaluationSet(val_images, data.validation, preprocessing)
        val_batches = BatchParts(
            SequentialSampler(val_set),
            max(config.batch_size, 256 * self.processes.count),
            drop_last=False,
            processes=self.processes,
        )
        return (
            TimedLoader(train_set, batch_sampler=train_batches, **common),
            DataLoader(val_set, batch_sampler=val_batches, **common),
        )

    def measure_reading(self) -> float | None:
        """Images per second that reading and augmenting give by themselves, in some seconds; None for a small set."""
        config = self.config
        assert config.workers is not None
        assert config.batch_size is not None
        images = DecodedImages(self.data.training.paths, self.preprocessing.channels, limit_mb=0, at_least=self._side())
        dataset = TrainingSet(images, self.data.training, self._augmentation(), seed=config.seed)
        return measure_reading(dataset, batch_size=config.batch_size, workers=config.workers)

    def plan(self) -> Plan:
        """What the run will do and need."""
        assert self.config.size is not None
        model = self.build_model()
        return Plan(
            training=self.data.training.counts(),
            validation=self.data.validation.counts(),
            config=self.config,
            choices=tuple(self.choices),
            notes=tuple(self.notes),
            steps=count_steps(len(self.data.training), self.config),
            parameters=count_parameters(model),
            macs=count_macs(model, *self.config.size),
            memory_mb=estimate_memory_mb(model, self.config),
        )

    def _decode(self, images: LabelledImages, at_least: int | None = None) -> DecodedImages:
        channels, limit_mb = self.preprocessing.channels, 0 if images.stretches else self.config.memory_mb
        decoded = DecodedImages(images.paths, channels, limit_mb=limit_mb, at_least=at_least)
        self.unreadable.add(decoded.unreadable)
        return decoded

    def _side(self) -> int:
        assert self.config.size is not None
        assert self.config.random_crop is not None
        return side_needed(self.config.size, self.config.random_crop, self.config.smallest_area)

    def _sampler(self) -> EpochSampler:
        if self.config.balance == "sampling":
            return BalancedSampler(self.data.training, seed=self.config.seed)
        training = self.data.training
        return EpochSampler(len(training), seed=self.config.seed, stretches=training.stretches)

    def _augmentation(self) -> Augmentation:
        config = self.config
        assert config.random_crop is not None
        return Augmentation(
            preprocessing=replace(self.preprocessing, crop_fraction=1.0),  # what is seen is drawn
            random_crop=config.random_crop,
            padding=config.padding or 0,
            smallest_area=config.smallest_area,
            flip=config.flip,
            erasing=config.erasing,
            erasing_mode=config.erasing_mode,
            rand_augment=None if config.rand_augment == "none" else config.rand_augment,
            color_jitter=config.color_jitter,
        )


def side_needed(size: tuple[int, int], random_crop: RandomCrop, smallest_area: float) -> int:
    """How many pixels the shorter side of an image needs, so that no part that training cuts out has to be enlarged.

    Of a square image, the smallest part with the ratio 3:4 has a shorter side of sqrt(3/4 area), of others more.
    Images that are resized as a whole keep twice the pixels, from which the resize takes its means.
    """
    if random_crop == "resize":
        return math.ceil(max(size) / math.sqrt(smallest_area * 3 / 4))
    return 2 * max(size)


def prepare(data: str | Path, config: TrainConfig) -> Prepared:
    """Finds the images, fills in the options, and reads the weights to start from.

    Raises:
        ValueError: If the data are not as they must be, or the weights are none that can be started from.
    """
    check_machine(config)
    initial = None
    if config.weights is not None:
        initial = read_initial_weights(config.weights, heads=config.heads, window_size=config.window_size)
    elif config.heads is not None or config.window_size is not None:
        raise ValueError("heads and window_size are facts of the weights that training starts from: give --weights")
    parts = Parts(train_split=config.train_split, val_split=config.val_split, target_key=config.target_key)
    found = find_training_data(data, seed=config.seed, val_fraction=config.val_fraction, parts=parts)
    seen = survey(found.training.to_look_at(SURVEYED))
    config, choices = decide(config, seen, found.training)
    assert config.size is not None
    assert config.channels is not None
    preprocessing = measure_preprocessing(seen.paths, size=config.size, channels=config.channels)
    known = initial.normalisation if initial is not None else None
    if config.normalisation == "imagenet":
        known = IMAGENET_MEAN, IMAGENET_STD
        if config.channels == 1:
            raise ValueError(
                "normalisation is 'imagenet', which is of three colours, and images are read in grey: give --channels"
                " 3, or --normalisation measured"
            )
    if known and len(known[0]) == config.channels:
        preprocessing = replace(preprocessing, mean=known[0], std=known[1])
    preprocessing = replace(preprocessing, crop_fraction=config.crop_fraction)
    total = len(found.training) + len(found.validation)
    return Prepared(
        data=found,
        config=config,
        choices=choices,
        preprocessing=preprocessing,
        initial=initial,
        unreadable=UnreadableImages(total, config.max_unreadable),
        processes=find_processes(config),
        notes=[*_notes(found, left_out_files(data)), *describe_balance(found.training, config.balance)],
    )


def _notes(data: TrainingData, others: Sequence[Path]) -> list[str]:
    notes = []
    if left_out := [path for path in others if path.suffix.lower() in OTHER_IMAGE_SUFFIXES]:
        endings = ", ".join(sorted({path.suffix.lower() for path in left_out}))
        notes.append(
            f"images left out, of kinds that are not read here ({endings}): {len(left_out)}, for example {left_out[0]};"
            " convert them to JPEG or PNG"
        )
    if data.drawn:
        count, total = len(data.validation), len(data.training) + len(data.validation)
        notes.append(
            f"{count} of {total} images were drawn for validation, the same part of each class"
            + ("; split.csv lists them" if data.training.are_files else "; the seed says which")
        )
    if data.unused:
        notes.append(
            f"neither trained on nor validated with: {', '.join(data.unused)}; kept for `scalablevit evaluate`"
        )
    missing = [name for name, images in data.validation.counts().items() if not images]
    if missing:
        notes.append(f"no validation images of {', '.join(missing)}: how well they are known will not be measured")
    return notes
