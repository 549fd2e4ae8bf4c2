"""Triton kernels for NVIDIA GPUs, behind the operators that run without them, too.

    scalablevit.kernels.use_triton(True)  # wherever they can run; False: nowhere; "auto": where known to be faster

`selection` says what runs where and imports no triton; the other modules hold kernels and do.
"""

from scalablevit.kernels.selection import use_triton

__all__ = ["use_triton"]
