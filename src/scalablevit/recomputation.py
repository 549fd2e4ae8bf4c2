"""What the autograd functions share that keep little more than their input, and compute again what lies between.

Axes: b batch, h height, w width, c channels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scalablevit.dot_product import is_eager
from scalablevit.kernels.parts import Norm
from scalablevit.kernels.recording import in_memory, is_batched
from scalablevit.kernels.selection import norm_kernel
from scalablevit.products import add_product_, sum_of_rows


def norm_of(module: nn.LayerNorm) -> Norm | None:
    """What the module is made of; None where it has no weight or no bias, or normalises more than the channels."""
    weight, bias = module.weight, module.bias  # once: modules take a microsecond to find a parameter
    if weight is None or bias is None or len(module.normalized_shape) != 1:
        return None
    return Norm(weight, bias, module.eps)


def normalise(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The LayerNorm of `x`, (..., c), with the mean and 1 / standard deviation that its gradient asks for.

    Without a weight it is `x` as it is. Under autocast it is what `torch.nn.functional.layer_norm` gives: of the type
    of `x` on a CPU, float32 elsewhere.
    """
    if weight is None:
        return x, x, x
    kernel = None
    if bias is not None and not is_recorded(x, weight, bias) and not is_batched(x):
        kernel = norm_kernel(x, weight, bias)
    if kernel is None:
        normed, mean, rstd = torch.native_layer_norm(_norm_input(x, weight), x.shape[-1:], weight, bias, eps)
        return normed, mean, rstd
    mean, rstd = (torch.empty([*x.shape[:-1], 1], dtype=torch.float32, device=x.device) for _ in range(2))
    # No view of rows: hooks may change in place what a function gives.
    return kernel.normalise(x, weight, bias, eps, moments=(mean, rstd)), mean, rstd


