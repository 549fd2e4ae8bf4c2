"""Conversion of state dicts between the layouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from scalablevit.design import resolve_design
from scalablevit.scalable_vit import ScalableViT
from scalablevit.weights.arguments import arguments_of
from scalablevit.weights.layouts import FIRST_CONV, FOREIGN_LAYOUTS, LAYOUTS, OWN_LAYOUT, detect_layout
from scalablevit.weights.rules import ForeignLayout, pairings, split, stack
from scalablevit.weights.state_dicts import Shapes, differences, shape_of, shapes_of, unwrap


def convert_state_dict(state_dict: Mapping[str, Any], model: ScalableViT, to: str = "scalablevit") -> dict[str, Tensor]:
    """A state dict of any known layout in another layout.

    The layout of what is given is detected. Nothing is computed: values, types and devices stay, and there and back
    gives the same bits. Two things leave no trace in any layout, so that the model must have them right: the number
    of heads, and the window size.

    Args:
        state_dict: A state dict of this package, of vit-pytorch or of the paper authors' code. It may be wrapped as
            ``{"state_dict": ...}``, or under ``"model"``, ``"model_ema"`` or ``"model_state_dict"`` (the first of these
            that is there), and all its names may begin with ``module.``, ``_orig_mod.`` or ``model.``. It is not
            changed.
        model: The model that the weights belong to, whatever its own weights are. It is not changed.
        to: The layout that is wanted: ``"scalablevit"``, which `model.load_state_dict` takes, ``"vit-pytorch"`` or
            ``"paper"``.

    Returns:
        The tensors in memory of their own, in the order of the model's parameters.

    Raises:
        ValueError: If the layout is unknown, a name is missing, left over or of another shape (the message names them,
            and the arguments with which a model would fit), or the model is of a design that the layout cannot express.
    """
    if to not in LAYOUTS:
        raise ValueError(f"to is {to!r}; it must be one of {', '.join(map(repr, LAYOUTS))}")
    if not isinstance(model, ScalableViT):
        raise ValueError(
            f"model is a {type(model).__name__}; it must be the ScalableViT of this package to convert for"
        )
    state = unwrap(state_dict)
    layout = detect_layout(state)
    if layout == OWN_LAYOUT:
        own = _checked_own(state, model)
    else:
        own = _to_own(state, model, FOREIGN_LAYOUTS[layout])
    return own if to == OWN_LAYOUT else _to_foreign(own, model, FOREIGN_LAYOUTS[to])


def convert_checkpoint(checkpoint: Mapping[str, Any], model: ScalableViT) -> dict[str, Tensor]:
    """What a checkpoint of any known layout holds of a model's parameters, under the model's names.

    Other than for `convert_state_dict` the checkpoint may be of a network with other classes, channels or another kind
    of head, or have no head, or no classifier. Such parameters come out with the shapes they have, or not at all, for
    whoever loads them to adapt; all others are there, and fit.

    Args:
        checkpoint: As for `convert_state_dict`.
        model: The model that is to start from it. It is not changed.

    Returns:
        The tensors; those of our own layout as they are, those of another in memory of their own.

    Raises:
        ValueError: If the layout is unknown, or the checkpoint is of another network.
    """
    state = unwrap(checkpoint)
    detected = detect_layout(state)
    if detected == OWN_LAYOUT:
        return _checked_backbone(state, model)
    layout, shapes = FOREIGN_LAYOUTS[detected], shapes_of(state)
    found = layout.read_model(shapes)
    channels = shape_of(shapes, layout.first_conv, 4)[1]
    adapted = {"num_classes": found["num_classes"], "head": found["head"], "channels": channels, "global_pool": "avg"}
    source = ScalableViT(**{**model.config, **adapted}, device="meta")
    return _to_own(state, source, layout, has_head=any(name.startswith(layout.head_prefix) for name in shapes))


def _checked_backbone(state: dict[str, Tensor], model: ScalableViT) -> dict[str, Tensor]:
    """The state dict, if all in it but the head and the first convolution is what the model has."""
    adaptable = ("head.", f"{FIRST_CONV}.")

    def fixed(shapes: Shapes) -> Shapes:
        return {name: shape for name, shape in shapes.items() if not name.startswith(adaptable)}

    problem = differences(fixed(shapes_of(state)), fixed(shapes_of(model.state_dict())))
    if problem:
        raise ValueError(f"the state dict (scalablevit layout) is of another network than the model: {problem}")
    return state


def _checked_own(state: Mapping[str, Tensor], model: ScalableViT) -> dict[str, Tensor]:
    expected = shapes_of(model.state_dict())
    problem = differences(shapes_of(state), expected)
    if problem:
        raise ValueError(
            f"the state dict (scalablevit layout) does not fit the model: {problem}. Build the model with the arguments"
            " that the weights were trained with; config.json beside them has them"
        )
    return {name: state[name].detach().clone() for name in expected}


def _to_own(
    state: Mapping[str, Tensor], model: ScalableViT, layout: ForeignLayout, *, has_head: bool = True
) -> dict[str, Tensor]:
    shapes = shapes_of(state)
    layout.check_names(shapes)
    _check_design(model, layout)
    pairs = [pair for pair in pairings(model, layout) if has_head or not pair.ours.startswith("head.")]
    expected = {name: shape for pair in pairs for name, shape in pair.theirs.items()}
    problem = differences(shapes, expected)
    if problem:
        fix = _fix(shapes, layout, model)
        raise ValueError(f"the state dict ({layout.name} layout) does not fit the model: {problem}. {fix}")
    return {pair.ours: stack(state, pair) for pair in pairs}


def _to_foreign(own: Mapping[str, Tensor], model: ScalableViT, layout: ForeignLayout) -> dict[str, Tensor]:
    _check_design(model, layout)
    limit = layout.limits(model.config)
    if limit is None and model.global_pool != "avg":
        limit = f"global_pool is {model.global_pool!r}, and there it is 'avg'"
    if limit is not None:
        raise ValueError(f"the {layout.name} layout cannot express the model: {limit}")
    return {name: tensor for pair in pairings(model, layout) for name, tensor in split(own[pair.ours], pair).items()}


def _check_design(model: ScalableViT, layout: ForeignLayout) -> None:
    for field in (field.name for field in fields(model.design) if field.name not in layout.free_fields):
        got, needed = getattr(model.design, field), getattr(layout.design, field)
        if got != needed:
            raise ValueError(
                f"the {layout.name} layout cannot express the model: {field} of its design is {got!r}, and there it is"
                f" {needed!r}: build the model with design={layout.name!r}"
            )
    if model.patch_size != layout.patch_size:
        raise ValueError(
            f"the {layout.name} layout cannot express the model: patch_size is {model.patch_size}, and there it is"
            f" {layout.patch_size}: build the model with patch_size={layout.patch_size}"
        )


def _fix(shapes: Shapes, layout: ForeignLayout, model: ScalableViT) -> str:
    """What to do about shapes that do not fit the model."""
    heads = model.config["heads"] if layout.count_stages(shapes) == len(model.stages) else None
    try:
        arguments = arguments_of(shapes, layout, heads)
    except ValueError as error:
        return f"With the heads of this model no other would fit either: {error}"
    wanted = []
    if resolve_design(arguments.pop("design")).qkv_bias != model.design.qkv_bias:
        wanted.append(f"qkv_bias={not model.design.qkv_bias} in its design")
    for name, value in arguments.items():
        if model.config[name] != (list(value) if isinstance(value, tuple) else value):
            wanted.append(f"{name}={value!r}")
    if not wanted:
        return "It is incomplete, or was changed after training: get it again from where it came"
    is_open = layout.head_width is None and any("_dim_key=" in item or "_dim_value=" in item for item in wanted)
    guess = ", or with other heads: the weights do not say how many" if is_open else ""
    note = "; afterwards reset_classifier gives it other classes" if "num_classes" in " ".join(wanted) else ""
    return f"Build the model with {', '.join(wanted)}{guess}{note}"
