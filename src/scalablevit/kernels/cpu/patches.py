"""Calls the C++ kernel for patch embeddings (`patches.h`): dense convolutions as products, and the norm behind them.

Axes: b batch, h height, w width, c channels that come in, f that go out, r positions along each side of the kernel.
Maps are (b, h, w, c), contiguous, and of the types and sizes that `scalablevit.patches` has looked at.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from torch import Tensor

from scalablevit.kernels.cpu.calls import BlockCall


def patch_call(
    x: Tensor, parameters: Sequence[Tensor | None], *, stride: int, padding: int, out_size: Sequence[int], eps: float
) -> BlockCall:
    """What embeds maps such as x in maps of `out_size`, (b, h', w', f).

    Args:
        x: The map.
        parameters: Weight (f, c, r, r), in another type than float32 as (f, c * r * r), and bias (f) or None; weight
            (f) and bias (f) of the norm, both None for none.
        stride: Positions between those of the result.
        padding: Zeros around the map.
        out_size: Of the result.
        eps: Of the norm.
    """
    weight = parameters[0]
    assert weight is not None
    kernel = round((weight.numel() // (weight.shape[0] * x.shape[-1])) ** 0.5)
    return BlockCall.of(
        "embed_patches",
        x,
        weight,
        parameters,
        room=-(-weight.numel() * weight.itemsize // x.itemsize),
        sizes=(*x.shape, kernel, stride, padding, *out_size[1:]),
        settings=(ctypes.c_float(eps),),
    )
