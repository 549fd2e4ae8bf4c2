"""The two attentions of ScalableViT: over a reduced map (SSA) and inside windows (IWSA).

Axes: b batch, h height, w width, c channels, n heads, q queries, k keys, d width of a head. Both attentions take a
normalised map (b, h, w, c) and give one of the same shape; norm, residual and drop-path are the layer's.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.fx
from torch import Tensor, nn

from scalablevit.blocks import attend_at_once, attend_in_graph
from scalablevit.convolutions import MapConv2d
from scalablevit.design import Design
from scalablevit.dot_product import attend, is_exporting, is_traced, merge_heads, split_heads
from scalablevit.dropping import probability_of
from scalablevit.interactive_windows import interactive_window_attention
from scalablevit.kernels.parts import ListParts, WindowParts
from scalablevit.kernels.selection import is_wanted, takes_lim, windows_kernel
from scalablevit.keys_values import DenseKeysValues, DepthwiseKeysValues, KeysValues, LinearKeysValues
from scalablevit.layers import Branch, Linear, child_of, is_plain, is_plain_with, linear, plain_layer, plain_norm
from scalablevit.linear_in_graphs import normed_linear_in_graph
from scalablevit.norms import normed
from scalablevit.projections import Projection, is_worthwhile, normed_projections
from scalablevit.recomputation import norm_of
from scalablevit.residual_stream import add_projected, normed_linear
from scalablevit.windows import window_attention

# One node each in symbolic traces, where sizes are unknown.
torch.fx.wrap("attend")
torch.fx.wrap("window_attention")


class ScalableSelfAttention(Branch):
    """Scalable Self-Attention (SSA; arXiv:2203.10790, section 3.2).

    Queries at full resolution attend to keys and values that are reduced in space by `reduction_factor`, with heads
    whose width for queries and keys, `dim_key`, is free. Where the map is no multiple of the reduction factor the
    border cells carry no keys, as in both published forms; a map smaller than it is filled with zeros.

    Args:
        dim: Channels of the map.
        heads: Number of heads.
        dim_key: Width of a query and key head; the scores are scaled by ``dim_key ** -0.5``.
        dim_value: Width of a value head.
        reduction_factor: How many positions, along each axis, become one key.
        dropout: Probability that an output is zeroed, in training.
        attention_dropout: Probability that an attention weight is zeroed, in training.
        design: Chooses the reduction of keys and values, and whether projections have a bias.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        dim_key: int,
        dim_value: int,
        reduction_factor: int,
        dropout: float,
        attention_dropout: float,
        design: Design,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.scale = dim_key**-0.5
        self.attention_dropout = float(attention_dropout)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.to_q = Linear(dim, heads * dim_key, bias=design.qkv_bias, **factory)
        widths = (heads * dim_key, heads * dim_value)
        self.keys_values: KeysValues
        if reduction_factor == 1:
            self.keys_values = LinearKeysValues(dim, *widths, bias=design.qkv_bias, **factory)
        elif design.keys_values == "dense":
            self.keys_values = DenseKeysValues(dim, *widths, reduction_factor, **factory)
        else:
            self.keys_values = DepthwiseKeysValues(dim, *widths, reduction_factor, bias=design.qkv_bias, **factory)
        self.to_out = Linear(heads * dim_value, dim, **factory)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.to_out(self._attend(self.to_q(x), self.keys_values(x))))

    def forward_after(self, norm: nn.LayerNorm, x: Tensor, *, residual: bool) -> Tensor:
        parts = self.parts_after(norm)
        out = None if parts is None else attend_at_once(x, parts, residual=residual)
        if out is not None:
            return out
        # Nothing is kept for a backward pass where none can come.
        parameters, projections = (norm_of(norm), self._projections()) if torch.is_grad_enabled() else (None, None)
        if parameters is None or projections is None or not is_worthwhile(x, parameters, projections):
            read = normed(norm, x)
            attended = self._attend(self.to_q(read), self.keys_values(read))
        else:
            x, query, projected = normed_projections(x, parameters, projections)
            attended = self._attend(query, self.keys_values.after_projection(projected))
        return add_projected(x if residual else None, self.to_out, self.dropout, attended)

    def compiled_after(self, norm: nn.LayerNorm, x: Tensor, *, residual: bool) -> Tensor:
        parts = self.parts_after(norm) if residual and x.device.type == "cpu" else None
        out = None if parts is None else attend_in_graph(x, parts)
        if out is not None:
            return out
        read = norm(x)
        attended = self._attend(self.to_q(read), self.keys_values(read))
        return add_projected(x if residual else None, self.to_out, self.dropout, attended)

    def parts_after(self, norm: nn.LayerNorm) -> ListParts | None:
        before, reduction, factor, heads = plain_norm(norm), None, 1, self.heads
        keys_values, dropout = child_of(self, "keys_values"), child_of(self, "dropout")
        if isinstance(keys_values, DepthwiseKeysValues) and is_plain(keys_values, DepthwiseKeysValues):
            reduction, factor = keys_values.reduction(), keys_values.reduction_factor
            if reduction is None:
                return None
        elif isinstance(keys_values, DenseKeysValues) and is_plain(keys_values, DenseKeysValues):
            factor = keys_values.reduction_factor
        elif not isinstance(keys_values, LinearKeysValues) or not is_plain(keys_values, LinearKeysValues):
            return None
        to_q, to_kv = plain_layer(child_of(self, "to_q")), plain_layer(child_of(keys_values, "to_kv"))
        to_out = plain_layer(child_of(self, "to_out"))
        if before is None or to_q is None or to_kv is None or to_out is None or not is_plain(dropout, nn.Dropout):
            return None
        if probability_of(dropout) > 0.0 or (self.training and self.attention_dropout > 0.0):
            return None
        of_keys, of_values = keys_values.widths
        widths = of_keys // heads, of_values // heads
        return ListParts(before, to_q, reduction, to_kv, to_out, heads, widths, factor, self.scale)

    def _projections(self) -> list[Projection] | None:
        """The two layers that read the norm; None where one is not just what it was made as."""
        if not is_plain(self.to_q) or not is_plain_with(self.keys_values, "projection"):
            return None
        reading = self.keys_values.projection()
        return None if reading is None else [Projection(self.to_q.weight, self.to_q.bias), reading]

    def _attend(self, query_map: Tensor, key_value: list[Tensor]) -> Tensor:
        """The map of queries, keys (b, k, n*d) and values (b, k, n*d') to those attended to (b, h, w, n*d')."""
        query = split_heads(query_map.flatten(1, 2), self.heads)  # (b, n, h*w, d)
        key, value = split_heads(key_value[0], self.heads), split_heads(key_value[1], self.heads)
        dropout = self.attention_dropout if self.training else 0.0
        out = merge_heads(attend(query, key, value, scale=self.scale, dropout=dropout))  # (b, h*w, n*d')
        return out.unflatten(1, (query_map.shape[1], query_map.shape[2]))


