"""Where a network looks from a place in the image: the attention of one of its SSA modules, as maps.

Axes: n heads, q queries, k keys; h height, w width of the map, rows and columns of keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scalablevit.attention import ScalableSelfAttention
from scalablevit.explanation.attention_maps import attention_probabilities, key_grid, mean_attention, reduction_factor
from scalablevit.explanation.forward_pass import ForwardPass
from scalablevit.explanation.lattice import HeatMap
from scalablevit.scalable_vit import ScalableViT


@dataclass(frozen=True, kw_only=True)
class Look:
    """Where the last SSA of a stage looks.

    Args:
        stage: Which stage, from 1.
        heads: Which heads, from 1.
        is_mean: Whether these are all heads of the stage, so that their mean is meant.
        maps: (heads, rows, columns): what each head gives of its attention to each key; the sum over keys is 1.
        points: From where: rows and columns in the image, in pixels, over which `maps` is the mean. Empty: from
            everywhere.
        first: Row and column, in pixels, of the centre of the first key.
        spacing: Pixels from one key to the next.
    """

    stage: int
    heads: tuple[int, ...]
    is_mean: bool
    maps: np.ndarray
    points: tuple[tuple[float, float], ...]
    first: float
    spacing: float

    @property
    def mean(self) -> HeatMap:
        """The mean over the heads."""
        return HeatMap(values=self.maps.mean(0), first=self.first, spacing=self.spacing)

    def over_even(self) -> HeatMap:
        """The mean over the heads as a multiple of an even share, which is 1."""
        mean = self.mean
        return HeatMap(values=mean.values * mean.values.size, first=self.first, spacing=self.spacing)


def look_from(
    model: ScalableViT,
    passed: ForwardPass,
    stage: int,
    *,
    points: Sequence[tuple[float, float]] = (),
    heads: Sequence[int] | None = None,
) -> Look:
    """Where the last SSA of a stage looks.

    Args:
        model: The network.
        passed: What the image left in it.
        stage: Which stage, from 1.
        points: From where: rows and columns in the image, in pixels; none: from everywhere.
        heads: Which heads, from 1; None: all.

    Raises:
        ValueError: If there is no such stage or head.
    """
    check_stages(model, [stage], heads)
    attention, is_mean = last_ssa(model, stage), heads is None
    heads = range(1, attention.heads + 1) if heads is None else heads
    x = passed.inputs[attention]
    _, height, width, _ = x.shape
    stride = model.feature_info[stage - 1]["reduction"]
    if points:
        queries = [_nearest(point, stride, height, width) for point in points]
        found = attention_probabilities(attention, x, queries).mean(1)
    else:
        found = mean_attention(attention, x)
    factor = reduction_factor(attention)
    maps = found.float().cpu().numpy().reshape(-1, *key_grid(attention, height, width))
    return Look(
        stage=stage,
        heads=tuple(heads),
        is_mean=is_mean,
        maps=maps[[head - 1 for head in heads]],
        points=tuple(points),
        first=stride * (factor - 1) / 2,
        spacing=float(stride * factor),
    )


def check_stages(model: ScalableViT, stages: Sequence[int], heads: Sequence[int] | None) -> None:
    """Raises a ValueError if a network has no such stage, or a stage no such head; both from 1."""
    for stage in stages:
        if not 1 <= stage <= len(model.stages):
            raise ValueError(f"stages has {stage}; the network has stages 1 to {len(model.stages)}")
        count = last_ssa(model, stage).heads
        for head in heads or ():
            if not 1 <= head <= count:
                each = ", ".join(f"{last_ssa(model, other).heads}" for other in range(1, len(model.stages) + 1))
                raise ValueError(
                    f"heads has {head}, but stage {stage} has {count}: choose heads and --stages that fit (the stages"
                    f" have {each} heads)"
                )


def last_ssa(model: ScalableViT, stage: int) -> ScalableSelfAttention:
    """The SSA of the last layer of a stage, from 1."""
    modules = model.stages[stage - 1].modules()
    return [module for module in modules if isinstance(module, ScalableSelfAttention)][-1]


def choose_stages(model: ScalableViT, heads: Sequence[int] | None = None) -> list[int]:
    """The stages to look at, from 1: three, without the last, whose map is coarse; only such as have the heads."""
    count = len(model.stages)
    having = [stage for stage in range(1, count + 1) if last_ssa(model, stage).heads >= max(heads or [1])]
    fine = [stage for stage in having if stage < count]
    return (fine or having)[-3:] or [count]


def _nearest(point: tuple[float, float], stride: int, height: int, width: int) -> int:
    """The position of the map whose centre is nearest to a point of the image."""
    row, column = (min(max(round(place / stride), 0), n - 1) for place, n in zip(point, (height, width), strict=True))
    return row * width + column
