"""How eager code calls a kernel: as it is, as one step of autograd, or through its operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def call_kernel(
    tensors: Sequence[Tensor],
    *,
    forward: Callable[..., Tensor],
    backward: Callable[..., Sequence[Tensor | None]],
    plain: Callable[..., Tensor],
    operator: Callable[..., Tensor],
) -> Tensor:
    """What a kernel gives for `tensors`.

    Args:
        tensors: Its arguments that may need gradients.
        forward: The kernel: the tensors to a result.
        backward: The result's gradient and the tensors to theirs; None for those that need none.
        plain: The same as `forward` in operations that autograd records, for second derivatives.
        operator: The same as an operator of PyTorch, for modes that count or record what is called. It takes some 20
            microseconds, and PyTorch imports its compiler when one is first recorded, so that it is not always called.
    """
    if torch._C._len_torch_dispatch_stack():
        return operator(*tensors)
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        out: Tensor = _Recorded.apply(forward, backward, plain, *tensors)
        return out
    return forward(*tensors)


def is_transformed() -> bool:
    """Whether a body is needed that is differentiable again and again, or forwards: under vmap, jvp, grad of grad, and
    inside a dual level, whose tensors look like any others but carry a tangent.
    """
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def in_memory(grad: Tensor) -> Tensor:
    """A gradient as a kernel reads it: contiguous, with its sign, and written out where PyTorch only notes zeros."""
    if grad._is_zerotensor():
        return torch.zeros(grad.shape, dtype=grad.dtype, device=grad.device)
    return grad.resolve_neg().contiguous()


def is_batched(grad: Tensor) -> bool:
    """Whether these are several gradients at once, as in a vectorised Jacobian, which have no address in memory."""
    of = torch._C._functorch
    return of.is_batchedtensor(grad) or of.is_legacy_batchedtensor(grad)


class _Recorded(torch.autograd.Function):
    """A step that keeps its inputs alone."""

    @staticmethod
    def forward(
        ctx: Any,
        forward: Callable[..., Tensor],
        backward: Callable[..., Sequence[Tensor | None]],
        plain: Callable[..., Tensor],
        *tensors: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.bodies = backward, plain
        return forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        backward, plain = ctx.bodies
        tensors, needs = ctx.saved_tensors, ctx.needs_input_grad[3:]
        if not torch.is_grad_enabled() and not is_batched(grad):
            return None, None, None, *backward(grad, *tensors)
        create_graph = torch.is_grad_enabled()
        # PyTorch's fused attention has no second derivative.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            aliases = [x.view_as(x) for x in tensors]  # one tensor may be there twice
            wanted = [x for x, needed in zip(aliases, needs, strict=True) if needed]
            found = iter(torch.autograd.grad(plain(*aliases), wanted, grad, create_graph=create_graph))
        return None, None, None, *(next(found) if needed else None for needed in needs)