class InteractiveWindowedSelfAttention(Branch):
    """Interactive Windowed Self-Attention (IWSA; arXiv:2203.10790, section 3.3).

    Attention inside windows, plus the Local Interactive Module (LIM): a 3x3 convolution over the whole value map, which
    carries information across the borders of the windows.

    Args:
        dim: Channels of the map.
        heads: Number of heads.
        dim_key: Width of a query and key head; the scores are scaled by ``dim_key ** -0.5``.
        dim_value: Width of a value head.
        window_size: Height and width of a window, in positions; None for one window over the whole map.
        dropout: Probability that an output is zeroed, in training.
        attention_dropout: Probability that an attention weight is zeroed, in training.
        design: Chooses LIM's convolution, and whether the projection has a bias.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        dim_key: int,
        dim_value: int,
        window_size: int | None,
        dropout: float,
        attention_dropout: float,
        design: Design,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        value_channels = heads * dim_value
        self.widths = [2 * heads * dim_key, value_channels]
        self.to_qkv = Linear(dim, 2 * heads * dim_key + value_channels, bias=design.qkv_bias, **factory)
        self.attention: nn.Module
        if window_size is None:
            self.attention = WholeMapAttention(heads, dim_key, attention_dropout)
        else:
            self.attention = WindowAttention(heads, dim_key, attention_dropout, window_size)
        groups = value_channels if design.lim == "depthwise" else 1
        self.lim = MapConv2d(value_channels, value_channels, 3, padding=1, groups=groups, **factory)
        self.to_out = Linear(value_channels, dim, **factory)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        query_key, value = self._project(x)
        return self.dropout(self.to_out(self._attend_and_interact(query_key, value)))

    def forward_after(self, norm: nn.LayerNorm, x: Tensor, *, residual: bool) -> Tensor:
        parts = self.parts_after(norm)
        out = None if parts is None else attend_at_once(x, parts, residual=residual)
        if out is not None:
            return out
        parameters, projections = (norm_of(norm), self._projections()) if torch.is_grad_enabled() else (None, None)
        if parameters is None or not projections or not is_worthwhile(x, parameters, projections):
            layer = self.to_qkv
            found = normed_linear(norm, x, layer.weight, layer.bias, self.widths) if is_plain(layer) else None
            query_key, value = self._project(normed(norm, x)) if found is None else found
        else:
            x, query_key, value = normed_projections(x, parameters, projections)
        attended = self._attend_and_interact(query_key, value)
        return add_projected(x if residual else None, self.to_out, self.dropout, attended)

    def compiled_after(self, norm: nn.LayerNorm, x: Tensor, *, residual: bool) -> Tensor:
        parts = self.parts_after(norm) if residual and x.device.type == "cpu" else None
        out = None if parts is None else attend_in_graph(x, parts)
        if out is not None:
            return out
        before, layer, found = norm_of(norm), self.to_qkv, None
        if before is not None and is_plain(layer):
            found = normed_linear_in_graph(x, before, layer.weight, layer.bias, self.widths)
        query_key, value = self._project(norm(x)) if found is None else found
        attended = self._attend_and_interact(query_key, value)
        return add_projected(x if residual else None, self.to_out, self.dropout, attended)

    def parts_after(self, norm: nn.LayerNorm) -> WindowParts | None:
        before, attention, dropout = plain_norm(norm), child_of(self, "attention"), child_of(self, "dropout")
        convolution = child_of(self, "lim")
        if not isinstance(attention, WindowAttention) or not is_plain(attention, WindowAttention) or before is None:
            return None
        to_qkv, to_out = plain_layer(child_of(self, "to_qkv")), plain_layer(child_of(self, "to_out"))
        lim = plain_layer(convolution, MapConv2d)
        if to_qkv is None or to_out is None or lim is None or not is_plain(dropout, nn.Dropout):
            return None
        if lim.bias is None or not (convolution.is_depthwise_3x3() or convolution.is_dense_3x3()):
            return None
        if (attention.training and attention.attention_dropout > 0.0) or probability_of(dropout) > 0.0:
            return None
        heads = attention.heads
        widths = self.widths[0] // (2 * heads), self.widths[1] // heads
        return WindowParts(before, to_qkv, lim, to_out, heads, widths, attention.window_size, attention.scale)

    def _projections(self) -> list[Projection] | None:
        """One product for queries and keys and one for values, as in `split_linear`; None if an adapter wants a say."""
        if not is_plain(self.to_qkv):
            return None
        weights = self.to_qkv.weight.split(self.widths)
        biases = (None, None) if self.to_qkv.bias is None else self.to_qkv.bias.split(self.widths)
        return [Projection(weight, bias) for weight, bias in zip(weights, biases, strict=True)]

    def _attend_and_interact(self, query_key: Tensor, value: Tensor) -> Tensor:
        """Attention plus LIM: (b, h, w, n * 2 * d) and (b, h, w, n * d') to (b, h, w, n * d')."""
        if torch.jit.is_scripting():
            return self.attention(query_key, value) + self.lim(value)
        else:
            attention, lim = self.attention, self.lim
            if isinstance(attention, WindowAttention) and runs_as_one(attention, lim, query_key, value):
                parameters = lim.weight, cast(Tensor, lim.bias)
                return interactive_window_attention(
                    query_key, value, *parameters, attention.heads, attention.window_size, attention.scale
                )
            return attention(query_key, value) + lim(value)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if torch.jit.is_scripting():
            return split_linear(x, self.to_qkv.weight, self.to_qkv.bias, self.widths)
        else:
            if is_plain(self.to_qkv):
                return split_linear(x, self.to_qkv.weight, self.to_qkv.bias, self.widths)
            query_key, value = self.to_qkv(x).split(self.widths, dim=-1)
            return query_key, value


def split_linear(x: Tensor, weight: Tensor, bias: Tensor | None, widths: list[int]) -> tuple[Tensor, Tensor]:
    """The product of `linear` in two parts of so many channels, each in memory of its own, as convolutions want it."""
    first, second = weight.split(widths)
    if bias is None:
        return linear(x, first, None), linear(x, second, None)
    first_bias, second_bias = bias.split(widths)
    return linear(x, first, first_bias), linear(x, second, second_bias)


torch.fx.wrap("split_linear")


class WindowAttention(nn.Module):
    """`window_attention` as a module: (b, h, w, n * 2 * d) and (b, h, w, n * d') to (b, h, w, n * d')."""

    def __init__(self, heads: int, dim_key: int, attention_dropout: float, window_size: int) -> None:
        super().__init__()
        self.heads = heads
        self.window_size = window_size
        self.attention_dropout = float(attention_dropout)
        self.scale = dim_key**-0.5

    def forward(self, query_key: Tensor, value: Tensor) -> Tensor:
        dropout = self.attention_dropout if self.training else 0.0
        return window_attention(query_key, value, self.heads, self.window_size, self.scale, dropout)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, window_size={self.window_size}"


class WholeMapAttention(nn.Module):
    """Attention of every position to every other: (b, h, w, n * 2 * d) and (b, h, w, n * d') to (b, h, w, n * d')."""

    def __init__(self, heads: int, dim_key: int, attention_dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_dropout = float(attention_dropout)
        self.scale = dim_key**-0.5

    def forward(self, query_key: Tensor, value: Tensor) -> Tensor:
        query, key = query_key.flatten(1, 2).split(query_key.shape[-1] // 2, dim=-1)
        query, key, flat_value = (split_heads(t, self.heads) for t in (query, key, value.flatten(1, 2)))
        dropout = self.attention_dropout if self.training else 0.0
        out = merge_heads(attend(query, key, flat_value, self.scale, dropout))
        return out.unflatten(1, (value.shape[1], value.shape[2]))

    def extra_repr(self) -> str:
        return f"heads={self.heads}, window_size=None"


def runs_as_one(attention: WindowAttention, lim: MapConv2d, query_key: Tensor, value: Tensor) -> bool:
    """Whether one kernel does both attention and LIM."""
    if not isinstance(value, Tensor) or not is_wanted(
        value.device
    ):  # a symbolic trace of torch.fx comes with no tensors
        return False
    if not (is_plain(attention, WindowAttention) and is_plain(lim, MapConv2d) and takes_lim(lim.weight, lim.bias)):
        return False
    if (attention.training and attention.attention_dropout > 0.0) or torch.jit.is_tracing() or is_exporting():
        return False
    if is_traced():
        return True  # the operator decides, so that no size is guarded
    return windows_kernel(query_key, value, attention.heads, attention.window_size) is not None
