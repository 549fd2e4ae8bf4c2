"""Which kernels run where: the two switches, what the kernels take, and where they are known to be faster.

Axes: b batch, h height, w width, n heads, q queries, k keys, d width of a query and key head, d' of a value head.
Nothing here imports triton or compiles anything; the modules that hold kernels do, when one is about to run.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from scalablevit.kernels.recording import is_transformed
from scalablevit.kernels.switches import Choice, Restoration, choices, choose
from scalablevit.kernels.triton_selection import has_triton, takes_lists, takes_windows

# Keys of a window or a list up to which the native kernels are faster than PyTorch's fused attention on a CPU. A thread
# takes whole windows, of which there are few where they are large, but parts of lists.
MAX_NATIVE_KEYS = 256
MAX_NATIVE_LIST = {torch.float32: 2**16, torch.bfloat16: MAX_NATIVE_KEYS}
NATIVE_DTYPES = (torch.float32, torch.bfloat16)

MAX_NATIVE_CHANNELS = 384  # of a dense convolution: transforming the weight takes longer than is saved from there on
_FEWEST_CHANNELS = 32  # of a convolution, that fill the vectors of its kernels
# Rows and columns of a product in float32 that are worth cutting the numbers of both sides for tiles, and of one with
# sums so long that threads take parts of those.
_FEWEST_LINES, _FEWEST_LINES_OF_LONG_SUM, _LONG_SUM = 96, 64, 1024
# Rows of a product in float32 that are worth packing the other side for vectors, rows and columns with long sums, and
# rows where vectors are of fewer than 16 numbers.
_FEWEST_ROWS, _FEWEST_LINES_ON_VECTORS, _FEWEST_ROWS_ON_SHORT_VECTORS = 256, 48, 4096

_PLAIN_TENSORS = Tensor, torch.nn.Parameter


def use_triton(choice: Choice) -> Restoration:
    """Switches the Triton kernels on or off, for the whole process.

    What a kernel does not take runs as ever, through PyTorch's scaled_dot_product_attention, whatever the choice. The
    kernels take tensors of one dtype on NVIDIA GPUs of compute capability 8.0 and above, without attention dropout:

    - windows in bfloat16 or float16 of up to 64 positions (8x8) with heads up to 64 wide, or 128 (11x11) and 32; in
      float32 of up to 64 positions with heads up to 32 wide; LIM in the same kernel where it is depthwise;
    - up to 64 keys of any number of queries, in bfloat16 or float16, with heads up to 64 wide.

    They have first derivatives in reverse mode only. Under `torch.func` PyTorch's path runs.

        scalablevit.kernels.use_triton(True)  # from here on
        with scalablevit.kernels.use_triton(True):  # only inside
            logits = model(images)

    Args:
        choice: True for wherever they can run; False for nowhere; "auto", the default, for where they are known to
            be faster.

    Returns:
        An object that restores the choice before when it is used as a context manager.

    Raises:
        ValueError: If `choice` is none of the three.
        ImportError: If `choice` is True and triton is not installed.
    """
    if choice is True and not has_triton():
        raise ImportError("triton is not installed: pip install triton, or leave the choice at 'auto'")
    return choose("triton", choice)


def use_native(choice: Choice) -> Restoration:
    """Switches the native kernels for CPUs on or off, for the whole process.

    They are C++, compiled for the machine's own processor when they are first wanted, which takes some seconds, and
    kept in the user's cache folder. They take float32 and bfloat16: attention in windows of up to 256 positions and to
    lists of as many keys, in float32 or with dropout of 65,536; products, and what the feed-forward does beside them;
    norms; depthwise 3x3 convolutions; sums of gradients; dropout outside of compiled graphs; in float32 dense 3x3
    convolutions. Layers in float32 on a matrix unit turn infinity into NaN, and are slower than PyTorch's where others
    keep that unit busy. What they do not take, and everything where no compiler is found, runs through PyTorch. Those
    of attention have first derivatives in reverse mode only, like the Triton kernels. Under one seed kernels and
    PyTorch drop different elements: checkpointing wants one choice for both passes.

        scalablevit.kernels.use_native(False)  # from here on
        with scalablevit.kernels.use_native(False):  # only inside
            logits = model(images)

    Args:
        choice: True for wherever they can run; False for nowhere; "auto", the default, for where they are faster:
            layers on processors with a matrix unit (Intel's AMX), on AMD's, and, in bfloat16, on any of x86-64 without
            AVX-512; dense convolutions with AVX-512 and on AMD's; all else everywhere.

    Returns:
        An object that restores the choice before when it is used as a context manager.

    Raises:
        ValueError: If `choice` is none of the three.
        RuntimeError: If `choice` is True and the kernels cannot be compiled; the log says why.
    """
    if choice is True and not _has_library():
        raise RuntimeError("the native kernels cannot be compiled here; install g++, or leave the choice at 'auto'")
    return choose("native", choice)


def is_wanted(device: torch.device) -> bool:
    """Whether kernels are wanted, whatever the tensors; what `torch.compile` may ask without guards on them.

    "auto" means where they are measured to be faster. THIS is the place that says where. The native kernels are, on
    CPUs (docs/performance.md). Of the Triton kernels nothing has been measured on a GPU, so for them it means nowhere.
    benchmarks/gpu_kernels.py makes the figures.
    """
    if choices["triton"] is True:
        return True
    return device.type == "cpu" and choices["native"] is not False and _has_library()


def multiplies_any_rows(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether native products of a type run however few rows there are; no question of tensors, so for compilers."""
    if device.type != "cpu" or dtype not in NATIVE_DTYPES:
        return False
    if choices["native"] is False or choices["triton"] is True:
        return False
    fewest = _fewest_rows(dtype)
    return fewest == 1 or (fewest > 0 and choices["native"] is True)


def multiplies_in_graphs(device: torch.device, dtype: torch.dtype, *, recorded: bool) -> bool:
    """Likewise, where compiled graphs had better call them layer by layer than PyTorch's, with gradients or without.

    What an operator gives is new memory, and the compiler uses its own again: without gradients that is worth more than
    products that are no faster than PyTorch's, as those on divided vectors are (docs/log.md).
    """
    if not multiplies_any_rows(device, dtype):
        return False
    return recorded or choices["native"] is True or _has_tiles() or _has_undivided_vectors()


def windows_kernel(query_key: Tensor, value: Tensor, heads: int, window_size: int) -> Any:
    """The module whose `attend_in_windows` takes these maps; None if none does."""
    if query_key.ndim != 4 or value.ndim != 4:
        return None  # PyTorch says what is wrong
    if takes_windows(query_key, value, heads, window_size):
        return _module("scalablevit.kernels.window_attention")
    keys = min(window_size, value.shape[1]) * min(window_size, value.shape[2])
    return _native(keys, query_key, value)


def lists_kernel(query: Tensor, key: Tensor, value: Tensor, *, dropout: float = 0.0) -> Any:
    """The module whose `attend_to_few` takes these tensors; None if none does."""
    if not 0.0 <= dropout < 1.0:
        return None  # all is zeroed, or PyTorch says what is wrong
    if dropout == 0.0 and takes_lists(query, key, value):
        return _module("scalablevit.kernels.short_attention")
    if not query.shape[:2] == key.shape[:2] == value.shape[:2] or key.shape[2] != value.shape[2]:
        return None  # PyTorch broadcasts, or says what is wrong
    # PyTorch's fused attention for CPUs knows no dropout: with it the kernel's rival are plain products.
    most = MAX_NATIVE_LIST.get(torch.float32 if dropout > 0.0 else query.dtype, 0)
    return _native(key.shape[2], query, key, value, most=most)


def is_readable(x: Tensor) -> bool:
    """Whether kernels may read x as things stand: no switch, transform or mode is in the way."""
    return _native(1, x) is not None


def rows_kernel(x: Tensor, dtype: torch.dtype) -> Any:
    """The module with kernels for what happens to each row of x alone, where products are of `dtype`; or None."""
    if dtype != x.dtype or not x.is_contiguous() or _native(1, x) is None:
        return None
    return _module("scalablevit.kernels.cpu.rows")


def norm_kernel(x: Tensor, weight: Tensor, bias: Tensor) -> Any:
    """The module with a norm over the channels of x, (..., c), by such parameters, and with its gradients; or None."""
    if weight.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        return None
    return rows_kernel(x, x.dtype) if _are_parameters((weight, bias), x) else None


def products_kernel(x: Tensor, dtype: torch.dtype, *parameters: Tensor | None) -> Any:
    """The module with products of matrices, for x in products of `dtype` with such parameters; or None.

    Where they are not known to be faster than PyTorch's they run if native kernels are asked for: on others than AMD's
    without tiles, in float32, for which PyTorch has Intel's library, and in bfloat16 with AVX-512 (docs/log.md).
    """
    if dtype != x.dtype or _native(1, x) is None:
        return None
    fewest = _fewest_rows(dtype)
    if fewest == 0 or (choices["native"] is not True and x.numel() < fewest * x.shape[-1]):
        return None
    for parameter in parameters:
        if parameter is not None and not parameter.is_contiguous():
            return None
    return _module("scalablevit.kernels.cpu.products") if _are_parameters(parameters, x) else None


def matrices_kernel(left: Tensor, right: Tensor, *, in_float32: bool) -> Any:
    """The module that multiplies two matrices of one type, whose sums are wanted in float32 or not; or None.

    On tiles it is slower than PyTorch where the result has few rows or columns, for which all that is summed over is
    packed, the fewer the longer sums are, and in bfloat16, unless sums are not to be rounded to that; on vectors in
    bfloat16 with AVX-512, and in float32 with few rows: fewer than 256 with AVX-512, unless sums are long, and than
    4096 without (docs/log.md).
    """
    if choices["native"] is not True:
        is_float32 = left.dtype == torch.float32
        rows, columns, length = left.shape[0], right.shape[1], left.shape[1]
        is_long = length >= max(_LONG_SUM, 2 * rows, 2 * columns)
        if _has_tiles():
            fewest = _FEWEST_LINES_OF_LONG_SUM if is_long else _FEWEST_LINES
            if min(rows, columns) < fewest if is_float32 else not in_float32:
                return None
        elif not _has_wide_vectors():
            if is_float32 and rows < _FEWEST_ROWS_ON_SHORT_VECTORS:
                return None
        else:
            has_lines = rows >= _FEWEST_ROWS or (is_long and min(rows, columns) >= _FEWEST_LINES_ON_VECTORS)
            if not is_float32 or not has_lines:
                return None
    return products_kernel(left, left.dtype)


def feed_forward_gradients_kernel(x: Tensor, *parameters: Tensor | None, hidden: int) -> Any:
    """The module that has all gradients of a feed-forward in one call, for rows x of the type of the products; or None.

    Threads take 32 channels of the hidden layer at a time, and are to have more than one turn. With few rows what it
    packs of the weights counts, and their gradients, which it goes through once for some hundred rows. On vectors of 16
    numbers it is slower than PyTorch in bfloat16, unless those are undivided (docs/log.md).
    """
    if hidden < 64 * torch.get_num_threads() or x.shape[1] < 2:
        return None  # of one channel rows lie as if they were turned
    if choices["native"] is not True:
        is_slow = _has_wide_vectors() and not _has_undivided_vectors() and not _has_tiles()
        if x.shape[0] < 2 * x.shape[1] or (x.dtype != torch.float32 and is_slow):
            return None
    return products_kernel(x, x.dtype, *parameters)


def blocks_kernel(
    x: Tensor, dtype: torch.dtype, parameters: Sequence[Tensor], *, list_keys: int = 1, window_keys: int = 1
) -> Any:
    """The module with whole attentions of the map x to so many keys, in products of `dtype`; or None."""
    fits = 0 < list_keys <= MAX_NATIVE_LIST.get(dtype, 0) and 0 < window_keys <= MAX_NATIVE_KEYS
    if not fits or choices["triton"] is True or products_kernel(x, dtype, *parameters) is None:
        return None
    return _module("scalablevit.kernels.cpu.blocks")


def patches_kernel(
    like: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    *,
    positions: int,
) -> Any:
    """The module that convolves maps of the type of `like` as products, then normalises; or None.

    By itself a convolution is faster by PyTorch, unless it has many numbers to lay out anew for few positions; with the
    norm it is slower as a product where there are many positions of few channels (docs/log.md).

    Args:
        like: (1, c), on the device of the maps.
        weight: (f, c, r, r), of the convolution.
        bias: (f).
        norm_weight: (f), of the norm; None for none, as is its bias.
        norm_bias: (f).
        positions: Of the result.
    """
    if choices["native"] is not True:
        reads, alone = weight[0].numel(), norm_weight is None
        if 8 * positions > reads if alone else (positions > 8192 and weight.shape[0] < 64):
            return None
    if products_kernel(like, like.dtype, weight, bias, norm_weight, norm_bias) is None:
        return None
    return _module("scalablevit.kernels.cpu.patches")


def convolution_kernel(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int], groups: int
) -> Any:
    """The module that convolves a map (b, h, w, c) with a dense 3x3 weight, in float32; None if none does.

    They take 16 products for PyTorch's 36. By themselves they run with AVX-512 (measured on one processor of AMD's and
    one of Intel's, docs/log.md), and on AMD's without.
    """
    dense = weight.shape[1:] == (*x.shape[-1:], 3, 3) and groups == 1
    if not dense or 0 in weight.shape or (*stride, *padding) != (1, 1, 1, 1) or x.ndim != 4 or x.dtype != torch.float32:
        return None
    if bias is not None and bias.shape != weight.shape[:1]:
        return None  # PyTorch says what is wrong
    if torch.is_autocast_enabled("cpu") or _native(1, x, weight, *(() if bias is None else (bias,))) is None:
        return None
    if choices["native"] is not True and not (_convolves_faster() and min(weight.shape[:2]) >= _FEWEST_CHANNELS):
        return None
    return _module("scalablevit.kernels.cpu.convolution")


