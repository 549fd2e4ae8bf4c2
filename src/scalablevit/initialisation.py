"""How parameters are drawn: PyTorch's defaults, or the paper authors' way."""

from __future__ import annotations

import math

from torch import nn

from scalablevit.design import Initialisation
from scalablevit.layers import PointwiseConv


def initialise(model: nn.Module, how: Initialisation) -> None:
    """Draws all parameters of a model anew. On the meta device there is nothing to draw."""
    for module in model.modules():
        if not isinstance(module, (nn.Linear, nn.Conv2d, nn.LayerNorm)) or module.weight.is_meta:
            continue
        if how == "pytorch" or isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        else:
            _draw_like_paper(module)


def _draw_like_paper(module: nn.Linear | nn.Conv2d) -> None:
    if isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
    elif isinstance(module, PointwiseConv):
        nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / module.out_features))
    else:
        nn.init.trunc_normal_(module.weight, std=0.02)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
