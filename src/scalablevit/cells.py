"""Maps cut into cells, each of which becomes one key and one value.

Axes: b batch, h height, w width, c channels, r positions along each side of a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from scalablevit.dot_product import is_exporting, is_traced
from scalablevit.windows import partition


def fill_up_to_one_cell(x: Tensor, reduction_factor: int) -> Tensor:
    """Zeros at the bottom and right of a map (b, h, w, c) that is smaller than the reduction factor, up to its size."""
    height, width = _at_least_zero(reduction_factor - x.shape[1]), _at_least_zero(reduction_factor - x.shape[2])
    if is_exporting() or height > 0 or width > 0:
        x = F.pad(x, [0, 0, 0, width, 0, height])
    return x


def cut_into_cells(x: Tensor, reduction_factor: int) -> Tensor:
    """(b, h, w, c) to (b, cells, r * r * c): the positions of a cell side by side, row by row. Borders are dropped."""
    b, h, w, c = x.shape
    if is_traced() or h % reduction_factor > 0 or w % reduction_factor > 0:
        x = F.pad(x, [0, 0, 0, -(w % reduction_factor), 0, -(h % reduction_factor)])  # a negative padding crops
    cells = (h // reduction_factor) * (w // reduction_factor)
    return partition(x, reduction_factor, reduction_factor).reshape(b, cells, reduction_factor * reduction_factor * c)


def map_of_cells(cells: Tensor, shape: Sequence[int], reduction_factor: int) -> Tensor:
    """Cells as `cut_into_cells` gives them, of whatever shape, back in their places of a map of `shape`.

    Zeros where borders were dropped.
    """
    (b, h, w, c), r = shape, reduction_factor
    rows, columns = h // r, w // r
    cells = cells.view(b, rows, columns, r, r, c).transpose(2, 3).reshape(b, rows * r, columns * r, c)
    return F.pad(cells, [0, 0, 0, w % r, 0, h % r]) if h % r or w % r else cells


def _at_least_zero(count: int) -> int:
    if torch.jit.is_scripting():
        return max(count, 0)
    elif is_exporting():
        return cast(int, torch.sym_max(count, 0))  # a symbol
    elif torch.jit.is_tracing():
        return max(int(count), 0)  # a TorchScript trace is of the example's size
    else:
        return max(count, 0)
