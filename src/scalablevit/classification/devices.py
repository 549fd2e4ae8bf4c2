"""The processes that train together, one per device: how many there are, which one this is, and what they share.

Processes are started by torchrun, by Slurm's srun, or, on one machine, by the run itself (see `launching`). Rank 0 is
the one that writes, prints and decides; the others compute.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from scalablevit.classification.configuration import TrainConfig
from scalablevit.stages import Layer, Stage

Launcher = Literal["torchrun", "slurm", "environment"]
Shared = TypeVar("Shared")
_BY_HAND = ("bash", "interactive")  # names of Slurm's jobs in which people start processes themselves, as Lightning's


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes of a run.

    Args:
        per_node: On each machine, one per device.
        nodes: Machines.
        rank: Which one this is, from 0.
        launcher: What has started them: "environment" stands for whoever has set LOCAL_RANK. None: nobody yet.
    """

    per_node: int = 1
    nodes: int = 1
    rank: int = 0
    launcher: Launcher | None = None

    @property
    def count(self) -> int:
        """All."""
        return self.per_node * self.nodes

    @property
    def is_first(self) -> bool:
        """Whether this one writes, prints and decides."""
        return self.rank == 0

    def part(self, length: int) -> slice:
        """Which of so many things are this process's: parts in the order of ranks, as equal as can be."""
        return slice(self.rank * length // self.count, (self.rank + 1) * length // self.count)

    def total(self, number: int, device: torch.device) -> int:
        """The sum of all processes' numbers."""
        return number if self.count == 1 else int(self._reduced(torch.tensor(number, device=device), "SUM"))

    def largest(self, number: int, device: torch.device) -> int:
        """The largest of all processes' numbers, by which they agree on what to do."""
        return number if self.count == 1 else int(self._reduced(torch.tensor(int(number), device=device), "MAX"))

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean of all processes' tensors."""
        return tensor if self.count == 1 else self._reduced(tensor.clone(), "SUM") / self.count

    def gather(self, thing: Shared) -> list[Shared]:
        """What all processes have, in the order of ranks."""
        if self.count == 1:
            return [thing]
        everything: list[Any] = [None] * self.count
        dist.all_gather_object(everything, thing)
        return everything

    def share(self, thing: Shared) -> Shared:
        """What the first process has."""
        if self.count == 1:
            return thing
        boxed = [thing]
        dist.broadcast_object_list(boxed)
        dist.barrier()  # so that the first does not end before all have it
        return boxed[0]

    def _reduced(self, tensor: Tensor, operation: str) -> Tensor:
        dist.all_reduce(tensor, getattr(dist.ReduceOp, operation))
        return tensor


def find_processes(config: TrainConfig) -> Processes:
    """The processes of a run with these options, in this environment.

    Raises:
        ValueError: If the options and whoever has started the processes do not agree, or the strategy does not fit.
    """
    launcher = find_launcher(os.environ)
    if launcher == "torchrun":
        per_node = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // per_node
    elif launcher == "slurm":
        nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", os.environ.get("SLURM_NNODES", "1")))
        per_node = int(os.environ["SLURM_NTASKS"]) // nodes
    else:
        nodes, per_node = config.nodes or 1, count_devices(config)
        if nodes > 1:
            raise ValueError(
                f"nodes is {nodes}, but neither torchrun nor srun has started this process: start the command on every"
                f" machine with torchrun --nnodes {nodes}, or with srun"
            )
    check_strategy(config)
    for name, given, started in (("devices", config.devices, per_node), ("nodes", config.nodes, nodes)):
        if given not in (None, "auto", started):
            raise ValueError(f"{name} is {given}, but {launcher} has started {started}: leave --{name} out")
    if own_rank() >= per_node * nodes:
        raise ValueError(
            f"LOCAL_RANK is {os.environ['LOCAL_RANK']}, but a run with devices {per_node} has no such process: unset"
            " it, or begin this run in a script of its own"
        )
    return Processes(per_node=per_node, nodes=nodes, rank=own_rank(), launcher=launcher)


def find_launcher(environment: Mapping[str, str]) -> Launcher | None:
    """What has started this process, one of several."""
    if "TORCHELASTIC_RUN_ID" in environment:
        return "torchrun"
    # A job of one task may start processes itself.
    if int(environment.get("SLURM_NTASKS", "1")) > 1 and environment.get("SLURM_JOB_NAME") not in _BY_HAND:
        return "slurm"
    return "environment" if "LOCAL_RANK" in environment else None


def own_rank() -> int:
    """Which process of a run this is, from 0."""
    names = {"torchrun": "RANK", "slurm": "SLURM_PROCID", "environment": "LOCAL_RANK"}
    launcher = find_launcher(os.environ)
    return 0 if launcher is None else int(os.environ[names[launcher]])


def count_devices(config: TrainConfig) -> int:
    """How many devices of one machine the options name."""
    if config.devices != "auto":
        return config.devices or 1
    return 1 if config.accelerator == "cpu" else max(torch.accelerator.device_count(), 1)


def check_strategy(config: TrainConfig) -> None:
    """Raises a ValueError unless the strategy can train with the other options here."""
    if config.strategy != "fsdp":
        return
    if config.accelerator not in ("auto", "gpu", "cuda") or not torch.cuda.is_available():
        raise ValueError("strategy is 'fsdp', which needs CUDA GPUs, and this run would be without: use --strategy ddp")
    if config.optimizer != "adamw":
        raise ValueError(
            f"strategy is 'fsdp' and optimizer {config.optimizer!r}: fsdp cuts matrices into pieces, of which"
            " only adamw can be computed; use --optimizer adamw, or --strategy ddp"
        )
    if config.ema:
        raise ValueError(
            f"strategy is 'fsdp' and ema {config.ema}: no average of weights that are cut into pieces is kept here;"
            " use --ema 0, or --strategy ddp"
        )
    if config.precision == "16-mixed":
        raise ValueError("strategy is 'fsdp' and precision '16-mixed': use --precision bf16-mixed, or --strategy ddp")


def make_strategy(config: TrainConfig, processes: Processes) -> Any:
    """Lightning's strategy, or "auto" for one device."""
    from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy

    if config.strategy == "fsdp":
        return FSDPStrategy(auto_wrap_policy={Layer, Stage}, sharding_strategy="FULL_SHARD", state_dict_type="full")
    if config.strategy == "auto" and processes.count == 1:
        return "auto"
    # Each parameter has a gradient in each step, if only 0 where drop-path has left out its branch.
    return DDPStrategy(find_unused_parameters=False, gradient_as_bucket_view=True)


def make_environment(processes: Processes) -> Any:
    """Lightning's view of who has started the processes.

    Named rather than detected: Lightning would take a Slurm job of one task for one whose processes Slurm has started,
    and would put the job into the queue again by itself.
    """
    from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

    if processes.launcher == "slurm":
        try:
            return SLURMEnvironment(auto_requeue=False)
        except RuntimeError as error:
            raise ValueError(f"Slurm's variables do not fit: {error}") from error
    return TorchElasticEnvironment() if processes.launcher == "torchrun" else LightningEnvironment()