def convolves_any_map(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether `convolution_kernel` convolves maps of that type, unless small, with a dense 3x3 weight; no question of
    maps, so for compilers.
    """
    if dtype != torch.float32 or choices["native"] is False or not _has_library():
        return False
    if max(weight.shape[:2]) > MAX_NATIVE_CHANNELS:
        return False
    return choices["native"] is True or (_convolves_faster() and min(weight.shape[:2]) >= _FEWEST_CHANNELS)


def depthwise_kernel(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """The module with depthwise convolutions of a map x (b, h, w, c), 3x3 or over cells; None if none takes these."""
    channels = x.shape[-1:]
    if x.ndim != 4 or weight.ndim != 4 or weight.shape[:2] != (*channels, 1) or weight.shape[2] != weight.shape[3]:
        return None
    if weight.numel() == 0 or (bias is not None and bias.shape != channels):
        return None  # PyTorch says what is wrong
    if not _are_parameters((weight, bias), x) or _native(1, x) is None:
        return None
    return _module("scalablevit.kernels.cpu.depthwise")


def takes_lim(weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernels add a convolution of this weight and bias: LIM's in the paper's design, (n * d', 1, 3, 3)."""
    return weight.shape[1:] == (1, 3, 3) and bias is not None


@cache
def _module(name: str) -> Any:
    return import_module(name)


def _native(keys: int, *tensors: Tensor, most: int = MAX_NATIVE_KEYS) -> Any:
    first = tensors[0]
    if not first.is_cpu or not 0 < keys <= most or choices["native"] is False:
        return None
    dtype, device = first.dtype, first.device
    for x in tensors:
        # The kernels read memory: subclasses, such as the fake tensors of compilation, have none, or of another kind,
        # zeros that PyTorch only notes have none, and what `is_neg` lies in memory without its sign.
        if type(x) not in _PLAIN_TENSORS or x.dtype != dtype or x.device != device:
            return None
        if x.is_neg() or x._is_zerotensor():
            return None
    if dtype not in NATIVE_DTYPES or is_transformed() or not _has_library():
        return None
    if torch._C._len_torch_dispatch_stack():  # who counts or records what is called knows PyTorch's operations
        return None
    return _module("scalablevit.kernels.cpu.attention")


def _are_parameters(parameters: Sequence[Tensor | None], x: Tensor) -> bool:
    """Whether kernels read these beside x: in its type or float32, in its memory, with their signs."""
    dtype, device = x.dtype, x.device
    for one in parameters:
        if one is None:
            continue
        if type(one) not in _PLAIN_TENSORS or one.dtype not in (dtype, torch.float32) or one.device != device:
            return False
        if one.is_neg():
            return False
    return True


def _library() -> Any:
    """The native kernels; None where there are none."""
    return _module("scalablevit.kernels.cpu.compilation").library()


def _convolves_faster() -> bool:
    return _library() is not None and _library().convolves_faster() == 1


def _has_wide_vectors() -> bool:
    return _library() is not None and _library().has_wide_vectors() == 1


def _has_undivided_vectors() -> bool:
    return _library() is not None and _library().has_undivided_vectors() == 1


def _has_tiles() -> bool:
    return _library() is not None and _library().has_tiles() == 1


def _has_library() -> bool:
    return _library() is not None


def _fewest_rows(dtype: torch.dtype) -> int:
    """From how many rows on this processor's products of a type are faster than PyTorch's; 0 if there are none."""
    if (kernels := _library()) is None:
        return 0
    return int(kernels.fewest_rows_float32() if dtype == torch.float32 else kernels.fewest_rows_bfloat16())


# torch.compile asks while it traces, and does not look inside. This is what torch.compiler.assume_constant_result does,
# which would import all of the compiler.
for _function in (_convolves_faster, _has_library, _has_tiles, _has_undivided_vectors, _fewest_rows):
    _function.__dict__["_dynamo_marked_constant"] = True
