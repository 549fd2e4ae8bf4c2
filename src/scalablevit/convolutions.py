"""Convolutions over channels-last maps, 3x3 ones by kernels of our own.

Axes: b batch, h height, w width, c channels. Maps are (b, h, w, c).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalablevit.dot_product import is_eager
from scalablevit.kernels.cpu.calls import BlockCall
from scalablevit.kernels.parts import Layer
from scalablevit.kernels.recording import call_kernel, in_memory
from scalablevit.kernels.remembered import remembered
from scalablevit.kernels.selection import convolution_kernel, depthwise_kernel, is_readable
from scalablevit.kernels.switches import autocast_dtype
from scalablevit.patches import embed_natively
from scalablevit.recomputation import autocasts, is_recorded, product_dtype, without_autocast


class MapConv2d(nn.Conv2d):
    """`torch.nn.Conv2d` over channels-last maps: (b, h, w, c) to (b, h', w', c')."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self._convolve(x)
        else:
            if not torch.compiler.is_compiling() or torch.compiler._is_exporting_flag or not self._is_by_number():
                # Images come as (b, c, h, w). On a CPU a convolution of channels-last images takes half as long, and
                # what it gives need not be laid out anew.
                if not is_eager(x) or x.device.type != "cpu":
                    return self._convolve(x)
                x = x.contiguous()
                out = None
                if self._is_by_number():
                    out = self.convolve_depthwise(x)
                    out = self._convolve_natively(x) if out is None else out
                    out = self._convolve_as_product(x) if out is None else out
                if out is None:
                    out = self._convolve_in_float32(x)
                if out is None:
                    out = self._convolve_turned(x) if self._gives_a_half_column(x) else self._convolve(x)
                return out
            weight, bias = self.weight, self.bias
            if autocasts(x.device.type):
                dtype = torch.get_autocast_dtype(x.device.type)
                x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
            stride, padding = list(self.stride), list(cast(tuple[int, int], self.padding))
            return torch.ops.scalablevit.map_convolution(x, weight, bias, stride, padding, self.groups)

    def _convolve_as_product(self, x: Tensor) -> Tensor | None:
        """As a product of what lies under the kernel; None where that is not faster, or is recorded."""
        if not self.is_square() or is_recorded(x, self.weight, self.bias):
            return None
        stride, padding = self.stride[0], cast(tuple[int, int], self.padding)[0]
        return embed_natively(x, Layer(self.weight, self.bias), None, stride=stride, padding=padding)

    def convolve_depthwise(self, x: Tensor, *, residual: bool = False) -> Tensor | None:
        """The convolution, plus x if wanted, where it is 3x3 in each channel alone; None where no kernel does it."""
        weight, bias = layer = Layer(self.weight, self.bias)
        if not self.is_depthwise_3x3() or not is_readable(x) or not x.is_contiguous():
            return None
        run = remembered(
            (x.shape, x.dtype, residual), layer, functools.partial(depthwise_call, x, layer, residual=residual)
        )
        if run is None:
            return None
        if not is_recorded(x, weight, bias):
            return run(x, layer)
        kernel = depthwise_kernel(x, weight, bias)

        needs_x, needs_parameters = (
            x.requires_grad,
            any(one is not None and one.requires_grad for one in (weight, bias)),
        )

        def backward(grad: Tensor, x: Tensor, weight: Tensor, *bias: Tensor) -> tuple[Tensor | None, ...]:
            grad, of_weight, of_bias = in_memory(grad), None, None
            grad_x = kernel.convolve(grad, weight.flip(2, 3), None, residual=residual) if needs_x else None
            if needs_parameters:
                of_weight, of_bias = kernel.parameter_gradients(grad, x, weight)
            return grad_x, of_weight, *(None if of_bias is None else of_bias.to(one.dtype) for one in bias)

        def plain(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
            out = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=x.shape[-1]).permute(0, 2, 3, 1)
            return x + out if residual else out

        return call_kernel(
            (x, weight) if bias is None else (x, weight, bias),
            forward=lambda x, weight, *bias: kernel.convolve(x, weight, *bias or (None,), residual=residual),
            backward=backward,
            plain=plain,
            operator=plain,
        )

    def _convolve_natively(self, x: Tensor) -> Tensor | None:
        """A dense one by a kernel of our own; None where there is none."""
        weight, bias, settings = self.weight, self.bias, (self.stride, cast(tuple[int, int], self.padding), self.groups)
        kernel = convolution_kernel(x, weight, bias, *settings)
        if kernel is None or not (kernel.is_worthwhile(x, weight) or is_recorded(x, weight, bias)):
            return None

        needs = tuple(one is not None and one.requires_grad for one in (x, weight, bias))

        def backward(grad: Tensor, x: Tensor, weight: Tensor, *bias: Tensor) -> tuple[Tensor | None, ...]:
            return kernel.gradients(grad.contiguous(), x, weight, needs)[: 2 + len(bias)]

        def plain(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1).permute(0, 2, 3, 1)

        return call_kernel(
            (x, weight) if bias is None else (x, weight, bias),
            forward=lambda x, weight, *bias: kernel.convolve(x, weight, *bias or (None,)),
            backward=backward,
            plain=plain,
            operator=plain,
        )

    def _convolve_in_float32(self, x: Tensor) -> Tensor | None:
        """In float32 for a result in half precision, where that is better; None elsewhere."""
        dtype = autocast_dtype() or x.dtype
        parameters = (self.weight,) if self.bias is None else (self.weight, self.bias)
        if not goes_by_float32(x, dtype) or any(one.dtype not in (dtype, torch.float32) for one in (x, *parameters)):
            return None
        if not torch.is_autocast_enabled("cpu") and any(one.dtype != x.dtype for one in parameters):
            return None  # PyTorch says what is wrong
        with without_autocast(x):
            weight, *bias = (one.float() for one in parameters)
            out = self._conv_forward(x.permute(0, 3, 1, 2).float(), weight, *bias or (None,))
            return out.permute(0, 2, 3, 1).to(dtype)

    def _gives_a_half_column(self, x: Tensor) -> bool:
        """Whether the result is one position wide and in half precision, with a stride.

        With a matrix unit PyTorch's convolution then gives numbers that have nothing to do with it (2.14.1); turned by
        a quarter it is right (docs/log.md).
        """
        half = torch.is_autocast_enabled("cpu") or x.dtype in (torch.bfloat16, torch.float16)
        if not half or self.groups != 1 or x.ndim != 4 or not self._is_by_number():
            return False
        room = x.shape[2] + 2 * cast(tuple[int, int], self.padding)[1] - self.kernel_size[1]
        return 0 <= room < self.stride[1] and self.stride[1] > 1

    def _convolve_turned(self, x: Tensor) -> Tensor:
        """With height and width in each other's place."""
        (stride, wide_stride), (padding, wide_padding) = self.stride, cast(tuple[int, int], self.padding)
        settings = (wide_stride, stride), (wide_padding, padding)
        out = F.conv2d(x.permute(0, 3, 2, 1), self.weight.transpose(2, 3), self.bias, *settings)
        return out.permute(0, 3, 2, 1).contiguous()

    def _convolve(self, x: Tensor) -> Tensor:
        # A permuted channels-last map is what PyTorch calls the channels_last memory format: nothing is copied.
        return self._conv_forward(x.permute(0, 3, 1, 2), self.weight, self.bias).permute(0, 2, 3, 1)

    def is_depthwise_3x3(self) -> bool:
        """Whether it is LIM of the paper's design: 3x3 in each channel alone, on a map with zeros around it."""
        shape, groups = self.weight.shape, self.groups
        settings = self.stride, self.padding, self.dilation, self.padding_mode
        return shape[1:] == (1, 3, 3) and groups == shape[0] and settings == ((1, 1), (1, 1), (1, 1), "zeros")

    def is_dense_3x3(self) -> bool:
        """Whether it is LIM of vit-pytorch's design: 3x3 of all channels, of as many, on a map with zeros around it."""
        shape = self.weight.shape
        sides = self.stride, self.padding, tuple(shape[2:])
        return self.is_square() and shape[0] == shape[1] and sides == ((1, 1), (1, 1), (3, 3))

    def is_square(self) -> bool:
        """Whether it is dense, and alike along both axes: all said by the weight, one stride and one padding."""
        sides = self.kernel_size, self.stride, self.padding
        if self.groups != 1 or not self._is_by_number() or any(side[0] != side[1] for side in sides):
            return False
        return self.stride[0] > 0 and cast(tuple[int, int], self.padding)[0] >= 0  # else PyTorch says what is wrong

    def _is_by_number(self) -> bool:
        """Whether the convolution is all said by stride, padding and groups, as all of this package are."""
        return self.padding_mode == "zeros" and tuple(self.dilation) == (1, 1) and not isinstance(self.padding, str)


def depthwise_call(x: Tensor, layer: Layer, *, residual: bool, dtype: torch.dtype | None = None) -> BlockCall | None:
    """The kernel's call for a 3x3 convolution of maps such as x; None where there is none.

    It is of `dtype`; without one, as autocast has it.
    """
    if (product_dtype(x, None, layer) if dtype is None else dtype) != x.dtype:
        return None
    kernel = depthwise_kernel(x, *layer)
    return None if kernel is None else cast(BlockCall, kernel.convolution_call(x, layer, residual=residual))


def encode_positions(x: Tensor, layer: Layer) -> Tensor:
    """A contiguous map plus its 3x3 depthwise convolution, of which nothing is recorded, in the type of the map."""
    run = depthwise_call(x, layer, residual=True, dtype=x.dtype) if is_readable(x) else None
    if run is not None:
        return run(x, layer)
    weight, bias = layer.weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype)
    return x + convolve(x, weight, bias, (1, 1), (1, 1), x.shape[-1])


