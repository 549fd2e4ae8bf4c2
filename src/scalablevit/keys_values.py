"""What makes the keys and values of scalable self-attention, one class for each reduction of the map.

Axes: b batch, h height, w width, c channels, k keys.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from scalablevit.cell_convolutions import CellConv2d
from scalablevit.cells import cut_into_cells, fill_up_to_one_cell
from scalablevit.dot_product import is_eager
from scalablevit.kernels.parts import Reduction
from scalablevit.layers import Linear, PointwiseConv, child_of, is_plain, plain_layer, plain_norm
from scalablevit.norms import normed
from scalablevit.projections import Projection

# One node each in symbolic traces, where sizes are unknown.
torch.fx.wrap("fill_up_to_one_cell")
torch.fx.wrap("cut_into_cells")


class KeysValues(nn.Module):
    """Keys and values of a map: (b, h, w, dim) to (b, k, key_channels) and (b, k, value_channels)."""

    def projection(self) -> Projection | None:
        """The layer that reads the map, `after_projection` being the rest; None if it is not what it was made as."""
        raise NotImplementedError

    def after_projection(self, x: Tensor) -> list[Tensor]:
        raise NotImplementedError


class LinearKeysValues(KeysValues):
    """At full resolution: k = h * w."""

    def __init__(self, dim: int, key_channels: int, value_channels: int, *, bias: bool, **factory: Any) -> None:
        super().__init__()
        self.widths = [key_channels, value_channels]
        self.to_kv = Linear(dim, key_channels + value_channels, bias=bias, **factory)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.after_projection(self.to_kv(x))

    def projection(self) -> Projection | None:
        return Projection(self.to_kv.weight, self.to_kv.bias) if is_plain(self.to_kv) else None

    def after_projection(self, x: Tensor) -> list[Tensor]:
        return x.flatten(1, 2).split(self.widths, dim=-1)


class DenseKeysValues(KeysValues):
    """By one dense convolution with kernel = stride = `reduction_factor`, no bias (vit-pytorch's form).

    The cells under the kernel do not overlap, so that it is a linear layer over cells: faster than a convolution, above
    all backwards, and right in bfloat16 where oneDNN's convolution is not (see docs/log.md).
    """

    def __init__(self, dim: int, key_channels: int, value_channels: int, reduction_factor: int, **factory: Any) -> None:
        super().__init__()
        self.reduction_factor = reduction_factor
        self.widths = [key_channels, value_channels]
        self.to_kv = Linear(reduction_factor**2 * dim, key_channels + value_channels, bias=False, **factory)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = cut_into_cells(fill_up_to_one_cell(x, self.reduction_factor), self.reduction_factor)
        return self.after_projection(self.to_kv(x))

    def projection(self) -> Projection | None:
        layer = self.to_kv
        return Projection(layer.weight, layer.bias, self.reduction_factor) if is_plain(layer) else None

    def after_projection(self, x: Tensor) -> list[Tensor]:
        return x.split(self.widths, dim=-1)


class DepthwiseKeysValues(KeysValues):
    """By a depthwise and a 1x1 convolution, LayerNorm, GELU and a linear layer (the paper's form)."""

    def __init__(
        self, dim: int, key_channels: int, value_channels: int, reduction_factor: int, *, bias: bool, **factory: Any
    ) -> None:
        super().__init__()
        self.reduction_factor = reduction_factor
        self.widths = [key_channels, value_channels]
        self.reduce = CellConv2d(dim, reduction_factor, **factory)
        self.scale_channels = PointwiseConv(dim, key_channels, **factory)
        self.norm = nn.LayerNorm(key_channels, eps=1e-5, **factory)
        self.to_kv = Linear(key_channels, key_channels + value_channels, bias=bias, **factory)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.after_projection(self.reduce(fill_up_to_one_cell(x, self.reduction_factor)))

    def reduction(self) -> Reduction | None:
        """What is done before the last layer; None where that is not as it was made (see `plain_layer`)."""
        reduce = child_of(self, "reduce")
        cells, layer = plain_layer(reduce, CellConv2d), plain_layer(child_of(self, "scale_channels"), PointwiseConv)
        before = plain_norm(child_of(self, "norm"))
        if cells is None or layer is None or before is None or cells.bias is None:
            return None
        return Reduction(cells, layer, before) if reduce.is_over_cells() else None

    def projection(self) -> Projection | None:
        layer = self.reduce
        if not is_plain(layer, CellConv2d) or not layer.is_over_cells():
            return None
        return Projection(layer.weight, layer.bias, layer.cell)

    def after_projection(self, x: Tensor) -> list[Tensor]:
        x = self.scale_channels(x.flatten(1, 2))  # (b, k, c)
        if torch.jit.is_scripting():
            x = self.norm(x)
        else:
            x = normed(self.norm, x) if is_eager(x) and is_plain(self.norm, nn.LayerNorm) else self.norm(x)
        x = F.gelu(x)
        return self.to_kv(x).split(self.widths, dim=-1)