def norm_gradients(
    grads: Sequence[Tensor],
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    needs: Sequence[bool],
    *,
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients for `x`, weight and bias, from those for what `normalise` gave.

    Args:
        grads: One or more, which are added up.
        x: What was normalised.
        mean: Of `normalise`.
        rstd: Likewise.
        weight: Of the norm.
        bias: Likewise.
        needs: Which gradients are wanted: for x, weight, bias.
        residual: What the gradient for x has added to it: that of a sum with x.
        out: Where the gradient for x goes, contiguous; None for a new tensor.
    """
    if not any(needs):
        return None, None, None
    if weight is not None and bias is not None:
        found = _norm_gradients_natively(grads, x, (mean, rstd), weight, bias, residual, out)
        if found is not None:
            of_x, of_weight, of_bias = (one if needed else None for one, needed in zip(found, needs, strict=True))
            return of_x, of_weight, of_bias
    grad, grad_weight, grad_bias = _total(grads), None, None
    if weight is not None:
        x = _norm_input(x, weight)
        if x.device.type == "cpu":  # PyTorch's own would be of this type
            mean, rstd = (one.to(torch.promote_types(x.dtype, weight.dtype)) for one in (mean, rstd))
        grad, grad_weight, grad_bias = torch.ops.aten.native_layer_norm_backward(
            grad.to(x.dtype), x, x.shape[-1:], mean, rstd, weight, bias, list(needs)
        )
    if not needs[0]:
        return None, grad_weight, grad_bias
    if residual is not None:
        grad = torch.add(grad, residual, out=out)
    elif out is not None:
        grad = out.copy_(grad)
    return grad, grad_weight, grad_bias


def _norm_gradients_natively(
    grads: Sequence[Tensor],
    x: Tensor,
    moments: tuple[Tensor, Tensor],
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    out: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """By one kernel; None where none takes these tensors, or autograd or a transform has to see it."""
    read = *grads, x, *(() if residual is None else (residual,))
    if len(grads) > 2 or is_recorded(*read, weight) or any(is_batched(one) for one in read):
        return None
    if any(one.dtype != x.dtype or one.shape != x.shape or one.device != x.device for one in read):
        return None
    kernel = norm_kernel(x, weight, bias)
    if kernel is None or any(type(one) is not Tensor for one in read if one is not x):
        return None
    moments = moments[0].float(), moments[1].float()
    grad, *second = (_rows(in_memory(one)) for one in grads)
    to = torch.empty_like(x) if out is None else out
    assert to.dtype == x.dtype
    stream = None if residual is None else _rows(in_memory(residual))
    of_parameters = kernel.differentiate_norm(
        grad, second[0] if second else None, _rows(x), moments, weight, residual=stream, out=_rows(to)
    )
    of_weight, of_bias = (one.to(like.dtype) for one, like in zip(of_parameters, (weight, bias), strict=True))
    return to, of_weight, of_bias


def _total(grads: Sequence[Tensor]) -> Tensor:
    """Their sum, made in float32 where they are in half precision, in the type of the first."""
    if len(grads) == 1:
        return grads[0]
    dtype = torch.promote_types(grads[0].dtype, torch.float32)
    return sum((one.to(dtype) for one in grads[1:]), grads[0].to(dtype)).to(grads[0].dtype)


def _rows(x: Tensor) -> Tensor:
    return x.view(-1, x.shape[-1])


def _norm_input(x: Tensor, weight: Tensor) -> Tensor:
    return x if x.device.type == "cpu" else x.to(weight.dtype)


def product_dtype(x: Tensor, norm: Norm | None, parameters: Iterable[Tensor | None]) -> torch.dtype | None:
    """The type in which linear layers with such parameters multiply, after such a norm, as autocast has it.

    None where types are mixed in another way than autocast mixes them: PyTorch says what is wrong then.
    """
    types = {parameter.dtype for parameter in parameters if parameter is not None}
    norm_types = set() if norm is None else {norm.weight.dtype, norm.bias.dtype}
    if not autocasts(x.device.type):
        return x.dtype if types | norm_types == {x.dtype} else None
    mixed = {x.dtype, *types} <= {torch.float32, torch.float16, torch.bfloat16}
    return torch.get_autocast_dtype(x.device.type) if mixed and norm_types <= {torch.float32} else None


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """On the device of `x`, for where the types are settled."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if autocasts(device) else contextlib.nullcontext()


def autocasts(device: str) -> bool:
    """Whether autocast is on, for devices of that type."""
    return _has_autocast(device) and torch.is_autocast_enabled(device)


def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


# PyTorch 2.10's tracer does not know that question; see the end of selection.py.
_has_autocast.__dict__["_dynamo_marked_constant"] = True


def may_recompute(x: Any) -> bool:
    """Whether a function of ours may stand for layers: nothing but eager PyTorch looks, and forward only."""
    return is_eager(x) and torch.autograd.forward_ad._current_level < 0


def may_be_transformed() -> bool:
    """Whether a transform or forward derivatives are at work, which an operator without a rule for them loses."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def are_plain(tensors: Iterable[Tensor | None]) -> bool:
    """Whether operators may be given these parameters: no subclass, which knows its own operations alone."""
    return all(one is None or type(one) in (Tensor, nn.Parameter) for one in tensors)


def is_recorded(*tensors: Tensor | None) -> bool:
    """Whether autograd records what is done with any of these."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


class Total:
    """The gradient of a parameter, summed over slices of rows: in float32 where the slices are in half precision."""

    def __init__(self, parameter: Tensor | None, wanted: bool) -> None:
        self._dtype = None if parameter is None or not wanted else parameter.dtype
        self._sum: Tensor | None = None

    def add(self, part: Tensor | None) -> None:
        if self._dtype is None or part is None:
            return
        if self._sum is None:
            self._sum = part.to(torch.promote_types(part.dtype, torch.float32))
        else:
            self._sum += part

    def add_rows(self, rows: Tensor) -> None:
        """The sum of all rows."""
        if self._dtype is not None:
            self.add(sum_of_rows(rows))

    def add_product(self, left: Tensor, right: Tensor) -> None:
        """left^T @ right, for two tensors of as many rows."""
        if self._dtype is None:
            return
        if self._sum is None:
            size = left.shape[1], right.shape[1]
            self._sum = left.new_zeros(size, dtype=torch.promote_types(left.dtype, torch.float32))
        add_product_(self._sum, left.t(), right)

    def result(self) -> Tensor | None:
        return None if self._sum is None or self._dtype is None else self._sum.to(self._dtype)


def differentiable_gradients(
    plain: Callable[..., Any], arguments: Sequence[Any], grads: Any, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients of ``plain(*arguments)``, for second derivatives, by what autograd can record."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        aliases = [
            argument.view_as(argument) if needed else argument
            for argument, needed in zip(arguments, needs, strict=True)
        ]
        wanted = [alias for alias, needed in zip(aliases, needs, strict=True) if needed]  # not through one to another
        found = iter(torch.autograd.grad(plain(*aliases), wanted, grads, create_graph=create_graph))
    return tuple(next(found) if needed else None for needed in needs)
