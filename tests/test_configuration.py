import pytest

from scalablevit import Design, ScalableViT
from scalablevit.configuration import stage_configs, take_indices
from scalablevit.design import PAPER, VIT_PYTORCH, resolve_design
from tests.networks import small_network

MINIMAL = {"num_classes": 3, "dim": 8, "depth": (1, 2), "heads": 2, "reduction_factor": (2, 1)}


def test_single_values_hold_for_all_stages_and_a_single_dim_doubles():
    first, second = stage_configs(
        dim=8, depth=[1, 2], heads=2, reduction_factor=(2, 1), window_size=(7, None), **WIDTHS
    )
    assert (first.dim, second.dim) == (8, 16)
    assert (first.depth, second.depth) == (1, 2)
    assert (first.heads, second.heads) == (2, 2)
    assert (first.window_size, second.window_size) == (7, None)


WIDTHS = {"iwsa_dim_key": 4, "iwsa_dim_value": 4, "ssa_dim_key": 4, "ssa_dim_value": 4, "ff_expansion_factor": 4}


def test_lists_and_tuples_make_the_same_network():
    lists = ScalableViT(**{**MINIMAL, "depth": [1, 2], "reduction_factor": [2, 1]})
    assert lists.config == ScalableViT(**MINIMAL).config
    assert ScalableViT(**{**MINIMAL, "depth": 2, "reduction_factor": 2}).config["depth"] == [2]


@pytest.mark.parametrize(
    ("argument", "value", "words"),
    [
        ("heads", (2, 2, 2), ["heads", "(2, 2, 2)", "3 values", "exactly 2"]),
        ("reduction_factor", 0, ["reduction_factor", "positive integer", "0"]),
        ("window_size", (7, -1), ["window_size", "None for the whole map", "-1"]),
        ("window_size", (7, 7.0), ["window_size", "7.0"]),
        ("dim", "64", ["dim", "'64'", "positive integer"]),
        ("depth", (), ["depth", "()", "layers of each stage"]),
        ("depth", (1, True), ["depth", "True"]),
        ("ssa_dim_key", (8, None), ["ssa_dim_key", "None"]),
        ("channels", 0, ["channels", "at least 1"]),
        ("num_classes", -1, ["num_classes", "-1", "at least 0"]),
        ("dropout", 1.0, ["dropout", "1.0"]),
        ("attention_dropout", -0.1, ["attention_dropout", "-0.1"]),
        ("head_dropout", "x", ["head_dropout", "'x'"]),
        ("drop_path", 2, ["drop_path", "2"]),
        ("patch_size", 0, ["patch_size", "0"]),
        ("global_pool", "mean", ["global_pool", "'mean'", "'avg'"]),
        ("head", "mlp", ["head", "'mlp'", "'hidden'"]),
        ("design", "swin", ["design", "'swin'", "'vit-pytorch'", "'paper'"]),
    ],
)
def test_an_inconsistent_argument_is_named_with_its_value_and_the_fix(argument, value, words):
    with pytest.raises(ValueError, match=argument) as error:
        ScalableViT(**{**MINIMAL, argument: value})
    for word in words:
        assert word in str(error.value)


def test_unknown_arguments_are_refused():
    with pytest.raises(TypeError, match="patch_sise"):
        ScalableViT(**MINIMAL, patch_sise=2)


@pytest.mark.parametrize(
    ("indices", "taken"), [(None, [0, 1, 2, 3]), (2, [2, 3]), ([0, 2], [0, 2]), ([-1], [3]), ([-1, 0, 3], [0, 3])]
)
def test_indices_mean_stages_as_in_timm(indices, taken):
    assert take_indices(4, indices) == taken


@pytest.mark.parametrize("indices", [0, 5, [4], [-5], []])
def test_indices_outside_the_stages_are_refused(indices):
    with pytest.raises(ValueError, match="indices"):
        take_indices(4, indices)


@pytest.mark.parametrize("design", [VIT_PYTORCH, PAPER], ids=lambda design: design.name)
def test_a_design_survives_its_dictionary(design):
    assert resolve_design(design.to_dict()) == design
    assert all(isinstance(value, (str, float, bool)) for value in design.to_dict().values())


def test_a_design_with_an_impossible_field_is_refused():
    with pytest.raises(ValueError, match=r"lim is 'sparse'.*'dense', 'depthwise'"):
        Design(**{**PAPER.to_dict(), "lim": "sparse"})
    with pytest.raises(ValueError, match="norm_eps"):
        Design(**{**PAPER.to_dict(), "norm_eps": 0.0})
    with pytest.raises(ValueError, match="exactly"):
        small_network({"name": "mine"})
