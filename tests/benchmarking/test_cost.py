"""Counts against hand arithmetic and the published networks' numbers."""

import pytest
import torch

from scalablevit import ScalableViT, scalablevit_small
from scalablevit.benchmarking.cost import count_macs, count_parameters


def tiny(**overrides):
    arguments = {
        "num_classes": 5,
        "dim": 8,
        "depth": (1,),
        "heads": 2,
        "reduction_factor": 2,
        "window_size": 2,
        "iwsa_dim_key": 4,
        "iwsa_dim_value": 4,
        "ssa_dim_key": 4,
        "ssa_dim_value": 4,
    }
    return ScalableViT(**{**arguments, **overrides})


def test_macs_of_a_layer_by_hand():
    positions, keys, dim, heads = 4 * 4, 2 * 2, 8, 2  # of a 16x16 image, with patches of 4
    patches = positions * 7 * 7 * 3 * dim
    feed_forward = positions * 2 * dim * 4 * dim
    ssa = 2 * positions * dim * dim + keys * 2 * 2 * dim * 2 * dim + 2 * heads * positions * keys * 4
    iwsa = 4 * positions * dim * dim + positions * 3 * 3 * dim * dim + 2 * heads * positions * 4 * 4
    peg = positions * 3 * 3 * dim
    expected = patches + ssa + iwsa + 2 * feed_forward + peg + dim * 5
    assert count_macs(tiny(), 16, 16) == expected


def test_counting_changes_and_computes_nothing():
    model = tiny(device="meta")
    assert count_macs(model, 16, 16) == count_macs(tiny(), 16, 16)
    real = tiny().train()
    before = {name: value.clone() for name, value in real.state_dict().items()}
    count_macs(real, 16, 16)
    assert real.training
    assert all(not p.is_meta for p in real.parameters())
    for name, value in real.state_dict().items():
        assert torch.equal(value, before[name])


def test_grows_with_the_image():
    assert count_macs(tiny(), 32, 16) == pytest.approx(2 * count_macs(tiny(), 16, 16), rel=0.05)


def test_small_is_as_large_as_the_released_one():
    model = scalablevit_small(device="meta")
    assert count_parameters(model) == 32_000_472
    assert count_macs(model, 224, 224) == pytest.approx(4.27e9, rel=0.003)
