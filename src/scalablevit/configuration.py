"""What a user may pass to `ScalableViT`, checked and spelled out per stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """The sizes of one stage. `depth` counts layers, an SSA and an IWSA each; the rest is as in `ScalableViT`."""

    dim: int
    depth: int
    heads: int
    reduction_factor: int
    window_size: int | None
    iwsa_dim_key: int
    iwsa_dim_value: int
    ssa_dim_key: int
    ssa_dim_value: int
    ff_expansion_factor: int


def stage_configs(*, depth: int | Sequence[int], dim: int | Sequence[int], **per_stage: Any) -> list[StageConfig]:
    """One `StageConfig` per stage. `depth` says how many stages there are; single values hold for all of them.

    A single `dim` is the first stage's, and doubles from stage to stage.

    Raises:
        ValueError: If a sequence is not as long as `depth`, or a value is not a positive integer.
    """
    depths = [depth] if isinstance(depth, int) else list(depth)
    if not depths:
        raise ValueError(
            f"depth is {depth!r}; it must hold the number of layers of each stage, for example (2, 2, 6, 2)"
        )
    stages = len(depths)
    if isinstance(dim, int):
        dim = [dim * 2**stage for stage in range(stages)]
    columns = {"depth": depths, "dim": dim, **per_stage}
    columns = {name: _one_per_stage(name, value, stages) for name, value in columns.items()}
    return [StageConfig(**{name: column[stage] for name, column in columns.items()}) for stage in range(stages)]


def _one_per_stage(name: str, value: Any, stages: int) -> list[Any]:
    many = isinstance(value, (list, tuple))
    values = list(value) if many else [value] * stages
    if len(values) != stages:
        raise ValueError(
            f"{name} is {value!r}, which has {len(values)} values, but depth has {stages}: give one value for"
            f" all stages, or exactly {stages}"
        )
    for item in values:
        if item is None and name == "window_size":
            continue
        if isinstance(item, bool) or not isinstance(item, int) or item < 1:
            expected = (
                "a positive integer, or None for the whole map" if name == "window_size" else "a positive integer"
            )
            raise ValueError(f"{name} is {value!r}; each value must be {expected}, not {item!r}")
    return values


def check_probability(name: str, value: float) -> float:
    """`value`, if it is a probability below 1.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a number from 0 up to, and without, 1")
    return float(value)


def check_count(name: str, value: int, *, minimum: int = 1) -> int:
    """`value`, if it is an integer of at least `minimum`.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name} is {value!r}; it must be an integer of at least {minimum}")
    return value


def take_indices(count: int, indices: int | list[int] | None) -> list[int]:
    """Which of `count` stages are meant, in running order: the last n for an integer n, all for None, or those named.

    Names are positions, negative ones from the end. TorchScript compiles this function.

    Raises:
        ValueError: If none is meant, or an index lies outside the stages.
    """
    if indices is None:
        return list(range(count))
    if isinstance(indices, int):
        if not 1 <= indices <= count:
            raise ValueError(f"indices is {indices}; as an integer it is how many of the last stages, 1 to {count}")
        return list(range(count - indices, count))
    if len(indices) == 0:
        raise ValueError(f"indices is empty; it must name at least one stage, 0 to {count - 1}, or be None for all")
    named: list[int] = []
    for index in indices:
        if not -count <= index < count:
            raise ValueError(
                f"indices holds {index}; there are {count} stages, so it must lie in {-count} to {count - 1}"
            )
        named.append(index % count)
    taken: list[int] = []
    for stage in range(count):
        if stage in named:
            taken.append(stage)  # TorchScript has no condition in a comprehension
    return taken
