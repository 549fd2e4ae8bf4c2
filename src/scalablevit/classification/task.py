"""What training does in a step, as Lightning wants it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from scalablevit.benchmarking.cost import count_parameters
from scalablevit.classification.configuration import TrainConfig
from scalablevit.classification.data import Batch, UnreadableImages
from scalablevit.classification.devices import Processes
from scalablevit.classification.mixing import mix
from scalablevit.classification.optimisers import make_optimizer
from scalablevit.classification.randomness import Purpose, generator, torch_seed
from scalablevit.classification.scores import Scores
from scalablevit.preprocessing import Preprocessing
from scalablevit.scalable_vit import ScalableViT


class ClassificationTask(pl.LightningModule):
    """Training and validation of a classifier on instances of `Batch`.

    Args:
        model: The classifier.
        config: The options of the run, filled in.
        preprocessing: How pixels are normalised.
        classes: Names of the classes.
        unreadable: Where images are noted that cannot be read.
        multi_label: Whether an image may have any number of labels.
        notes: What people are told of the run before it starts, as lines.
        processes: Those that train.
        class_weights: (classes,), factors of the losses of their images; see `balance.class_weights`.
    """

    def __init__(
        self,
        model: ScalableViT,
        config: TrainConfig,
        preprocessing: Preprocessing,
        classes: Sequence[str],
        unreadable: UnreadableImages,
        *,
        multi_label: bool = False,
        notes: Sequence[str] = (),
        processes: Processes | None = None,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.preprocessing = preprocessing
        self.scores = Scores(classes)
        self.unreadable = unreadable
        self.multi_label = multi_label
        self.notes = tuple(notes)
        self.processes = processes or Processes()
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", class_weights, persistent=False)  # the images say them
        self.loss: Tensor | None = None  # of the batch in progress, of all processes
        self.images = 0  # in it
        self.parameter_count = count_parameters(model)  # fsdp leaves each process a part of them
        self._optimizer: torch.optim.Optimizer | None = None
        self.average: AveragedModel | None = None
        if config.ema:
            self.average = AveragedModel(model, multi_avg_fn=partial(average_into, decay=config.ema))
            self.average.requires_grad_(False)  # DDP would wait for its gradients

        if config.compile:
            self.model.compile()  # in place, so that the names of its parameters stay

    @property
    def trained_model(self) -> ScalableViT:
        """What is evaluated and saved: the averaged model, if there is one, else the model itself."""
        model = self.model if self.average is None else self.average.module
        assert isinstance(model, ScalableViT)
        return model

    def position(self, batch_index: int) -> int:
        """How many batches were before, in all epochs."""
        return self.current_epoch * int(self.trainer.num_training_batches) + batch_index

    def on_train_start(self) -> None:
        """Keeps a frozen backbone as it is outside training, in all epochs; a run may go on within one."""
        if self.config.freeze_backbone:
            self.model.stages.eval()

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        """Makes what is drawn at random for the batch (drop-path, dropout) depend on its position and part alone."""
        part = [self.processes.rank] if self.processes.rank else []
        torch.manual_seed(torch_seed(Purpose.STEP, self.config.seed, self.position(batch_index), *part))

    def training_step(self, batch: Batch, batch_index: int) -> Tensor | None:
        """The loss of a batch; None if none of its images could be read.

        Lightning takes the mean of the processes' gradients, so a part counts by its images.
        """
        self.unreadable.add(batch.unreadable)
        self.loss, own = None, len(batch.targets)
        self.images = self.processes.total(own, self.device)
        if not self.images:
            return None
        loss = self._loss_of(batch, batch_index) if own else self._no_loss()
        if own * self.processes.count != self.images:
            loss = loss * (own * self.processes.count / self.images)
        self.loss = self.processes.mean(loss.detach())
        batches = self._batches_in_step(batch_index)
        return loss if batches == self.config.accumulate else loss * (self.config.accumulate / batches)

    def _batches_in_step(self, batch_index: int) -> int:
        """Those whose gradients are added up with this one's, which Lightning divides by as many as are asked for.

        In the last step of an epoch there may be fewer.
        """
        first = batch_index - batch_index % self.config.accumulate
        return min(self.config.accumulate, int(self.trainer.num_training_batches) - first)

    def _no_loss(self) -> Tensor:
        """Of a part without images: it has gradients, as others wait for them, and they are 0."""
        return 0.0 * self.model(torch.zeros(1, self.model.in_chans, 1, 1, device=self.device)).sum()

    def _loss_of(self, batch: Batch, batch_index: int) -> Tensor:
        random = generator(Purpose.STEP, self.config.seed, self.position(batch_index))
        images, targets = mix(
            self._images(batch),
            self._targets(batch.targets),
            mixup=self.config.mixup,
            cutmix=self.config.cutmix,
            random=random,
            probability=self.config.mix_probability,
            cutmix_share=self.config.cutmix_share,
        )
        return self._loss(self.model(images), targets)

    def _images(self, batch: Batch) -> Tensor:
        images = self.preprocessing.normalise(batch.pixels)
        return images.contiguous(memory_format=torch.channels_last) if self.config.channels_last else images

    def _targets(self, labels: Tensor) -> Tensor:
        """What an image is to be named, in parts that may be mixed: (b, classes), smoothed and weighted.

        A weight is that of the label, and so of all its parts. Given to PyTorch's losses it would be that of the part:
        smoothing gives a little of a rare class to each image, which its weight would make the most of it.

        Where images have several labels, and weights, (b, classes, 2): what speaks for a label, and against it.
        """
        smoothing, weights = self.config.label_smoothing, self.class_weights
        if not self.multi_label:
            targets = smooth(labels, len(self.scores.classes), smoothing)
            return targets if weights is None else targets * weights[labels, None]
        targets = labels * (1 - smoothing) + smoothing / 2
        if weights is None:
            return targets
        return torch.stack((targets, 1 - targets), -1) * (1 + (weights - 1) * labels)[..., None]

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        if not self.multi_label:
            return F.cross_entropy(logits, targets)
        if self.class_weights is None:
            return F.binary_cross_entropy_with_logits(logits, targets)
        there, missing = targets.unbind(-1)
        return -(there * F.logsigmoid(logits) + missing * F.logsigmoid(-logits)).mean()

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Makes the step, and takes the new weights into the average."""
        super().optimizer_step(*arguments, **options)
        if self.average is not None:
            self.average.update_parameters(self.model)

    def on_validation_epoch_start(self) -> None:
        """Begins to count anew."""
        self.scores = Scores(self.scores.classes)

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Notes what the model says of a batch."""
        self.unreadable.add(batch.unreadable)
        if len(batch.targets):
            self.scores.update(self.trained_model(self._images(batch)), batch.targets)

    def on_validation_epoch_end(self) -> None:
        """Reports the scores of all processes to whoever chooses the best epoch."""
        scores = Scores(self.scores.classes)
        scores.merge(self.processes.gather(self.scores))
        result = scores.result()
        self.log_dict({"val_loss": result.loss, "val_score": result.score}, logger=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the images that could not be read so far, by any of the processes."""
        for reasons in self.processes.gather(self.unreadable.reasons):
            self.unreadable.reasons.update(reasons)
        checkpoint["unreadable"] = dict(self.unreadable.reasons)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes them up again."""
        self.unreadable.reasons.update(checkpoint["unreadable"])

    def setup(self, stage: str) -> None:
        """With fsdp, makes the optimiser while parameters have their shapes, which say how they are moved."""
        if self.config.strategy == "fsdp":
            self._optimizer = make_optimizer(self.model, self.config)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Cuts the norm of all gradients, of all pieces where fsdp has cut the parameters."""
        if self.config.strategy != "fsdp":
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            self.trainer.model.clip_grad_norm_(gradient_clip_val)

    def configure_optimizers(self) -> Any:
        """The optimiser, with warm-up and cosine step by step."""
        optimizer = self._optimizer or make_optimizer(self.model, self.config)
        assert self.config.epochs is not None
        assert self.config.warmup_epochs is not None
        steps = int(self.trainer.estimated_stepping_batches)
        shape = partial(
            schedule,
            steps=steps,
            warmup_steps=round(steps * self.config.warmup_epochs / self.config.epochs),
            first=self.config.first_learning_rate,
            final=self.config.final_learning_rate,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, shape)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@torch.no_grad()
