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
        maps: (heads, rows, columns): what each head gives of its attention to each key; the sum over keys is 1.
        points: From where: rows and columns in the image, in pixels, over which `maps` is the mean. Empty: from
            everywhere.
        first: Row and column, in pixels, of the centre of the first key.
        spacing: Pixels from one key to the next.
    """

    stage: int
    heads: tuple[int, ...]
    maps: np.ndarray
    points: tuple[tuple[float, float], ...]
    first: float
    spacing: float

    @property
    def mean(self) -> HeatMap:
        """The mean over the heads."""
        return HeatMap(values=self.maps.mean(0), first=self.first, spacing=self.spacing)


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
        ValueError: If the stage has no such head.
    """
    attention = last_ssa(model, stage)
    heads = range(1, attention.heads + 1) if heads is None else heads
    wrong = [head for head in heads if not 1 <= head <= attention.heads]
    if wrong:
        raise ValueError(f"heads has {wrong[0]}; stage {stage} has heads 1 to {attention.heads}")
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
        maps=maps[[head - 1 for head in heads]],
        points=tuple(points),
        first=stride * (factor - 1) / 2,
        spacing=float(stride * factor),
    )


def last_ssa(model: ScalableViT, stage: int) -> ScalableSelfAttention:
    """The SSA of the last layer of a stage, from 1.

    Raises:
        ValueError: If there is no such stage.
    """
    if not 1 <= stage <= len(model.stages):
        raise ValueError(f"stages has {stage}; the network has stages 1 to {len(model.stages)}")
    modules = model.stages[stage - 1].modules()
    return [module for module in modules if isinstance(module, ScalableSelfAttention)][-1]


def choose_stages(model: ScalableViT) -> list[int]:
    """The stages whose attention tells most, from 1: the first, which sees detail, and the last but one."""
    count = len(model.stages)
    return sorted({1, max(count - 1, 1)})


def _nearest(point: tuple[float, float], stride: int, height: int, width: int) -> int:
    """The position of the map whose centre is nearest to a point of the image."""
    row, column = (min(max(round(place / stride), 0), n - 1) for place, n in zip(point, (height, width), strict=True))
    return row * width + column
