"""The least time that a machine needs for a step: what each operation computes and moves, over the machine's rates.

An operation reads each element of its inputs once and writes each of its outputs once; its arithmetic is that of matrix
products, convolutions and attention. Its floor is the longer of the two times, and the floor of a step is the sum: no
step that runs the same operations, one after another, is faster. One that fuses operations moves less, and may be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from scalablevit.benchmarking.operations import KINDS, kind_of

# What only writes to the tensor that it changes.
_OVERWRITING = ("copy_", "fill_", "zero_", "bernoulli_", "normal_", "uniform_")


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation as it was run.

    Args:
        name: PyTorch's, such as ``aten.addmm.default``.
        read_bytes: Of the distinct elements of its inputs.
        written_bytes: Of the elements of its outputs that are no views of inputs.
        flops: Two for each multiplication and addition of a product; 0 for all else.
    """

    name: str
    read_bytes: int
    written_bytes: int
    flops: int

    @property
    def kind(self) -> str:
        """One of `scalablevit.benchmarking.operations.KINDS`."""
        return kind_of(self.name)

    @property
    def moved_bytes(self) -> int:
        """Read and written."""
        return self.read_bytes + self.written_bytes

    def floor_seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """The longer of the times for arithmetic and for memory."""
        return max(self.flops / flops_per_second, self.moved_bytes / bytes_per_second)


@dataclass(frozen=True, kw_only=True)
class Floor:
    """Operations of one kind, or of one name, together.

    Args:
        name: Theirs.
        operations: How many.
        moved_bytes: Read and written.
        flops: Of products.
        flop_seconds: That the products alone need.
        byte_seconds: That the memory alone needs.
        floor_seconds: The sum, over the operations, of the longer of the two.
    """

    name: str
    operations: int
    moved_bytes: int
    flops: int
    flop_seconds: float
    byte_seconds: float
    floor_seconds: float


def count_operations(step: Callable[[], object]) -> list[Operation]:
    """Runs a step and counts each operation in it that moves or computes something; views do neither.

    Operations are those that PyTorch dispatches: a fused kernel is one, and so is an operator of ours.
    """
    with _Counter() as counter:
        step()
    return counter.operations


def floors_by_kind(operations: Iterable[Operation], *, flops_per_second: float, bytes_per_second: float) -> list[Floor]:
    """The floors of each kind of operation there is, in the order of `KINDS`.

    Args:
        operations: What was counted.
        flops_per_second: That the machine reaches in large products.
        bytes_per_second: That it reads and writes, together, in a large copy.
    """
    groups: dict[str, list[Operation]] = {kind: [] for kind in KINDS}
    for one in operations:
        groups[one.kind].append(one)
    return [_floor(kind, mine, flops_per_second, bytes_per_second) for kind, mine in groups.items() if mine]


def floors_by_name(operations: Iterable[Operation], *, flops_per_second: float, bytes_per_second: float) -> list[Floor]:
    """The floors of each operation of PyTorch, the highest first; arguments as for `floors_by_kind`."""
    groups: dict[str, list[Operation]] = {}
    for one in operations:
        groups.setdefault(one.name, []).append(one)
    floors = [_floor(name, mine, flops_per_second, bytes_per_second) for name, mine in groups.items()]
    return sorted(floors, key=lambda floor: -floor.floor_seconds)


def _floor(name: str, operations: list[Operation], flops_per_second: float, bytes_per_second: float) -> Floor:
    moved, flops = sum(one.moved_bytes for one in operations), sum(one.flops for one in operations)
    return Floor(
        name=name,
        operations=len(operations),
        moved_bytes=moved,
        flops=flops,
        flop_seconds=flops / flops_per_second,
        byte_seconds=moved / bytes_per_second,
        floor_seconds=sum(one.floor_seconds(flops_per_second, bytes_per_second) for one in operations),
    )


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        # Inference mode shows some operations before they are taken apart.
        if packet not in flop_registry and packet not in _counted_as():
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        out = func(*args, **kwargs)
        read, written = _moved_bytes(func, args, kwargs, out)
        flops = _flops(packet, args, kwargs, out)
        if read or written or flops:
            self.operations.append(Operation(name=str(func), read_bytes=read, written_bytes=written, flops=flops))
        return out


def _flops(packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    if packet == torch.ops.aten.convolution_backward:  # PyTorch's formula takes all groups for one
        grad, image, weight, *_, is_transposed, _, _, wanted = args
        forward = 2 * (image if is_transposed else grad).numel() * weight[0].numel()
        return int(forward * sum(wanted[:2]))
    packet = packet if packet in flop_registry else _counted_as().get(packet)
    return int(flop_registry[packet](*args, **kwargs, out_val=out)) if packet in flop_registry else 0


def _counted_as() -> dict[Any, Any]:
    """Fused attention on a CPU, which PyTorch counts from 2.15 on only, by the formulas for GPUs."""
    aten = torch.ops.aten
    return {
        aten._scaled_dot_product_flash_attention_for_cpu: aten._scaled_dot_product_flash_attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: aten._scaled_dot_product_flash_attention_backward,
    }


def _moved_bytes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> tuple[int, int]:
    """Read and written."""
    if "empty" in func.__name__:
        return 0, 0
    overwrites = func.__name__.partition(".")[0] in _OVERWRITING
    inputs: list[Tensor] = []
    changed: list[Tensor] = []
    values = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
    for argument in func._schema.arguments:
        tensors = [leaf for leaf in tree_leaves(values.get(argument.name)) if isinstance(leaf, Tensor)]
        if argument.alias_info is not None and argument.alias_info.is_write:
            changed += tensors
        if not (argument.is_out or (overwrites and tensors and tensors[0] is args[0])):
            inputs += tensors
    known = {_storage(tensor) for tensor in (*inputs, *changed)}
    made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor) and _storage(leaf) not in known]
    written = [*made, *changed]
    if not written:  # a view
        return 0, 0
    return sum(map(_distinct_bytes, inputs)), sum(map(_distinct_bytes, written))


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _distinct_bytes(tensor: Tensor) -> int:
    """Of the elements, where an axis that was expanded counts once."""
    sizes = (size if stride else min(size, 1) for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return math.prod(sizes) * tensor.element_size()
