"""What the blocks of a layer are made of, from the norm to the last layer.

Axes: c channels, n heads, d width of a query and key head, d' of a value head, r positions along each side of a cell,
f channels of a hidden layer. All kinds come apart into tensors, whole numbers and factors, which is what an operator of
a graph can take.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

from torch import Tensor


class Layer(NamedTuple):
    """A linear layer, or a convolution."""

    weight: Tensor
    bias: Tensor | None


class Norm(NamedTuple):
    """A LayerNorm over the channels."""

    weight: Tensor
    bias: Tensor
    eps: float


class Reduction(NamedTuple):
    """What makes ``gelu(norm(scaling(cells(x))))`` of a map x.

    Args:
        cells: The depthwise convolution over cells: weight (c, 1, r, r), with a bias.
        scaling: The linear layer that scales channels: (n * d, c).
        norm: The norm behind it.
    """

    cells: Layer
    scaling: Layer
    norm: Norm


class WindowParts(NamedTuple):
    """An attention in windows with LIM.

    Args:
        norm: In front.
        projection: (2 * n * d + n * d', c): queries, keys, values.
        lim: (n * d', 1, 3, 3), or (n * d', n * d', 3, 3) of a dense one; with a bias.
        to_out: (c, n * d').
        heads: n.
        widths: d and d'.
        window_size: In positions; a map that is smaller is one window.
        scale: Factor of the scores.
    """

    norm: Norm
    projection: Layer
    lim: Layer
    to_out: Layer
    heads: int
    widths: tuple[int, int]
    window_size: int
    scale: float

    def is_dense(self) -> bool:
        """Whether LIM reads all channels for each one that it gives."""
        return self.lim.weight.shape[1] != 1

    def tensors(self) -> list[Tensor | None]:
        return [*self.norm[:2], *self.projection, *self.lim, *self.to_out]

    def sizes(self, channels: int) -> list[tuple[int, ...]]:
        """Of the tensors, for a map of so many channels."""
        of_keys, of_values = (self.heads * width for width in self.widths)
        lim = [(of_values, of_values if self.is_dense() else 1, 3, 3), (of_values,)]
        projection, to_out = _layer_sizes(2 * of_keys + of_values, channels), _layer_sizes(channels, of_values)
        return [*_norm_sizes(channels), *projection, *lim, *to_out]

    def numbers(self) -> list[int]:
        return [self.heads, *self.widths, self.window_size]

    def factors(self) -> list[float]:
        return [self.norm.eps, self.scale]

    @classmethod
    def of(cls, tensors: Sequence[Tensor | None], numbers: Sequence[int], factors: Sequence[float]) -> WindowParts:
        norm, projection, lim, to_out = _pairs(tensors)
        heads, key_width, value_width, window_size = numbers
        eps, scale = factors
        widths = key_width, value_width
        return cls(_norm(norm, eps), projection, lim, to_out, heads, widths, window_size, scale)


class ListParts(NamedTuple):
    """An attention to the keys and values of a reduced map.

    Args:
        norm: In front.
        to_query: (n * d, c).
        reduction: What makes the map that keys and values read; None where that is the normed map.
        to_key_value: (n * d + n * d', n * d), or without a reduction (..., r * r * c), which reads cells of the normed
            map: keys, then values.
        to_out: (c, n * d').
        heads: n.
        widths: d and d'.
        factor: r; more than 1 with a reduction.
        scale: Factor of the scores.
    """

    norm: Norm
    to_query: Layer
    reduction: Reduction | None
    to_key_value: Layer
    to_out: Layer
    heads: int
    widths: tuple[int, int]
    factor: int
    scale: float

    def is_dense(self) -> bool:
        """Whether one layer makes keys and values of cells."""
        return self.reduction is None and self.factor > 1

    def tensors(self) -> list[Tensor | None]:
        reduction = self.reduction
        reducing = [None] * 6 if reduction is None else [*reduction.cells, *reduction.scaling, *reduction.norm[:2]]
        return [*self.norm[:2], *self.to_query, *reducing, *self.to_key_value, *self.to_out]

    def sizes(self, channels: int) -> list[tuple[int, ...]]:
        """Of the tensors, for a map of so many channels."""
        of_keys, of_values = (self.heads * width for width in self.widths)
        cells = [(channels, 1, self.factor, self.factor), (channels,)]
        reducing = [*cells, *_layer_sizes(of_keys, channels), *_norm_sizes(of_keys)]
        read = self.factor**2 * channels if self.reduction is None else of_keys
        layers = [*_layer_sizes(of_keys + of_values, read), *_layer_sizes(channels, of_values)]
        return [*_norm_sizes(channels), *_layer_sizes(of_keys, channels), *reducing, *layers]

    def numbers(self) -> list[int]:
        return [self.heads, *self.widths, self.factor]

    def factors(self) -> list[float]:
        return [self.norm.eps, 0.0 if self.reduction is None else self.reduction.norm.eps, self.scale]

    @classmethod
    def of(cls, tensors: Sequence[Tensor | None], numbers: Sequence[int], factors: Sequence[float]) -> ListParts:
        norm, to_query, cells, scaling, inner, to_key_value, to_out = _pairs(tensors)
        heads, key_width, value_width, factor = numbers
        eps, inner_eps, scale = factors
        reduction = None if cells.weight is None else Reduction(cells, scaling, _norm(inner, inner_eps))
        layers, widths = (to_query, reduction, to_key_value, to_out), (key_width, value_width)
        return cls(_norm(norm, eps), *layers, heads, widths, factor, scale)


class FeedForwardParts(NamedTuple):
    """A feed-forward without dropout.

    Args:
        norm: In front.
        first: (f, c), with a bias.
        second: (c, f), likewise.
    """

    norm: Norm
    first: Layer
    second: Layer

    def tensors(self) -> list[Tensor | None]:
        return [*self.norm[:2], *self.first, *self.second]

    def sizes(self, channels: int) -> list[tuple[int, ...]]:
        """Of the tensors, for a map of so many channels."""
        hidden = self.first.weight.shape[0]
        return [*_norm_sizes(channels), *_layer_sizes(hidden, channels), *_layer_sizes(channels, hidden)]

    def numbers(self) -> list[int]:
        return []

    def factors(self) -> list[float]:
        return [self.norm.eps]

    @classmethod
    def of(cls, tensors: Sequence[Tensor | None], numbers: Sequence[int], factors: Sequence[float]) -> FeedForwardParts:
        norm, first, second = _pairs(tensors)
        return cls(_norm(norm, *factors), first, second)


class PositionParts(NamedTuple):
    """A positional encoding: a map plus its convolution.

    Args:
        convolution: (c, 1, 3, 3), with or without a bias.
    """

    convolution: Layer

    def tensors(self) -> list[Tensor | None]:
        return [*self.convolution]

    def sizes(self, channels: int) -> list[tuple[int, ...]]:
        """Of the tensors, for a map of so many channels."""
        return [(channels, 1, 3, 3), (channels,)]

    def numbers(self) -> list[int]:
        return []

    def factors(self) -> list[float]:
        return []

    @classmethod
    def of(cls, tensors: Sequence[Tensor | None], numbers: Sequence[int], factors: Sequence[float]) -> PositionParts:
        return cls(*_pairs(tensors))


BlockParts = WindowParts | ListParts | FeedForwardParts | PositionParts


def _norm_sizes(channels: int) -> list[tuple[int, ...]]:
    return [(channels,), (channels,)]


def _layer_sizes(width: int, channels: int) -> list[tuple[int, ...]]:
    return [(width, channels), (width,)]


def _pairs(tensors: Sequence[Tensor | None]) -> list[Layer]:
    return [Layer(cast(Tensor, tensors[at]), tensors[at + 1]) for at in range(0, len(tensors), 2)]


def _norm(pair: Layer, eps: float) -> Norm:
    return Norm(pair.weight, cast(Tensor, pair.bias), eps)
