"""Kernels of our own behind the operators, which run without them, too: native ones for CPUs, Triton ones for GPUs.

    scalablevit.kernels.use_native(False)  # nowhere; True: wherever they can run; "auto": where they are faster
    scalablevit.kernels.use_triton(True)

`selection` says what runs where; the other modules hold kernels, and are imported when one is about to run.
"""

from scalablevit.kernels.selection import use_native, use_triton

__all__ = ["use_native", "use_triton"]
