"""Which optimiser moves which parameters, and at which learning rate."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import nn

from scalablevit.classification.configuration import TrainConfig
from scalablevit.classification.learning_rates import LEARNING_RATES
from scalablevit.classification.muon import Muon
from scalablevit.scalable_vit import ScalableViT

# Of the learning rate, for the parameters that Muon leaves to AdamW.
MUON_REST = 0.4


def make_optimizer(model: ScalableViT, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser of a run.

    Muon moves the matrices of linear layers. Convolutions, the classifier, norms and biases are left to AdamW, as its
    author advises, at `MUON_REST` of the learning rate. Other optimisers than these two are timm's.

    Raises:
        ValueError: If timm cannot make it, for example as it needs a package that is not there.
    """
    rate = LEARNING_RATES[config.optimizer] if config.learning_rate is None else config.learning_rate
    groups = parameter_groups(model, config.weight_decay, config.layer_decay)
    if config.optimizer == "muon":
        return Muon(_muon_groups(groups, model, rate), lr=rate)
    scaled = [{**_without_scale(group), "lr": rate * group["scale"]} for group in groups]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(scaled, lr=rate)
    return _make_with_timm(scaled, config.optimizer, rate)


def parameter_groups(model: ScalableViT, weight_decay: float, layer_decay: float = 1.0) -> list[dict[str, Any]]:
    """The parameters that learn, with weight decay, and, as the model says, without; the deepest layers first.

    Args:
        model: The network.
        weight_decay: Per step, as a fraction of the learning rate.
        layer_decay: Each layer learns so many times as fast as the one above it, as in timm's
            ``param_groups_layer_decay``; 1: all are two groups.

    Returns:
        Groups with ``"params"``, ``"weight_decay"`` and ``"scale"``, a factor of the learning rate.
    """
    spared = model.no_weight_decay()
    depths = layer_depths(model) if layer_decay < 1 else {}
    deepest = max(depths.values(), default=0)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[deepest - depths.get(name, deepest), name in spared].append(parameter)
    return [
        {"params": groups[key], "weight_decay": 0.0 if key[1] else weight_decay, "scale": layer_decay ** key[0]}
        for key in sorted(groups)
    ]


def layer_depths(model: ScalableViT) -> dict[str, int]:
    """The layer of each parameter, from 0, the stem; the head is the last."""
    from timm.models import group_parameters

    depths: dict[str, int] = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    return depths


def split_matrices(groups: list[dict[str, Any]], model: ScalableViT) -> list[tuple[bool, dict[str, Any]]]:
    """Each group in two: the matrices of linear layers but the classifier's (True), and the rest (False)."""
    classifier = {id(parameter) for parameter in model.get_classifier().parameters()}
    halves = []
    for group in groups:
        for wanted in (True, False):
            parameters = [p for p in group["params"] if (p.ndim == 2 and id(p) not in classifier) == wanted]
            if parameters:
                halves.append((wanted, {**group, "params": parameters}))
    return halves


def _muon_groups(groups: list[dict[str, Any]], model: ScalableViT, rate: float) -> list[dict[str, Any]]:
    """The group with the highest learning rate first, as it is the one that is told of."""
    halves = [
        {
            **_without_scale(group),
            "is_matrix": is_matrix,
            "lr": rate * group["scale"] * (1.0 if is_matrix else MUON_REST),
        }
        for is_matrix, group in split_matrices(groups, model)
    ]
    return sorted(halves, key=lambda group: -group["lr"])


def _without_scale(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "scale"}


def _make_with_timm(groups: list[dict[str, Any]], name: str, rate: float) -> torch.optim.Optimizer:
    from timm.optim import create_optimizer_v2

    try:
        optimizer = create_optimizer_v2(groups, opt=name, lr=rate)
    except (AssertionError, ImportError, TypeError, ValueError) as error:
        raise ValueError(f"optimizer {name!r} cannot be made by timm: {' '.join(str(error).split())}") from error
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer


def freeze_backbone(model: ScalableViT) -> None:
    """Has the head alone learn."""
    model.stages.requires_grad_(False)
