"""Layers and stages: what a ScalableViT is a sequence of.

Axes: b batch, h height, w width, c channels. Maps are channels-last, (b, h, w, c).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from scalablevit.attention import InteractiveWindowedSelfAttention, ScalableSelfAttention
from scalablevit.configuration import StageConfig
from scalablevit.design import Design
from scalablevit.feed_forward import FeedForward
from scalablevit.layers import PEG, PreNormResidual
from scalablevit.sequences import run_blocks


class Layer(nn.Sequential):
    """The residual blocks of one layer, in the running order of the design: an SSA, an IWSA, two feed-forwards, PEG."""

    def __init__(
        self,
        config: StageConfig,
        design: Design,
        *,
        peg: bool,
        dropout: float,
        attention_dropout: float,
        **factory: Any,
    ) -> None:
        attention: dict[str, Any] = {
            "heads": config.heads,
            "dropout": dropout,
            "attention_dropout": attention_dropout,
            "design": design,
            **factory,
        }

        def residual(branch: nn.Module) -> PreNormResidual:
            return PreNormResidual(nn.LayerNorm(config.dim, eps=design.norm_eps, **factory), branch)

        blocks: OrderedDict[str, nn.Module] = OrderedDict()
        for kind in design.layer_order.split():
            if kind == "ssa":
                ssa = ScalableSelfAttention(
                    config.dim,
                    dim_key=config.ssa_dim_key,
                    dim_value=config.ssa_dim_value,
                    reduction_factor=config.reduction_factor,
                    **attention,
                )
                blocks["ssa"] = residual(ssa)
            elif kind == "iwsa":
                iwsa = InteractiveWindowedSelfAttention(
                    config.dim,
                    dim_key=config.iwsa_dim_key,
                    dim_value=config.iwsa_dim_value,
                    window_size=config.window_size,
                    **attention,
                )
                blocks["iwsa"] = residual(iwsa)
            elif kind == "ff":
                expansion = config.ff_expansion_factor
                feed_forward = FeedForward(config.dim, expansion_factor=expansion, dropout=dropout, **factory)
                blocks["ff2" if "ff1" in blocks else "ff1"] = residual(feed_forward)
            elif peg:
                blocks["peg"] = PEG(config.dim, **factory)
        super().__init__(blocks)

    def set_drop_path(self, rates: Sequence[float]) -> None:
        """One rate for each attention block, in running order. A feed-forward has the rate of its attention."""
        branches = [block.drop_path for block in self if isinstance(block, PreNormResidual)]
        for branch, rate in zip(branches, (rates[0], rates[0], rates[1], rates[1]), strict=True):
            branch.rate = float(rate)


class Stage(nn.Module):
    """A patch embedding, then layers, then a norm. Maps (b, h, w, c) to (b, h', w', dim)."""

    def __init__(self, patch_embedding: nn.Module, layers: Sequence[Layer], norm: nn.Module) -> None:
        super().__init__()
        self.patch_embedding = patch_embedding
        self.layers = nn.Sequential(*layers)
        self.norm = norm
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embedding(x)
        if self.grad_checkpointing and not torch.jit.is_scripting() and torch.is_grad_enabled():
            for layer in self.layers:
                x = checkpoint(layer, x, use_reentrant=False)
        else:
            out = None if torch.jit.is_scripting() else self._run_at_once(x)
            x = self.layers(x) if out is None else out
        return self.norm(x)

    @torch.jit.unused
    def _run_at_once(self, x: Tensor) -> Tensor | None:
        return run_blocks(self.layers, x)
