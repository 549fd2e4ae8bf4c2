"""What the windows of an IWSA keep to themselves, and what LIM carries across their borders.

The content of one window is blanked: each of its positions becomes the mean of the map. How much what the block gives
changes, there and elsewhere, is what the window has a say in: with LIM, and with LIM left out.

Axes: b batch, here 1; h height, w width of the map, c channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scalablevit.attention import InteractiveWindowedSelfAttention, WindowAttention
from scalablevit.explanation.forward_pass import ForwardPass, evaluating
from scalablevit.explanation.lattice import HeatMap
from scalablevit.scalable_vit import ScalableViT

ENOUGH_WINDOWS = 3  # along each axis: a window with neighbours on all sides, if it is not at the border


@dataclass(frozen=True, kw_only=True)
class WindowInfluence:
    """What one window of the last IWSA of a stage has a say in.

    Args:
        stage: Which stage, from 1.
        window_size: Height and width of a window, in positions.
        window: The window's first and last row, then column; the last ones are not in it.
        with_lim: (h, w), how much what the block gives changes when the window is blanked: the length of the
            difference over the channels.
        without_lim: The same of the block with LIM left out.
    """

    stage: int
    window_size: int
    window: tuple[int, int, int, int]
    with_lim: HeatMap
    without_lim: HeatMap


def find_influence(
    model: ScalableViT, passed: ForwardPass, stage: int, point: tuple[float, float]
) -> WindowInfluence | None:
    """What the window around a point of the image, row and column in pixels, has a say in.

    Returns:
        None if the stage has no windows, or a single one.
    """
    block = last_iwsa(model, stage)
    x = passed.inputs[block]
    _, height, width, _ = x.shape
    if not isinstance(block.attention, WindowAttention) or max(height, width) <= block.attention.window_size:
        return None
    size, stride = block.attention.window_size, model.feature_info[stage - 1]["reduction"]
    row, column = (
        min(max(round(place / stride), 0), n - 1) // size * size
        for place, n in zip(point, (height, width), strict=True)
    )
    window = (row, min(row + size, height), column, min(column + size, width))
    changes = [
        HeatMap(values=change.float().cpu().numpy(), first=0.0, spacing=stride)
        for change in window_changes(model, block, x, window)
    ]
    return WindowInfluence(stage=stage, window_size=size, window=window, with_lim=changes[0], without_lim=changes[1])


@torch.no_grad()
def window_changes(
    model: ScalableViT, block: InteractiveWindowedSelfAttention, x: Tensor, window: tuple[int, int, int, int]
) -> tuple[Tensor, Tensor]:
    """How much each position, (h, w), changes when a window of x, (1, h, w, c), is blanked: with LIM, without."""
    top, bottom, left, right = window
    blanked = x.clone()
    blanked[:, top:bottom, left:right] = x.mean((1, 2))
    with evaluating(model):
        whole, without = (
            (interact(block, x, lim=lim) - interact(block, blanked, lim=lim)).norm(dim=-1)[0] for lim in (True, False)
        )
    return whole, without


def interact(block: InteractiveWindowedSelfAttention, x: Tensor, *, lim: bool) -> Tensor:
    """What the block gives for the map x, (b, h, w, c), with LIM or without; by its own modules."""
    query_key, value = block._project(x)
    attended = block.attention(query_key, value)
    return block.dropout(block.to_out(attended + block.lim(value) if lim else attended))


def last_iwsa(model: ScalableViT, stage: int) -> InteractiveWindowedSelfAttention:
    """The IWSA of the last layer of a stage, from 1."""
    modules = model.stages[stage - 1].modules()
    return [module for module in modules if isinstance(module, InteractiveWindowedSelfAttention)][-1]


def choose_window_stage(model: ScalableViT, passed: ForwardPass) -> int | None:
    """The stage, from 1, with the fewest windows of those with 3 along each axis; else that with most, if several."""
    counts = {}
    for stage in range(1, len(model.stages) + 1):
        attention = last_iwsa(model, stage).attention
        height, width = passed.maps[stage - 1].shape[1:3]
        if isinstance(attention, WindowAttention) and max(height, width) > attention.window_size:
            counts[stage] = (-(-height // attention.window_size), -(-width // attention.window_size))
    many = [stage for stage, count in counts.items() if min(count) >= ENOUGH_WINDOWS]
    return many[-1] if many else min(counts, default=None)
