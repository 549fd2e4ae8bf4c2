"""Small networks, image sizes and attention in plain loops, which the tests share."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from scalablevit import ScalableViT
from scalablevit.design import DESIGNS, PAPER, VIT_PYTORCH, Design

SIZES = [(224, 224), (256, 256), (192, 320), (200, 264), (97, 131), (64, 64), (32, 32), (7, 5), (1, 1)]

# Each field of the vit-pytorch form exchanged for the paper's, one at a time.
MIXED_DESIGNS: dict[str, Design] = {
    field: replace(VIT_PYTORCH, name=f"vit-pytorch with the paper's {field}", **{field: getattr(PAPER, field)})
    for field in VIT_PYTORCH.to_dict()
    if field != "name"
}


def small_network(design: str | Design = "paper", **overrides: Any) -> ScalableViT:
    """Four stages, all reduction factors, windows of 7, unequal widths of keys and values; 5 classes."""
    arguments: dict[str, Any] = {
        "num_classes": 5,
        "dim": (8, 16, 24, 32),
        "depth": (1, 1, 2, 1),
        "heads": (1, 2, 3, 4),
        "reduction_factor": (8, 4, 2, 1),
        "window_size": 7,
        "ssa_dim_key": (10, 8, 8, 8),
        "ssa_dim_value": (8, 6, 8, 8),
        "iwsa_dim_key": (8, 8, 6, 8),
        "iwsa_dim_value": 8,
    }
    return ScalableViT(**{**arguments, "design": design, **overrides})


def all_designs() -> list[str]:
    return list(DESIGNS)


def randomise(model: ScalableViT, seed: int = 0) -> ScalableViT:
    """Norms and biases included, so that nothing is hidden behind a zero or a one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)
            fan_in = math.prod(parameter.shape[1:])
            parameter.copy_(noise / math.sqrt(fan_in) if parameter.ndim > 1 else parameter + 0.1 * noise)
    return model


def assert_layers_are_called(block: nn.Module, x: Tensor) -> None:
    """Each one that has a hook, which hears of it."""
    heard: list[str] = []
    for name, layer in block.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            hook = layer.register_forward_hook(lambda *_, name=name: heard.append(name))
            block(x)
            hook.remove()
            split = name.endswith("to_qkv")  # its weight is used in two parts, a hook on it is none on them
            assert heard[-1:] == [name] or split, name


def attend_in_loops(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """One head, (q, d), (k, d), (k, d') to (q, d'), number by number."""
    query, key, value = query.detach(), key.detach(), value.detach()
    out = torch.zeros(query.shape[0], value.shape[1], dtype=query.dtype)
    for q in range(query.shape[0]):
        scores = [
            scale * sum(float(query[q, d]) * float(key[k, d]) for d in range(query.shape[1]))
            for k in range(key.shape[0])
        ]
        largest = max(scores)
        weights = [math.exp(score - largest) for score in scores]
        for k, weight in enumerate(weights):
            out[q] += weight / sum(weights) * value[k]
    return out