@cache
def _has_half(dtype: torch.dtype) -> bool:
    """Whether oneDNN, by which PyTorch convolves, knows this processor's instructions for a half precision."""
    mkldnn = torch.ops.mkldnn
    return bool(mkldnn._is_mkldnn_bf16_supported() if dtype == torch.bfloat16 else mkldnn._is_mkldnn_fp16_supported())


def goes_by_float32(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether the map x had better be convolved in float32 for a result in `dtype`.

    That is in half precision on a CPU where PyTorch has plain loops, which take ten times as long and more; and where x
    is of one position: in what PyTorch then gives as the gradient of a weight nobody wrote the taps that lie outside
    (2.14.1, docs/log.md).
    """
    if x.device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return False
    return not _has_half(dtype) or tuple(x.shape[1:3]) == (1, 1)


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int], groups: int
) -> Tensor:
    """`torch.nn.functional.conv2d` on a map (b, h, w, c), in float32 where that is better."""
    dtype, settings = x.dtype, (tuple(stride), tuple(padding), 1, groups)
    if goes_by_float32(x, dtype) and weight.dtype == dtype:
        x, weight, bias = x.float(), weight.float(), None if bias is None else bias.float()
    with without_autocast(x):
        return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, *settings).permute(0, 2, 3, 1).to(dtype)


def _depthwise_3x3_kernel(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int], groups: int
) -> Any:
    """For the operator, whose tensors are of one type."""
    if weight.shape[2:] != (3, 3) or (*stride, *padding) != (1, 1, 1, 1) or groups != x.shape[-1]:
        return None
    if any(one is not None and one.dtype != x.dtype for one in (weight, bias)):
        return None  # PyTorch says what is wrong
    return depthwise_kernel(x, weight, bias)


# What compiled graphs hold instead of a convolution. Inductor would see that a convolution wants its input
# channels-last, take the maps around it, (b, h, w, c), for (b, c, h, w) as well, and lay the residual stream out so
# that all that reads it is slow: on a CPU a forward pass of S took 15 % longer than without a compiler, in bfloat16 19.
@torch.library.custom_op("scalablevit::map_convolution", mutates_args=())
def _map_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int], groups: int
) -> Tensor:
    x = x.contiguous()
    kernel = convolution_kernel(x, weight, bias, stride, padding, groups)
    if kernel is not None and kernel.is_worthwhile(x, weight):
        return cast(Tensor, kernel.convolve(x, weight, bias))
    if (kernel := _depthwise_3x3_kernel(x, weight, bias, stride, padding, groups)) is not None:
        return cast(Tensor, kernel.convolve(x, weight, bias))
    alike = x.dtype == weight.dtype and (bias is None or bias.dtype == x.dtype)  # else PyTorch says what is wrong
    if alike and groups == 1 and stride[0] == stride[1] and padding[0] == padding[1]:
        layer, settings = Layer(weight, bias), {"stride": stride[0], "padding": padding[0]}
        if (out := embed_natively(x, layer, None, **settings, dtype=weight.dtype)) is not None:
            return out
    if x.shape[2] + 2 * padding[1] - weight.shape[3] < stride[1]:  # one position wide; see MapConv2d
        turned = convolve(x.transpose(1, 2), weight.transpose(2, 3), bias, stride[::-1], padding[::-1], groups)
        return turned.transpose(1, 2).contiguous()
    return convolve(x, weight, bias, stride, padding, groups).contiguous()


@_map_convolution.register_fake
def _map_convolution_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int], groups: int
) -> Tensor:
    b, h, w, _ = x.shape
    height = (h + 2 * padding[0] - weight.shape[2]) // stride[0] + 1
    width = (w + 2 * padding[1] - weight.shape[3]) // stride[1] + 1
    return x.new_empty(b, height, width, weight.shape[0])


@torch.library.custom_op("scalablevit::map_convolution_backward", mutates_args=())
def _map_convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    groups: int,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    none = grad.new_empty(0)  # an operator gives tensors
    if (kernel := convolution_kernel(x, weight, None, stride, padding, groups)) is not None and x.is_contiguous():
        found = kernel.gradients(grad.contiguous(), x, weight, tuple(needs))
        grad_x, grad_weight, grad_bias = (none.clone() if one is None else one.contiguous() for one in found)
        return grad_x, grad_weight, grad_bias
    kernel = _depthwise_3x3_kernel(x, weight, None, stride, padding, groups)
    if kernel is not None and x.stride(-1) == 1 and grad.dtype == x.dtype:
        grad = in_memory(grad)
        grad_x = kernel.convolve(grad, weight.flip(2, 3), None) if needs[0] else none
        of_parameters = kernel.parameter_gradients(grad, x, weight) if any(needs[1:]) else (none, none)
        grad_weight, grad_bias = (
            one if needed else none.clone() for one, needed in zip(of_parameters, needs[1:], strict=True)
        )
        return grad_x, grad_weight, grad_bias
    dtype = x.dtype
    if goes_by_float32(x, dtype):
        grad, x, weight = grad.float(), x.float(), weight.float()
    found = torch.ops.aten.convolution_backward(
        grad.permute(0, 3, 1, 2),
        x.permute(0, 3, 1, 2),
        weight,
        [weight.shape[0]],
        list(stride),
        list(padding),
        [1, 1],
        False,
        [0, 0],
        groups,
        list(needs),
    )
    grad_x = found[0].permute(0, 2, 3, 1).to(dtype).contiguous() if needs[0] else none
    grad_weight = found[1].to(dtype).contiguous() if needs[1] else none.clone()  # no two may be one tensor
    return grad_x, grad_weight, found[2].to(dtype) if needs[2] else none.clone()


@_map_convolution_backward.register_fake
def _map_convolution_backward_fake(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    groups: int,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (x.shape, weight.shape, weight.shape[:1])
    grad_x, grad_weight, grad_bias = (
        grad.new_empty(shape if needed else (0,)) for shape, needed in zip(shapes, needs, strict=True)
    )
    return grad_x, grad_weight, grad_bias


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, *ctx.arguments = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:3])
    found = _map_convolution_backward(grad, *ctx.saved_tensors, *ctx.arguments, needs)
    return *(one if needed else None for one, needed in zip(found, needs, strict=True)), None, None, None


_map_convolution.register_autograd(_backward, setup_context=_save_for_backward)
