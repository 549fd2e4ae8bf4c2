"""Whether the machine, and what is installed on it, can do what the options ask for."""

from __future__ import annotations

import os

import torch

from scalablevit.classification.configuration import TrainConfig
from scalablevit.extras import require_extra


def available_cores() -> int:
    """Processor cores that this process may use: of all that there are, Slurm and containers may leave it a few."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_machine(config: TrainConfig) -> None:
    """Looks before anything is read or written.

    Raises:
        ValueError: If half precision is asked for on a CPU.
        MissingExtraError: If a logger is not installed.
    """
    is_cpu = config.accelerator == "cpu" or (config.accelerator == "auto" and not torch.accelerator.is_available())
    if config.precision == "16-mixed" and is_cpu:
        raise ValueError(
            "precision is '16-mixed', which a CPU does not train in: give --precision bf16-mixed or 32-true"
        )
    for name in config.log:
        require_extra(name, name)
