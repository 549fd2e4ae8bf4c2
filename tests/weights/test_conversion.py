"""`convert_state_dict` whatever the layout: detection, wrapping, errors, and what it leaves alone."""

from collections import OrderedDict
from dataclasses import fields, replace

import pytest
import torch
from torch import nn

from scalablevit import ScalableViT
from scalablevit.design import PAPER, VIT_PYTORCH
from scalablevit.weights import convert_state_dict
from scalablevit.weights.layouts import FOREIGN_LAYOUTS
from scalablevit.weights.rules import pairings

WIDTHS = dict.fromkeys(("iwsa_dim_key", "iwsa_dim_value", "ssa_dim_key", "ssa_dim_value"), 8)
ARGUMENTS = {
    "num_classes": 3,
    "dim": 16,
    "depth": (2, 1),
    "heads": (2, 4),
    "reduction_factor": (4, 1),
    "window_size": 4,
    "head": "linear",
    **WIDTHS,
}
FOREIGN = tuple(FOREIGN_LAYOUTS)


def build(design, **changes):
    return ScalableViT(design=design, **{**ARGUMENTS, **changes})


def foreign_state(design):
    model = build(design)
    return convert_state_dict(model.state_dict(), model, to=design), model


def equal(state, other):
    return list(state) == list(other) and all(torch.equal(state[key], other[key]) for key in state)


@pytest.mark.parametrize("layout", FOREIGN)
def test_the_layout_is_detected(layout):
    state, model = foreign_state(layout)

    assert equal(convert_state_dict(state, model), model.state_dict())
    assert equal(convert_state_dict(state, model, to=layout), state)
    assert equal(convert_state_dict(model.state_dict(), model), model.state_dict())


@pytest.mark.parametrize("layout", FOREIGN)
@pytest.mark.parametrize("wrapped_as", ["state_dict", "model", "model_ema"])
def test_wrapped_state_dicts_are_unwrapped(layout, wrapped_as):
    state, model = foreign_state(layout)
    prefixed = OrderedDict((f"module.{key}", tensor) for key, tensor in state.items())
    both = {f"module._orig_mod.{key}": tensor for key, tensor in state.items()}

    for inner in (state, prefixed, both):
        assert equal(convert_state_dict({wrapped_as: inner, "epoch": 3}, model), model.state_dict())
    assert equal(convert_state_dict(prefixed, model), model.state_dict())


def test_the_trained_weights_go_before_their_average():
    state, model = foreign_state("paper")
    average = {key: torch.zeros_like(tensor) for key, tensor in state.items()}

    assert equal(convert_state_dict({"model_ema": average, "model": state}, model), model.state_dict())


@pytest.mark.parametrize("layout", FOREIGN)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_type_and_device_are_kept_and_nothing_is_changed(layout, dtype):
    state, model = foreign_state(layout)
    state = {key: tensor.to(dtype) for key, tensor in state.items()}
    before = {key: tensor.clone() for key, tensor in state.items()}

    own = convert_state_dict(state, model)
    for tensor in own.values():
        tensor.zero_()
    meta = convert_state_dict({key: tensor.to("meta") for key, tensor in state.items()}, model)

    assert {tensor.dtype for tensor in own.values()} == {dtype}
    assert equal(state, before)  # also: the results share no memory with what was given
    assert all(tensor.is_meta for tensor in meta.values())


@pytest.mark.parametrize("layout", FOREIGN)
def test_results_share_no_memory_with_the_model_or_each_other(layout):
    state, model = foreign_state(layout)
    own = convert_state_dict(model.state_dict(), model)

    tensors = [*state.values(), *own.values(), *model.state_dict().values()]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(tensors)


@pytest.mark.parametrize("layout", ["scalablevit", *FOREIGN])
def test_missing_leftover_and_misshapen_names_are_named(layout):
    design = "paper" if layout == "scalablevit" else layout
    model = build(design)
    state = convert_state_dict(model.state_dict(), model, to=layout)
    names = [name for name in state if "attn" in name or ".0.layers.0.0" in name or "ssa" in name]
    missing, misshapen = names[0], names[1]

    with pytest.raises(ValueError, match=rf"does not fit the model: missing are {missing}\."):
        convert_state_dict({key: tensor for key, tensor in state.items() if key != missing}, model)
    with pytest.raises(ValueError, match=r"left over are extra\.weight\."):
        convert_state_dict({**state, "extra.weight": torch.ones(1)}, model)
    with pytest.raises(ValueError, match=rf"of another shape: {misshapen} is \[7\] and should be \["):
        convert_state_dict({**state, misshapen: torch.ones(7)}, model)


