"""What the Triton kernels take. Nothing here imports triton.

Axes: b batch, h height, w width, n heads, q queries, k keys, d width of a query and key head, d' of a value head.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from scalablevit.kernels.recording import is_transformed
from scalablevit.kernels.switches import choices

# How many tokens a window and how many channels a head may have, one pair or another. All scores of a window lie in
# registers, twice in the backward pass, and float32 takes more of them: up to here nothing spills, in half precision
# from compute capability 8.0 on, in float32 on 9.0 (tests/kernels/test_compiled.py). 121 tokens (11x11) are 128 with
# padding; the scores of 256 (16x16) would be all the registers that a multiprocessor has.
_HALF = ((64, 64), (128, 32))
LIMITS = {torch.float32: ((64, 32),), torch.bfloat16: _HALF, torch.float16: _HALF}

# Lists of keys (49 are 64 with padding) and their heads, in half precision only: in float32 the backward kernel, which
# keeps the sums for keys and values as well, spills everywhere.
MAX_KEYS = 64
MAX_LIST_WIDTH = 64
LIST_DTYPES = (torch.bfloat16, torch.float16)


def takes_windows(query_key: Tensor, value: Tensor, heads: int, window_size: int) -> bool:
    """Whether the Triton window attention kernels run on (b, h, w, 2 * n * d) and (b, h, w, n * d')."""
    if not (choices["triton"] is True and _can_run(query_key, value)):
        return False
    height, width = value.shape[1:3]
    tokens = min(window_size, height) * min(window_size, width)
    head_width = max(query_key.shape[-1] // 2, value.shape[-1]) // heads
    fits = any(tokens <= most and head_width <= widest for most, widest in LIMITS[value.dtype])
    # Offsets inside an image are of 32 bits.
    return fits and max(query_key.shape[-1], value.shape[-1]) * height * width < 2**31


def takes_lists(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the Triton short attention kernels run on (b, n, q, d), (b, n, k, d) and (b, n, k, d')."""
    if not (choices["triton"] is True and _can_run(query, key, value)) or value.dtype not in LIST_DTYPES:
        return False
    return 0 < key.shape[2] <= MAX_KEYS and max(query.shape[-1], value.shape[-1]) <= MAX_LIST_WIDTH


def _can_run(*tensors: Tensor) -> bool:
    first = tensors[0]
    if first.dtype not in LIMITS or any(x.dtype != first.dtype or x.device != first.device for x in tensors):
        return False
    if is_transformed() or not has_triton():
        return False
    if os.environ.get("TRITON_INTERPRET") == "1":  # triton's own variable: its kernels run on the CPU, for tests
        return True
    if not first.is_cuda or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(first.device) >= (8, 0)


@cache
def has_triton() -> bool:
    """Whether it is installed."""
    return find_spec("triton") is not None
