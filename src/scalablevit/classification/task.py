"""What training does in a step, as Lightning wants it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from scalablevit.classification.configuration import LEARNING_RATES, TrainConfig
from scalablevit.classification.mixing import mix
from scalablevit.classification.muon import Muon
from scalablevit.classification.randomness import Purpose, generator, torch_seed
from scalablevit.classification.scores import Scores
from scalablevit.preprocessing import Preprocessing
from scalablevit.scalable_vit import ScalableViT

# Of the learning rate, for the parameters that Muon leaves to AdamW.
MUON_REST = 0.4


class ClassificationTask(pl.LightningModule):
    """Training and validation of a classifier. Batches are (pixels (b, c, h, w) from 0 to 255, labels (b,)).

    Args:
        model: The classifier.
        config: The options of the run.
        preprocessing: How pixels are normalised.
        classes: Names of the classes.
    """

    def __init__(
        self, model: ScalableViT, config: TrainConfig, preprocessing: Preprocessing, classes: Sequence[str]
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.preprocessing = preprocessing
        self.scores = Scores(classes)
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema)) if config.ema else None

    @property
    def trained_model(self) -> ScalableViT:
        """What is evaluated and saved: the averaged model, if there is one, else the model itself."""
        model = self.model if self.average is None else self.average.module
        assert isinstance(model, ScalableViT)
        return model

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        """Makes what the step draws at random (drop-path, dropout) depend on the step alone."""
        torch.manual_seed(torch_seed(Purpose.STEP, self.config.seed, self.global_step))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """The loss of a batch."""
        pixels, labels = batch
        images = self.preprocessing.normalise(pixels)
        targets = smooth(labels, len(self.scores.classes), self.config.label_smoothing)
        random = generator(Purpose.STEP, self.config.seed, self.global_step)
        images, targets = mix(images, targets, mixup=self.config.mixup, cutmix=self.config.cutmix, random=random)
        return F.cross_entropy(self.model(images), targets)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_index: int) -> None:
        """Takes the new weights into the average."""
        if self.average is not None:
            self.average.update_parameters(self.model)

    def on_validation_epoch_start(self) -> None:
        """Begins to count anew."""
        self.scores = Scores(self.scores.classes)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        """Counts what is right in a batch."""
        pixels, labels = batch
        self.scores.update(self.trained_model(self.preprocessing.normalise(pixels)), labels)

    def on_validation_epoch_end(self) -> None:
        """Reports the scores to whoever chooses the best epoch."""
        result = self.scores.result()
        self.log_dict({"val_loss": result.loss, "val_top1": result.top1})

    def configure_optimizers(self) -> Any:
        """The optimiser, with warm-up and cosine step by step."""
        optimizer = make_optimizer(self.model, self.config)
        steps = int(self.trainer.estimated_stepping_batches)
        shape = partial(
            schedule,
            steps=steps,
            warmup_steps=round(steps * self.config.warmup_epochs / self.config.epochs),
            final=self.config.final_learning_rate,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, shape)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def smooth(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Target probabilities (b, classes) of labels (b,), with `smoothing` of each spread evenly over the classes."""
    return F.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes


def make_optimizer(model: ScalableViT, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of a run.

    Muon moves the matrices of linear layers. Convolutions, the classifier, norms and biases are left to AdamW, as its
    author advises, at `MUON_REST` of the learning rate.
    """
    rate = LEARNING_RATES[config.optimizer] if config.learning_rate is None else config.learning_rate
    groups = parameter_groups(model, config.weight_decay)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate)
    return Muon(
        (
            {**group, "is_matrix": is_matrix, "lr": rate if is_matrix else rate * MUON_REST}
            for is_matrix, group in split_matrices(groups, model)
        ),
        lr=rate,
    )


def parameter_groups(model: ScalableViT, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters in two groups: with weight decay, and, as the model says, without."""
    spared = model.no_weight_decay()
    groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, parameter in model.named_parameters():
        groups[name in spared].append(parameter)
    return [{"params": groups[False], "weight_decay": weight_decay}, {"params": groups[True], "weight_decay": 0.0}]


def split_matrices(groups: list[dict[str, Any]], model: ScalableViT) -> list[tuple[bool, dict[str, Any]]]:
    """Each group in two: the matrices of linear layers but the classifier's (True), and the rest (False)."""
    classifier = {id(parameter) for parameter in model.get_classifier().parameters()}
    halves = []
    for group in groups:
        for wanted in (True, False):
            parameters = [p for p in group["params"] if (p.ndim == 2 and id(p) not in classifier) == wanted]
            if parameters:
                halves.append((wanted, {**group, "params": parameters}))
    return halves


def schedule(step: int, *, steps: int, warmup_steps: int, final: float) -> float:
    """The learning rate at a step, as a fraction of the highest.

    Args:
        step: From 0.
        steps: Of the whole run.
        warmup_steps: For so many the rate rises linearly; 1 is reached at the last of them.
        final: What a cosine falls to at the last step.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(steps - 1 - warmup_steps, 1)
    return final + (1 - final) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
