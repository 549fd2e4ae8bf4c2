"""Tables that pair our parameters with those of another layout, and what is done with the tensors they pair.

A table is a sequence of `Rule`. Applied to a model it becomes a list of `Pairing`, one for each of our parameters, and
a pairing is read in either direction: rows stacked and reshaped one way, split and reshaped the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from scalablevit.design import Design
from scalablevit.scalable_vit import ScalableViT
from scalablevit.weights.state_dicts import Shape, Shapes, listed

Form = Literal["same", "convolution", "cells", "channel norm"]
Condition = Literal["always", "reduced", "not reduced", "linear head", "hidden head"]


@dataclass(frozen=True)
class Rule:
    """One of our modules and the foreign modules that hold the same weights and biases.

    Args:
        ours: Name of our module; ``{stage}`` and ``{layer}`` stand for numbers.
        theirs: Name of the foreign module, or of several whose rows, stacked in this order, are ours. ``{stage}`` and
            ``{layer}`` stand for our numbers, ``{previous}`` for ``stage - 1``, ``{first}`` and ``{second}`` for
            ``2 * layer`` and ``2 * layer + 1``.
        form: ``"same"``; ``"convolution"``: a linear layer of ours is a 1x1 convolution there; ``"cells"``: a linear
            layer over cells of r x r positions, (rows, r * r * c), is a convolution with that kernel there,
            (rows, c, r, r); ``"channel norm"``: weight and bias (c,) of ours are called g and b there, and are
            (1, c, 1, 1).
        rows: For several foreign modules, the argument of `ScalableViT` with the head width of each.
        where: Which of our modules with this name are meant: in a stage with a reduction factor above 1, or of 1; in a
            model with a linear, or a hidden head.
    """

    ours: str
    theirs: str | tuple[str, ...]
    form: Form = "same"
    rows: tuple[str, ...] = ()
    where: Condition = "always"


@dataclass(frozen=True)
class Pairing:
    """One of our parameters, its shape, and the foreign parameters, with their shapes, whose rows make it up."""

    ours: str
    shape: Shape
    theirs: Shapes
    rows: tuple[int, ...]
    form: Form


@dataclass(frozen=True, kw_only=True)
class StageWidths:
    """What the weights of one stage say. Widths are in channels, of all heads together; `depth` counts our layers."""

    dim: int
    depth: int
    reduction_factor: int
    iwsa_keys: int
    iwsa_values: int
    ssa_keys: int
    ssa_values: int
    ff_hidden: int


@dataclass(frozen=True, kw_only=True)
class ForeignLayout:
    """All that is known of another implementation's layout.

    Args:
        name: What the layout is called.
        design: The design of the networks that are published in it.
        free_fields: Fields of `Design` in which a model may differ and still be expressed.
        first_conv: Name of the weight of its first convolution.
        patch_size: Its only patch size of which the convolution is ours.
        head_prefix: How the names of the classifier's head begin.
        head_width: Channels of an attention head in its published networks; None where nothing is fixed.
        marker: Regular expression of names that only this layout has.
        rules: The table. For each of our parameters the first rule that matches holds.
        check_names: Raises a ValueError for shapes that no model of ours can have.
        count_stages: How many stages there are in shapes of this layout.
        read_stage: What the shapes say of a stage.
        read_model: What the shapes say of the model as a whole, as arguments of `ScalableViT`.
        limits: Says in what a model with a certain `config` is none that its implementation can make; None for nothing.
    """

    name: str
    design: Design
    free_fields: frozenset[str]
    first_conv: str
    patch_size: int
    head_prefix: str
    head_width: int | None
    marker: str
    rules: Sequence[Rule]
    check_names: Callable[[Shapes], None]
    count_stages: Callable[[Shapes], int]
    read_stage: Callable[[Shapes, int], StageWidths]
    read_model: Callable[[Shapes], dict[str, Any]]
    limits: Callable[[Mapping[str, Any]], str | None]


def pairings(model: ScalableViT, layout: ForeignLayout) -> list[Pairing]:
    """Each parameter of the model, with its foreign counterparts.

    Raises:
        ValueError: If a parameter of the model has no place in the layout.
    """
    config = model.config
    found: list[Pairing] = []
    homeless: list[str] = []
    for name, tensor in model.state_dict().items():
        pairing = _pair(name, tuple(tensor.shape), config, layout)
        if pairing is None:
            homeless.append(name)
        else:
            found.append(pairing)
    if homeless:
        raise ValueError(
            f"the {layout.name} layout has no place for {listed(homeless)}: build the model with design={layout.name!r}"
        )
    return found


def stack(state: Mapping[str, Tensor], pairing: Pairing) -> Tensor:
    """Our parameter, in memory of its own, out of the foreign ones in `state`.

    Raises:
        ValueError: If the foreign ones are of different types, or on different devices.
    """
    parts = [state[name].detach() for name in pairing.theirs]
    if len({(part.dtype, part.device) for part in parts}) > 1:
        kinds = listed(f"{name} ({state[name].dtype}, {state[name].device})" for name in pairing.theirs)
        raise ValueError(
            f"{kinds} become one parameter and must be of one type, on one device: convert them with .to()"
        )
    if pairing.form == "cells":
        parts = [part.permute(0, 2, 3, 1) for part in parts]
    return torch.cat([part.reshape(rows, *pairing.shape[1:]) for part, rows in zip(parts, pairing.rows, strict=True)])


def split(ours: Tensor, pairing: Pairing) -> dict[str, Tensor]:
    """The foreign parameters, each in memory of its own, out of our one. The inverse of `stack`."""
    theirs = {}
    for (name, shape), part in zip(pairing.theirs.items(), torch.split(ours.detach(), list(pairing.rows)), strict=True):
        if pairing.form == "cells":
            rows, channels, height, width = shape
            part = part.reshape(rows, height, width, channels).permute(0, 3, 1, 2)
        theirs[name] = part.reshape(shape).clone(memory_format=torch.contiguous_format)
    return theirs


def _pair(name: str, shape: Shape, config: Mapping[str, Any], layout: ForeignLayout) -> Pairing | None:
    module, _, parameter = name.rpartition(".")
    for rule in layout.rules:
        match = re.fullmatch(_pattern(rule.ours), module)
        if match is None:
            continue
        numbers = {key: int(value) for key, value in match.groupdict().items()}
        if not _holds(rule.where, config, numbers):
            continue
        templates = (rule.theirs,) if isinstance(rule.theirs, str) else rule.theirs
        rows = _rows(rule, shape, config, numbers)
        foreign_parameter = parameter
        if rule.form == "channel norm":
            foreign_parameter = {"weight": "g", "bias": "b"}[parameter]
        kernel = config["reduction_factor"][numbers["stage"]] if rule.form == "cells" else 1
        theirs = {
            f"{_filled(template, numbers)}.{foreign_parameter}": _foreign_shape(rule.form, (count, *shape[1:]), kernel)
            for template, count in zip(templates, rows, strict=True)
        }
        return Pairing(name, shape, theirs, rows, rule.form)
    return None


def _pattern(template: str) -> str:
    return re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", re.escape(template))


def _filled(template: str, numbers: Mapping[str, int]) -> str:
    stage, layer = numbers.get("stage", 0), numbers.get("layer", 0)
    return template.format(stage=stage, layer=layer, previous=stage - 1, first=2 * layer, second=2 * layer + 1)


def _holds(condition: Condition, config: Mapping[str, Any], numbers: Mapping[str, int]) -> bool:
    if condition == "always":
        return True
    if condition in ("linear head", "hidden head"):
        return condition == f"{config['head']} head"
    return (config["reduction_factor"][numbers["stage"]] > 1) == (condition == "reduced")


def _rows(rule: Rule, shape: Shape, config: Mapping[str, Any], numbers: Mapping[str, int]) -> tuple[int, ...]:
    if not rule.rows:
        return (shape[0],)
    stage = numbers["stage"]
    return tuple(config["heads"][stage] * config[argument][stage] for argument in rule.rows)


def _foreign_shape(form: Form, shape: Shape, kernel: int) -> Shape:
    if form == "cells":
        return (shape[0], shape[1] // kernel**2, kernel, kernel)
    if form == "channel norm":
        return (1, *shape, 1, 1)
    if form == "convolution" and len(shape) == 2:
        return (*shape, 1, 1)
    return shape
