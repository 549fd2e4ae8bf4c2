"""Calls the C++ kernel for patch embeddings (`patches.h`): dense convolutions as products, and the norm behind them.

Axes: b batch, h height, w width, c channels that come in, f that go out, r positions along each side of the kernel.
Maps are (b, h, w, c), contiguous, and of the types and sizes that `scalablevit.patches` has looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from scalablevit.kernels.cpu.calls import BlockCall


def patch_call(
    like: Tensor,
    parameters: Sequence[Tensor | None],
    *,
    map_size: Sequence[int],
    out_size: Sequence[int],
    stride: int,
    padding: int,
    eps: float,
) -> BlockCall:
    """What embeds maps of one size in maps of another.

    Args:
        like: Of the type of the maps.
        parameters: Weight (f, c, r, r) and bias (f) or None; weight (f) and bias (f) of the norm, both None for none.
        map_size: (b, h, w, c).
        out_size: (b, h', w', f).
        stride: Positions between those of the result.
        padding: Zeros around the map.
        eps: Of the norm.
    """
    weight = parameters[0]
    assert weight is not None
    return BlockCall.of(
        "embed_patches",
        like,
        parameters,
        layers=(0,),
        room=-(-weight.numel() * weight.itemsize // like.itemsize),
        sizes=(*map_size, weight.shape[-1], stride, padding, *out_size[1:]),
        factors=(eps,),
    )
