"""Where in an image the evidence for a class is, by captum: integrated gradients, or Grad-CAM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from scalablevit.explanation.forward_pass import ForwardPass, evaluating
from scalablevit.explanation.lattice import HeatMap
from scalablevit.scalable_vit import ScalableViT
from scalablevit.stages import Stage

Method = Literal["integrated-gradients", "grad-cam"]
METHODS: tuple[str, ...] = get_args(Method)
STEPS = 16  # of the integral; 8 to 32 find the same places
BLUR = 1 / 32  # of the longer side: what single positions say is noisy
FEWEST_POSITIONS = 7  # along the shorter axis of the map that Grad-CAM is computed on, if the network has such a map


def find_evidence(
    model: ScalableViT, passed: ForwardPass, label: int, method: Method = "integrated-gradients", steps: int = STEPS
) -> HeatMap:
    """How much each place speaks for a class rather than for the others; 0 where it speaks against it.

    Args:
        model: The network. It is left as it was.
        passed: What the image left in it.
        label: The position of the class among the logits.
        method: ``"integrated-gradients"`` (Sundararajan et al., arXiv:1703.01365) of the map before the first
            attention, from its mean to itself: there a position has seen its own surroundings alone.
            ``"grad-cam"`` (Selvaraju et al., arXiv:1610.02391) on the last map of 7 positions: in use everywhere, but
            SSA has by then carried the answer over the whole map (docs/explain.md has the figures).
        steps: Of the integral.

    Raises:
        ValueError: If the method is neither.
    """
    if method == "integrated-gradients":
        return _integrated_gradients(model, passed, label, steps)
    if method == "grad-cam":
        return _grad_cam(model, passed.maps, label)
    raise ValueError(f"method is {method!r}; it must be one of {', '.join(map(repr, METHODS))}")


class _Margin(nn.Module):
    """From a map on: (b, c, h, w) to (b, 1), how far the logit of a class lies above the mean of all."""

    def __init__(self, model: ScalableViT, rest: Sequence[nn.Module], label: int) -> None:
        super().__init__()
        self.maps = nn.Identity()
        self.model = model
        self.rest = rest  # in a list, since its modules are the model's
        self.label = label

    def forward(self, maps: Tensor) -> Tensor:
        x = self.maps(maps).permute(0, 2, 3, 1)
        for module in self.rest:
            x = module(x)
        logits = self.model.forward_head(x.permute(0, 3, 1, 2))
        others = logits.mean(1) if logits.shape[1] > 1 else 0.0
        return (logits[:, self.label] - others)[:, None]


def _integrated_gradients(model: ScalableViT, passed: ForwardPass, label: int, steps: int) -> HeatMap:
    from captum.attr import IntegratedGradients

    first, *others = list(model.stages)
    assert isinstance(first, Stage)
    given = passed.patches.permute(0, 3, 1, 2)
    baseline = given.mean((2, 3), keepdim=True).expand_as(given)
    margin = _Margin(model, [*first.layers, first.norm, *others], label)
    with evaluating(model), torch.enable_grad():
        found = IntegratedGradients(margin).attribute(
            given.clone().requires_grad_(),
            baselines=baseline,
            target=0,
            n_steps=steps,
            method="riemann_middle",
            internal_batch_size=8,
        )
    heat = _heat(model, found.sum(1)[0], 0)
    return heat.blurred(max(heat.values.shape) * BLUR)


def _grad_cam(model: ScalableViT, maps: Sequence[Tensor], label: int) -> HeatMap:
    from captum.attr import LayerGradCam

    stage = sharpest_stage(maps)
    margin = _Margin(model, list(model.stages[stage + 1 :]), label)
    given = maps[stage].permute(0, 3, 1, 2).detach().clone().requires_grad_()
    with evaluating(model), torch.enable_grad():
        found = LayerGradCam(margin, margin.maps).attribute(given, target=0)
    return _heat(model, found[0, 0], stage)


def _heat(model: ScalableViT, values: Tensor, stage: int) -> HeatMap:
    positive = values.detach().float().relu().cpu().numpy()
    return HeatMap(values=positive, first=0.0, spacing=model.feature_info[stage]["reduction"])


def sharpest_stage(maps: Sequence[Tensor]) -> int:
    """The last stage, from 0, whose map has 7 positions along its shorter axis; if none has, the first."""
    fine = [stage for stage, x in enumerate(maps) if min(x.shape[1:3]) >= FEWEST_POSITIONS]
    return fine[-1] if fine else 0
