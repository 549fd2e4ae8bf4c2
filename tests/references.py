"""References that tests compare with: outputs of the paper authors' code, and its weights, which are made by a rule.

A case of ``golden/`` is a network of theirs: ``NAME.json`` has its configuration in their argument names (depths count
single attention blocks) and the names and shapes of its parameters; ``NAME.npz`` its logits, and the gradient of
``(logits * probe).sum()`` with respect to the input, pooled to 8x8 means.
"""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
PAPER_CASES = ("paper_tiny", "paper_tiny_wide", "paper_tiny_ragged", "paper_tiny_plain", "paper_small")

# The released small network, in the authors' argument names.
_SMALL = {
    "embed_dims": [64, 128, 256, 512],
    "num_heads": [2, 4, 8, 16],
    "depths": [2, 2, 20, 2],
    "wss": [7, 7, 7, 7],
    "sr_ratios": [8, 4, 2, 1],
    "c_ratios": [1.25, 1.25, 1.25, 1],
    "num_classes": 1000,
}


@dataclass(frozen=True, kw_only=True)
class GoldenCase:
    """Logits (b, classes) and pooled input gradient (b, c, h/8, w/8) for `images` (b, c, h, w) and `state_dict`."""

    arguments: dict[str, Any]  # of our ScalableViT
    shapes: dict[str, tuple[int, ...]]  # of the authors' parameters
    images: Tensor
    probe: Tensor
    logits: Tensor
    pooled_gradient: Tensor

    @property
    def state_dict(self) -> dict[str, Tensor]:
        return {name: ruled_parameter(name, shape) for name, shape in self.shapes.items()}


def golden_case(name: str) -> GoldenCase:
    """A case of `PAPER_CASES`."""
    description = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        logits, gradient = torch.from_numpy(arrays["logits"]), torch.from_numpy(arrays["input_grad_pool8"])
    config = description["config"]
    return GoldenCase(
        arguments=paper_arguments(_SMALL if config.get("factory") == "small" else config),
        shapes={key: tuple(shape) for key, shape in description["keys"].items()},
        images=_normal(0, description["input"]),
        probe=_normal(1, logits.shape),
        logits=logits,
        pooled_gradient=gradient,
    )


def paper_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """The arguments of our ScalableViT for those of the authors' class."""
    dims, heads = config["embed_dims"], config["num_heads"]
    head_dims = [dim // n for dim, n in zip(dims, heads, strict=True)]
    keys = [int(dim * ratio) // n for dim, ratio, n in zip(dims, config["c_ratios"], heads, strict=True)]
    return {
        "design": "paper",
        "num_classes": config["num_classes"],
        "dim": dims,
        "depth": [blocks // 2 for blocks in config["depths"]],
        "heads": heads,
        "reduction_factor": config["sr_ratios"],
        "window_size": config["wss"],
        "ssa_dim_key": [d if r == 1 else k for d, k, r in zip(head_dims, keys, config["sr_ratios"], strict=True)],
        "ssa_dim_value": head_dims,
        "iwsa_dim_key": head_dims,
        "iwsa_dim_value": head_dims,
        "head": "linear" if config.get("plain_head") else "hidden",
    }


def ruled_parameter(name: str, shape: tuple[int, ...]) -> Tensor:
    """The parameter that the rule makes of a name and a shape: about what a trained one looks like."""
    normal = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if len(shape) > 1:
        values = normal / math.sqrt(math.prod(shape[1:]))
    elif name.endswith("weight"):
        values = 1 + 0.1 * normal
    else:
        values = 0.1 * normal
    return torch.from_numpy(values.astype(np.float32))


def _normal(seed: int, shape: Any) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(tuple(shape)).astype(np.float32))