@pytest.mark.parametrize("layout", FOREIGN)
def test_many_names_are_cut_short(layout):
    state, model = foreign_state(layout)

    with pytest.raises(ValueError, match=r"left over are x0, x1, x2, x3, x4, x5 and 14 more"):
        convert_state_dict({**state, **{f"x{i}": torch.ones(1) for i in range(20)}}, model)


@pytest.mark.parametrize("layout", FOREIGN)
@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"num_classes": 7}, "Build the model with num_classes=3; afterwards reset_classifier gives it other classes"),
        ({"channels": 1}, "Build the model with channels=3"),
        ({"dim": 8}, r"Build the model with dim=\(16, 32\)"),
        ({"heads": (2, 5)}, "With the heads of this model no other would fit either: 32 channels, for iwsa_dim_key"),
        ({"depth": (1, 1, 1), "reduction_factor": 1, "heads": 1}, "left over are "),
        ({"ssa_dim_value": 16, "depth": (1, 1)}, r"Build the model with depth=\(2, 1\), ssa_dim_value=\(8, 8\)"),
        ({"reduction_factor": (2, 1)}, r"Build the model with reduction_factor=\(4, 1\)"),
    ],
)
def test_the_error_says_which_model_would_fit(layout, changes, advice):
    state, _ = foreign_state(layout)
    model = build(layout, **changes)

    with pytest.raises(ValueError, match=advice):
        convert_state_dict(state, model)


def test_a_damaged_file_is_not_blamed_on_the_model():
    state, model = foreign_state("paper")
    del state["norm.bias"]

    with pytest.raises(ValueError, match=r"missing are norm\.bias\. It is incomplete, or was changed after training"):
        convert_state_dict(state, model)


@pytest.mark.parametrize(
    ("layout", "design", "field"),
    [
        (name, published, field.name)
        for name, published in (("vit-pytorch", VIT_PYTORCH), ("paper", PAPER))
        for field in fields(published)
        if field.name not in FOREIGN_LAYOUTS[name].free_fields
    ],
)
def test_each_field_of_the_design_that_matters_is_checked(layout, design, field):
    other = PAPER if design is VIT_PYTORCH else VIT_PYTORCH
    model = build(replace(design, **{field: getattr(other, field)}))
    state, _ = foreign_state(layout)

    with pytest.raises(ValueError, match=f"cannot express the model: {field} of its design is"):
        convert_state_dict(model.state_dict(), model, to=layout)
    with pytest.raises(ValueError, match=f"cannot express the model: {field} of its design is"):
        convert_state_dict(state, model)


def test_one_foreign_layout_is_no_other():
    state, model = foreign_state("vit-pytorch")

    with pytest.raises(ValueError, match="the paper layout cannot express the model"):
        convert_state_dict(state, model, to="paper")


def test_a_parameter_without_a_rule_is_named():
    model = build("paper")
    model.stages[0].extra = nn.Linear(2, 2)

    with pytest.raises(
        ValueError, match=r"the paper layout has no place for stages\.0\.extra\.weight, stages\.0\.extra"
    ):
        pairings(model, FOREIGN_LAYOUTS["paper"])


def test_parts_of_one_parameter_must_be_alike():
    state, model = foreign_state("vit-pytorch")
    state["layers.0.0.layers.0.0.to_v.weight"] = state["layers.0.0.layers.0.0.to_v.weight"].double()

    with pytest.raises(
        ValueError, match=r"to_k\.weight \(torch\.float32, cpu\), .*to_v\.weight \(torch\.float64, cpu\)"
    ):
        convert_state_dict(state, model)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "a state dict is needed, .* this is empty"),
        ({"conv1.weight": torch.ones(1)}, r"the names conv1\.weight belong to no known layout"),
        ({"norm.weight": [1.0]}, r"'norm\.weight' holds a list"),
        (
            {"optimizer": {"state": {}}},
            r"'optimizer' holds a dict; in a checkpoint it is looked for under 'state_dict'",
        ),
        ([torch.ones(1)], "this is a list"),
    ],
)
def test_what_is_no_state_dict_is_refused(state, message):
    with pytest.raises(ValueError, match=message):
        convert_state_dict(state, build("paper"))


def test_a_wrong_target_or_model_is_refused():
    state, model = foreign_state("paper")

    with pytest.raises(ValueError, match="to is 'timm'; it must be one of 'scalablevit', 'vit-pytorch', 'paper'"):
        convert_state_dict(state, model, to="timm")
    with pytest.raises(ValueError, match="model is a Linear; it must be the ScalableViT of this package"):
        convert_state_dict(state, nn.Linear(1, 1))
