"""Maps for the kernels, and what they must give: attention in plain loops, and derivatives in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from scalablevit.windows import _attend_in_windows
from tests.networks import attend_in_loops

TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 1.5e-3}  # of the largest number


@dataclass(frozen=True, kw_only=True)
class Case:
    """Sizes of a call: a map of `height` x `width`, and what the kernels are compiled for."""

    height: int
    width: int
    window_size: int
    heads: int = 2
    key_width: int = 3
    value_width: int = 2
    batch: int = 2

    def maps(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Queries and keys, values, and a gradient of the result."""
        torch.manual_seed(0)
        widths = (2 * self.heads * self.key_width, self.heads * self.value_width, self.heads * self.value_width)
        return [torch.randn(self.batch, self.height, self.width, width).to(dtype) for width in widths]

    def lim(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Weight and bias of LIM."""
        channels = self.heads * self.value_width
        return torch.randn(channels, 1, 3, 3).to(dtype), torch.randn(channels).to(dtype)

    @property
    def arguments(self) -> tuple[int, int, float]:
        return self.heads, self.window_size, self.key_width**-0.5


CASES = [
    Case(height=8, width=8, window_size=4, batch=1),
    Case(height=7, width=5, window_size=4),  # windows stick out on both sides
    Case(height=1, width=1, window_size=7),
    Case(height=3, width=9, window_size=4, batch=1),  # a map lower than its window
    Case(
        height=9, width=8, window_size=7, heads=1, key_width=5, value_width=17, batch=1
    ),  # 49 tokens, wider than a block
    Case(height=5, width=12, window_size=11, key_width=1, value_width=1, batch=1),  # 55 tokens
]


def windows_in_loops(query_key: Tensor, value: Tensor, heads: int, window_size: int, scale: float) -> Tensor:
    """Attention of every window, cut out by hand, of whatever size is left at the border; float64."""
    query_key, value = query_key.double(), value.double()
    out = torch.empty_like(value)
    for image in range(value.shape[0]):
        for top in range(0, value.shape[1], window_size):
            for left in range(0, value.shape[2], window_size):
                rows, columns = slice(top, top + window_size), slice(left, left + window_size)
                window = value[image, rows, columns]
                query, key = query_key[image, rows, columns].flatten(0, 1).chunk(2, dim=-1)
                heads_of = (x.chunk(heads, dim=-1) for x in (query, key, window.flatten(0, 1)))
                found = [attend_in_loops(q, k, v, scale) for q, k, v in zip(*heads_of, strict=True)]
                out[image, rows, columns] = torch.cat(found, dim=-1).view(window.shape)
    return out


def lim_in_loops(value: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LIM, number by number: what is outside the map counts nothing; float64."""
    b, h, w, _ = value.shape
    out = bias.double().repeat(b, h, w, 1)
    for row in range(h):
        for column in range(w):
            for down in (-1, 0, 1):
                for right in (-1, 0, 1):
                    if 0 <= row + down < h and 0 <= column + right < w:
                        factor = weight[:, 0, down + 1, right + 1].double()
                        out[:, row, column] += factor * value[:, row + down, column + right].double()
    return out


def gradients(maps: list[Tensor], lim: tuple[Tensor, Tensor] | None, arguments: tuple[int, int, float]) -> list[Tensor]:
    """Of queries and keys, values, and LIM's parameters if there are any: by PyTorch's autograd, in float64."""
    *inputs, grad = (x.double() for x in maps)
    inputs += [x.double() for x in lim or ()]
    inputs = [x.requires_grad_() for x in inputs]
    out = _attend_in_windows(*inputs[:2], *arguments, 0.0)
    if lim is not None:
        conv = F.conv2d(inputs[1].permute(0, 3, 1, 2), *inputs[2:], padding=1, groups=lim[1].numel())
        out = out + conv.permute(0, 2, 3, 1)
    return list(torch.autograd.grad(out, inputs, grad))


def assert_near(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Every element within the dtype's tolerance, which is relative to the largest number there is."""
    assert found.dtype == dtype
    assert found.shape == expected.shape
    largest = max(float(expected.detach().abs().max()), 1e-2)
    difference = float((found.detach().double() - expected.detach()).abs().max())
    assert difference <= TOLERANCES[dtype] * largest, f"{difference / largest:.1e} of the largest number"
    assert not math.isnan(difference)


def assert_no_matter_of_threads(results: Callable[[], Sequence[Tensor]]) -> None:
    """The same bits from one to three threads."""
    threads, expected = torch.get_num_threads(), results()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert all(torch.equal(*pair) for pair in zip(results(), expected, strict=True))
    finally:
        torch.set_num_threads(threads)


def amid_poison(x: Tensor) -> Tensor:
    """The same map as a part of a larger one that is NaN around it, in batch, height, width and channels."""
    b, h, w, c = x.shape
    storage = torch.full((2 * b, h + 5, w + 3, c + 7), float("nan"), dtype=x.dtype)
    part = storage[::2, 2 : h + 2, 1 : w + 1, 4 : c + 4]
    return part.copy_(x)
