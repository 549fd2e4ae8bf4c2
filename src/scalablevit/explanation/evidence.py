"""Where in an image the evidence for a class is: Grad-CAM (Selvaraju et al., arXiv:1610.02391), by captum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scalablevit.explanation.forward_pass import evaluating
from scalablevit.explanation.lattice import HeatMap
from scalablevit.scalable_vit import ScalableViT

FEWEST_POSITIONS = 7  # along the shorter axis of the map that evidence is looked for on, if the network has such a map


class _Rest(nn.Module):
    """A network from the map of a stage on: (b, c, h, w) to logits (b, classes)."""

    def __init__(self, model: ScalableViT, stage: int) -> None:
        super().__init__()
        self.maps = nn.Identity()
        self.model = model
        self.first = stage + 1

    def forward(self, maps: Tensor) -> Tensor:
        x = self.maps(maps).permute(0, 2, 3, 1)
        for stage in self.model.stages[self.first :]:
            x = stage(x)
        return self.model.forward_head(x.permute(0, 3, 1, 2))


def find_evidence(model: ScalableViT, maps: Sequence[Tensor], label: int, stage: int | None = None) -> HeatMap:
    """Grad-CAM for a class, on the map of a stage.

    Args:
        model: The network.
        maps: What its stages give, (1, h, w, c) each.
        label: The position of the class among the logits.
        stage: Which stage, from 0; None: that of `sharpest_stage`.

    Returns:
        How much each position speaks for the class, 0 where it speaks against it; all 0 where nothing speaks for it.
    """
    from captum.attr import LayerGradCam

    stage = sharpest_stage(maps) if stage is None else stage
    given = maps[stage].detach().permute(0, 3, 1, 2).requires_grad_()
    rest = _Rest(model, stage)
    with evaluating(model), torch.enable_grad():
        found = LayerGradCam(rest, rest.maps).attribute(given, target=label, relu_attributions=True)
    values = found.detach()[0, 0].float().cpu().numpy()
    return HeatMap(values=values, first=0.0, spacing=model.feature_info[stage]["reduction"])


def sharpest_stage(maps: Sequence[Tensor]) -> int:
    """The last stage whose map has 7 positions along its shorter axis; if none has, that with the largest map."""
    fine = [stage for stage, x in enumerate(maps) if min(x.shape[1:3]) >= FEWEST_POSITIONS]
    return fine[-1] if fine else 0
