"""Steps whose loss or gradients are no finite numbers: they end the run, or are left out, and are written down."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from scalablevit.classification.faults import TrainingFault, how_to_go_on
from scalablevit.classification.run_folder import RunFolder, write_json
from scalablevit.classification.task import ClassificationTask


class NonFiniteGuard(pl.Callback):
    """Looks at each step before the weights move.

    What is written down goes into ``non_finite/`` of the run folder: for each such step a JSON file with the batch's
    images, and, where the run ends, a checkpoint of the state before it.

    Args:
        folder: Of the run.

    Attributes:
        skipped: How many steps of the run were left out.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.skipped = 0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting."""
        self.skipped = state_dict["skipped"]

    def on_before_optimizer_step(self, trainer: Any, pl_module: ClassificationTask, optimizer: Any) -> None:
        """Leaves the step out, or ends the run, if its numbers are not finite.

        Raises:
            TrainingFault: If the run ends.
        """
        # With 16-mixed the scaler expects some gradients that are not.
        norm = None if trainer.precision == "16-mixed" else gradient_norm(optimizer, pl_module)
        values = [value for value in (pl_module.loss, norm) if value is not None]
        is_bad = not all(bool(torch.isfinite(value)) for value in values)
        if not pl_module.processes.largest(is_bad, pl_module.device):
            return
        config = pl_module.config
        is_last = config.non_finite == "stop" or self.skipped >= config.max_non_finite
        facts = self._describe(trainer, pl_module, norm)
        self._write(trainer, facts, with_state=is_last)
        if is_last:
            raise TrainingFault(self._message(pl_module, facts))
        self.skipped += 1
        optimizer.zero_grad(set_to_none=True)  # optimisers pass over parameters without a gradient

    def _describe(self, trainer: Any, task: ClassificationTask, norm: Tensor | None) -> dict[str, Any]:
        batches = trainer.train_dataloader.batch_sampler
        batch, size = trainer.fit_loop.batch_idx, batches.batch_size
        first = batch // task.config.accumulate * task.config.accumulate
        indices = batches.sampler.order(trainer.current_epoch)[first * size : (batch + 1) * size]
        paths = trainer.train_dataloader.dataset.decoded.paths
        return {
            "step": trainer.global_step + 1,
            "epoch": trainer.current_epoch + 1,
            "batch": batch + 1,
            "loss": None if task.loss is None else str(float(task.loss)),
            "gradient_norm": None if norm is None else str(float(norm)),
            "learning_rate": optimizer_rate(trainer),
            "indices": indices,
            "images": [str(paths[index]) for index in indices],
        }

    def _write(self, trainer: Any, facts: dict[str, Any], *, with_state: bool) -> None:
        file = self.folder.non_finite / f"step-{facts['step']:08}.json"
        if with_state:
            trainer.save_checkpoint(file.with_suffix(".ckpt"))
            facts = {**facts, "state": file.with_suffix(".ckpt").name}
        if trainer.is_global_zero:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, facts)

    def _message(self, task: ClassificationTask, facts: dict[str, Any]) -> str:
        what = (
            f"the loss is {facts['loss']}"
            if facts["loss"] in ("nan", "inf", "-inf")
            else f"a gradient is no finite number (their norm is {facts['gradient_norm']})"
        )
        images, config = facts["images"], task.config
        message = (
            f"{what} in step {facts['step']}, epoch {facts['epoch']}, with {len(images)} images, {images[0]} and others"
            f" (all, and the state before the step, are in {self.folder.non_finite}): look at them, or train again with"
            " a lower --learning-rate or --precision 32-true"
        )
        if config.non_finite == "skip":
            return f"{message}. {self.skipped} steps before were left out, as many as --max-non-finite allows"
        return f"{message}; to leave such steps out: {how_to_go_on(self.folder.path)} --non-finite skip"


def gradient_norm(optimizer: Any, task: ClassificationTask) -> Tensor | None:
    """The norm of all gradients, of all processes' pieces where fsdp has cut them; None if there are none."""
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if task.config.strategy != "fsdp":
        return torch.nn.utils.get_total_norm(gradients) if gradients else None
    # All take part, those too that have no piece; in float64, in which no square of a float32 is infinite.
    square = torch.nn.utils.get_total_norm(gradients).to(task.device, torch.float64) ** 2
    return (task.processes.mean(square) * task.processes.count).sqrt()


def optimizer_rate(trainer: Any) -> float:
    """The learning rate of the first group of parameters."""
    return float(trainer.optimizers[0].param_groups[0]["lr"])
