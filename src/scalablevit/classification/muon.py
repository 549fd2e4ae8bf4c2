"""Muon: momentum whose matrices are made orthogonal, with AdamW for all that is no matrix.

Axes: n matrices of one shape, r rows, c columns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor

# Of the iteration x <- a x + (b g + c g^2) x, where g = x x^T, five times. They drive singular values to about 1, the
# small ones faster than one set of coefficients would (L. Jiacheng, github.com/KellerJordan/modded-nanogpt).
COEFFICIENTS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


class Muon(torch.optim.Optimizer):
    """Muon (K. Jordan, kellerjordan.github.io/posts/muon) for matrices, AdamW for other parameters.

    A step of a matrix (r, c) has the size that AdamW's usually have, `lr` times 0.2 sqrt(max(r, c)) per singular value
    (Liu et al., arXiv:2502.16982), so that learning rates are comparable. Weight decay is decoupled, as AdamW's.

    Unlike PyTorch's and timm's, this one orthogonalises in float32, all matrices of one shape at once. They do it in
    bfloat16, one by one; on CPUs without bfloat16 arithmetic that is slow. A step of scalablevit_nano took 573 ms with
    timm 1.0.31 and torch 2.15, held to AVX2 instructions, on one thread of a Xeon.

    Args:
        groups: Groups of parameters, with ``"params"``, ``"is_matrix"`` (whether Muon is to move them), and whatever
            goes before the arguments that follow.
        lr: Learning rate.
        weight_decay: Per step, as a fraction of the learning rate.
        momentum: Of Muon.
        betas: Of AdamW.
        eps: Of AdamW.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas, "eps": eps}
        super().__init__(groups, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Moves the parameters along their gradients; `closure`, if there is one, computes those and the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in parameters:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
            if group["is_matrix"]:
                self._move_matrices(parameters, group)
            else:
                for parameter in parameters:
                    self._move_like_adamw(parameter, group)
        return loss

    def _move_matrices(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        same_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in parameters:
            same_shape[parameter.shape].append(parameter)
        for shape, matrices in same_shape.items():
            directions = orthogonalise(torch.stack([self._momentum(matrix, group) for matrix in matrices]))
            rate = group["lr"] * 0.2 * max(shape) ** 0.5
            for matrix, direction in zip(matrices, directions.unbind(), strict=True):
                matrix.add_(direction, alpha=-rate)

    def _momentum(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """Nesterov's: the gradient, mixed with the mean of all so far."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        mean = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
        return parameter.grad.lerp(mean, group["momentum"])

    def _move_like_adamw(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state.update(step=0, mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
        state["step"] += 1
        first, second = group["betas"]
        mean = state["mean"].lerp_(parameter.grad, 1 - first)
        square = state["square"].lerp_(parameter.grad.square(), 1 - second)
        deviation = (square / (1 - second ** state["step"])).sqrt_().add_(group["eps"])
        parameter.addcdiv_(mean, deviation, value=-group["lr"] / (1 - first ** state["step"]))


def orthogonalise(matrices: Tensor) -> Tensor:
    """Matrices with the same singular vectors, and all singular values about 1, from 0.7 to 1.2.

    Args:
        matrices: (n, r, c).
    """
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonalise(matrices.mT).mT
    x = matrices.float()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # no singular value is above the norm
    for a, b, c in COEFFICIENTS:
        gram = x @ x.mT  # (n, r, r)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(matrices.dtype)