def average_into(averages: list[Tensor], weights: list[Tensor], count: Tensor, *, decay: float) -> None:
    """Takes weights into their averages.

    The first averages reach back over fewer steps, so that those of a short run are not mostly the weights that it
    began with; the rule is that of TensorFlow's ``ExponentialMovingAverage``.

    Args:
        averages: So far; they are changed.
        weights: After a step.
        count: Of the steps before.
        decay: What stays of an average, from nine times 1 / (1 - decay) steps on.
    """
    before = int(count)
    share = 1 - min(decay, (1 + before) / (10 + before))
    torch._foreach_lerp_(averages, weights, share)


def smooth(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Target probabilities (b, classes) of labels (b,), with `smoothing` of each spread evenly over the classes."""
    return F.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes


def schedule(step: int, *, steps: int, warmup_steps: int, final: float, first: float = 0.0) -> float:
    """The learning rate at a step, as a fraction of the highest.

    Args:
        step: From 0.
        steps: Of the whole run.
        warmup_steps: For so many the rate rises linearly; 1 is reached at the last of them.
        final: What a cosine falls to at the last step.
        first: What the rate rises from, one step before the first.
    """
    if step < warmup_steps:
        return first + (1 - first) * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(steps - 1 - warmup_steps, 1)
    return final + (1 - final) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
