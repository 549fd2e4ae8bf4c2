"""The layout of the paper authors' code: what their weights compute here is what they compute there."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from scalablevit import ScalableViT
from scalablevit.design import PAPER
from scalablevit.weights import convert_state_dict
from tests.references import PAPER_CASES, golden_case


@pytest.mark.parametrize("name", PAPER_CASES)
def test_converted_weights_compute_what_the_authors_code_computes(name):
    case = golden_case(name)
    model = ScalableViT(**case.arguments).eval()
    model.load_state_dict(convert_state_dict(case.state_dict, model))

    images = case.images.requires_grad_()
    logits = model(images)
    (logits * case.probe).sum().backward()

    assert (logits - case.logits).abs().max() < 1e-4  # logits have a standard deviation of about 0.5
    difference = (F.avg_pool2d(images.grad, 8) - case.pooled_gradient).abs().max()
    assert difference < 1e-4 * case.pooled_gradient.abs().max()


@pytest.mark.parametrize("name", ["paper_tiny", "paper_tiny_plain"])
def test_there_and_back_gives_the_same_bits(name):
    case = golden_case(name)
    model = ScalableViT(**case.arguments, device="meta")
    state = case.state_dict

    back = convert_state_dict(convert_state_dict(state, model), model, to="paper")

    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_every_name_of_ours_comes_from_the_authors_weights():
    case = golden_case("paper_tiny")
    model = ScalableViT(**case.arguments)
    own = convert_state_dict(case.state_dict, model)

    assert list(own) == list(model.state_dict())
    before = model.state_dict()
    assert not any(torch.equal(own[key], before[key]) for key in own)


def test_projections_without_bias_are_an_option_of_theirs():
    case = golden_case("paper_tiny")
    biases = ("attn.q.bias", "attn.k.bias", "attn.v.bias", "attn.qkv.bias", "attn.kv.bias")
    state = {key: tensor for key, tensor in case.state_dict.items() if not key.endswith(biases)}
    with_bias = ScalableViT(**case.arguments)
    model = ScalableViT(**{**case.arguments, "design": replace(PAPER, qkv_bias=False)})

    back = convert_state_dict(convert_state_dict(state, model), model, to="paper")

    assert back.keys() == state.keys()
    with pytest.raises(
        ValueError, match=r"missing are .*qkv\.bias.* Build the model with qkv_bias=False in its design"
    ):
        convert_state_dict(state, with_bias)


def test_an_odd_number_of_blocks_is_refused():
    case = golden_case("paper_tiny")
    model = ScalableViT(**case.arguments)
    state = {key: tensor for key, tensor in case.state_dict.items() if not key.startswith("stages.2.3.")}

    with pytest.raises(ValueError, match=r"stage 2 has 3 attention blocks \(stages\.2\.\*\), and an odd number"):
        convert_state_dict(state, model)


def test_an_ssa_in_the_place_of_an_iwsa_is_refused():
    case = golden_case("paper_tiny")
    model = ScalableViT(**case.arguments)
    state = case.state_dict
    for key in [key for key in state if key.startswith("stages.1.0.attn.")]:
        del state[key]
    state |= {key.replace("1.1.attn", "1.0.attn"): tensor for key, tensor in state.items() if ".1.1.attn." in key}

    with pytest.raises(ValueError, match=r"stages\.1\.0\.attn\.q\.weight belongs to an SSA, where an IWSA should be"):
        convert_state_dict(state, model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iwsa_dim_key": (8, 8, 8, 4)}, r"iwsa_dim_key is 4 in stage 3, and there it is 8"),
        ({"iwsa_dim_value": (16, 8, 8, 8)}, r"iwsa_dim_value is 16 in stage 0, and there it is 8"),
        ({"ssa_dim_value": (8, 8, 9, 8)}, r"ssa_dim_value is 9 in stage 2, and there it is 8 or 10"),
        ({"ssa_dim_key": (10, 10, 10, 10)}, r"ssa_dim_key is 10 in stage 3, and there it is 8"),
        ({"global_pool": "max"}, r"global_pool is 'max', and there it is 'avg'"),
        ({"patch_size": 2}, r"patch_size is 2, and there it is 4"),
        ({"design": "vit-pytorch", "head": None}, r"layer_order of its design is 'ssa .* with design='paper'"),
    ],
)
def test_a_network_that_their_code_cannot_make_is_refused(changes, message):
    model = ScalableViT(**{**golden_case("paper_tiny").arguments, **changes})

    with pytest.raises(ValueError, match="the paper layout cannot express the model: " + message):
        convert_state_dict(model.state_dict(), model, to="paper")


def test_scaled_values_are_expressed_both_ways():
    arguments = {**golden_case("paper_tiny").arguments, "ssa_dim_value": (10, 10, 10, 8)}
    model = ScalableViT(**arguments)

    theirs = convert_state_dict(model.state_dict(), model, to="paper")
    back = convert_state_dict(theirs, model)

    assert theirs["stages.0.1.attn.v.weight"].shape == (10, 10)
    assert theirs["stages.0.1.attn.proj.weight"].shape == (8, 10)
    assert all(torch.equal(back[key], tensor) for key, tensor in model.state_dict().items())
