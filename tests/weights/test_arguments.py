"""`infer_arguments`: weights say which network they are."""

from dataclasses import replace

import pytest
import torch
from vit_pytorch.scalable_vit import ScalableViT as Reference

from scalablevit import ScalableViT, scalablevit_small
from scalablevit.design import PAPER
from scalablevit.weights import convert_state_dict, infer_arguments
from tests.references import golden_case
from tests.weights.test_vit_pytorch import CONFIGURATIONS


def without_window(config):
    return {name: value for name, value in config.items() if name != "window_size"}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_vit_pytorch_weights_say_everything_but_heads_and_window(name):
    arguments = CONFIGURATIONS[name]
    state = Reference(**arguments).state_dict()

    inferred = infer_arguments(state, heads=arguments["heads"])

    expected = ScalableViT(**arguments, device="meta").config
    assert without_window(ScalableViT(**inferred, device="meta").config) == without_window(expected)
    assert inferred["design"] == "vit-pytorch"


@pytest.mark.parametrize("name", ["paper_tiny", "paper_tiny_ragged", "paper_tiny_plain"])
def test_paper_weights_say_everything_but_heads_and_window(name):
    case = golden_case(name)

    inferred = infer_arguments({"model": case.state_dict}, heads=case.arguments["heads"])

    expected = ScalableViT(**case.arguments, device="meta").config
    assert without_window(ScalableViT(**inferred, device="meta").config) == without_window(expected)


def small_state(**changes):
    model = scalablevit_small(device="meta", **changes)
    return convert_state_dict(model.state_dict(), model, to="paper"), model


def test_the_heads_of_released_paper_weights_are_32_wide():
    state, model = small_state()

    inferred = infer_arguments(state)

    assert inferred["heads"] == (2, 4, 8, 16)
    assert ScalableViT(**inferred, window_size=7, device="meta").config == model.config


def test_values_scaled_by_the_older_code_are_detected_and_built():
    state, older = small_state(ssa_dim_value=(40, 40, 40, 32))
    released = scalablevit_small(device="meta")

    assert state["stages.0.1.attn.v.weight"].shape == (80, 80)
    inferred = infer_arguments(state)
    built = ScalableViT(**inferred, window_size=7, device="meta")

    assert inferred["ssa_dim_value"] == (40, 40, 40, 32)
    assert built.config == older.config
    # The published table prints 32.4 M parameters, which is this network rather than the released one.
    assert round(sum(p.numel() for p in built.parameters()) / 1e6, 1) == 32.4
    with pytest.raises(ValueError, match=r"Build the model with ssa_dim_value=\(40, 40, 40, 32\)$"):
        convert_state_dict(state, released)


def test_other_heads_may_be_given():
    state, _ = small_state()

    inferred = infer_arguments(state, heads=(1, 2, 4, 8))

    assert inferred["heads"] == (1, 2, 4, 8)
    assert inferred["iwsa_dim_key"] == inferred["iwsa_dim_value"] == (64, 64, 64, 64)
    assert inferred["ssa_dim_key"] == (80, 80, 80, 64)


@pytest.mark.parametrize("num_classes", [0, 5])
@pytest.mark.parametrize("head", ["linear", "hidden"])
def test_the_head_is_read(head, num_classes):
    state, _ = small_state(head=head, num_classes=num_classes, channels=1)

    inferred = infer_arguments(state)

    assert (inferred["head"], inferred["num_classes"], inferred["channels"]) == (head, num_classes, 1)


def test_projections_without_bias_are_read():
    design = replace(PAPER, qkv_bias=False)
    state, _ = small_state(design=design)

    assert infer_arguments(state)["design"] == design


def resized(state, name, *shape):
    assert name in state
    return {**state, name: torch.empty(shape, device="meta")}


@pytest.mark.parametrize(
    ("change", "heads", "message"),
    [
        (None, (2, 4), r"heads is \(2, 4\); the weights have 4 stages"),
        (None, (2, 4, 8, 0), "heads is 0 for stage 3; it must be a positive integer"),
        (None, 3, "64 channels, for iwsa_dim_key in stage 0, are not 3 heads: give other heads"),
        (("stages.0.0.mlp.fc1.weight", 100, 64), None, "100 wide inside, no multiple of its 64 channels"),
        (
            ("stages.0.0.attn.proj.weight", 64, 40),
            None,
            "IWSA's values are 40 wide, no multiple of the 32 .*give heads",
        ),
        (("patch_embeds.0.proj.weight", 64, 3, 5, 5), None, "has a kernel of 5; only that of 7, for patches of 4"),
        (("stages.0.1.attn.q.weight", 80), None, r"stages\.0\.1\.attn\.q\.weight is \[80\] in the state dict; it must"),
    ],
)
def test_what_fits_no_network_is_refused(change, heads, message):
    state, _ = small_state()
    if change is not None:
        state = resized(state, *change)

    with pytest.raises(ValueError, match=message):
        infer_arguments(state, heads=heads)


def test_a_missing_name_is_named():
    state, _ = small_state()
    del state["stages.2.0.attn.qkv.weight"]

    with pytest.raises(ValueError, match=r"the state dict holds no stages\.2\.0\.attn\.qkv\.weight"):
        infer_arguments(state)


def test_heads_must_be_given_where_nothing_fixes_them():
    state = Reference(**CONFIGURATIONS["unequal"]).state_dict()

    with pytest.raises(ValueError, match="weights of the vit-pytorch layout do not say how many heads there are"):
        infer_arguments(state)


def test_odd_depths_and_our_own_layout_are_refused():
    state, model = small_state()

    with pytest.raises(ValueError, match="stage 3 has 1 attention blocks"):
        infer_arguments({key: tensor for key, tensor in state.items() if not key.startswith("stages.3.1.")})
    with pytest.raises(ValueError, match="of this package's own layout, whose arguments are saved beside it"):
        infer_arguments(model.state_dict())
