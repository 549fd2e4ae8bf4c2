"""Attentions of vit-pytorch's design in one call, with a dense LIM and dense keys and values, against float64."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from scalablevit import ScalableViT, sequences
from scalablevit.attention import InteractiveWindowedSelfAttention, ScalableSelfAttention
from scalablevit.blocks import attend_in_graph
from scalablevit.design import DESIGNS
from scalablevit.feed_forward import FeedForward
from scalablevit.kernels import use_native
from scalablevit.kernels.selection import convolves_any_map, multiplies_any_rows
from scalablevit.layers import PEG, PreNormResidual
from scalablevit.sequences import parts_of, run_blocks
from tests.kernels.native.test_blocks import error_of, gradients_of, weights_for
from tests.networks import MIXED_DESIGNS, assert_layers_are_called, randomise

COMMON = {"dropout": 0.0, "attention_dropout": 0.0, "design": DESIGNS["vit-pytorch"]}
BLOCKS = {
    "window": lambda: InteractiveWindowedSelfAttention(40, heads=2, dim_key=16, dim_value=20, window_size=7, **COMMON),
    "cells": lambda: ScalableSelfAttention(40, heads=3, dim_key=9, dim_value=7, reduction_factor=3, **COMMON),
    "ff": lambda: FeedForward(40),
}
NAMES = {"window": "attend_in_windows_block", "cells": "attend_to_list_block"}
# Whole cells and windows, what sticks out of them, and one image of many positions.
MAPS = [(6, 6, 12), (4, 14, 9), (3, 7, 40), (1, 25, 16)]
SMALL_NETWORK = {
    "num_classes": 5,
    "dim": (32, 64),
    "depth": (2, 1),
    "heads": (1, 2),
    "reduction_factor": (4, 2),
    "window_size": 7,
}
SMALL = [(1, 7, 7), (1, 3, 4), (2, 1, 1)]


def block_of(kind):
    return PEG(40) if kind == "peg" else PreNormResidual(nn.LayerNorm(40), BLOCKS[kind]())


def layers_of(order):
    torch.manual_seed(0)
    return randomise(nn.Sequential(nn.Sequential(*(block_of(kind) for kind in order.split())))).eval()


def exact_of(module, x):
    with torch.no_grad():
        return copy.deepcopy(module).double()(x.double())


def assert_near(found, expected, bound=1e-5):
    assert float((found - expected).norm()) <= bound * float(expected.norm())


@pytest.mark.parametrize("shape", MAPS, ids=str)
@pytest.mark.parametrize("kind", ["window", "cells"])
@pytest.mark.parametrize("residual", [True, False])
def test_an_attention_is_one_call(kind, shape, residual, calls):
    block, x = layers_of(kind)[0][0], torch.randn(*shape, 40)
    with torch.no_grad(), use_native(True):
        found = block(x) if residual else block.branch.forward_after(block.norm, x, residual=False)
    assert calls == [NAMES[kind]]
    assert_near(found, exact_of(block, x) - (0 if residual else x.double()))


@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_small_maps_are_left_to_steps(shape, calls):
    layers, x = layers_of("window"), torch.randn(*shape, 40)
    with torch.no_grad(), use_native(True):
        assert run_blocks(layers, x) is None
        assert_near(layers(x), exact_of(layers, x))
    assert "attend_in_windows_block" not in calls


@pytest.mark.parametrize("kind", ["window", "cells"])
def test_bfloat16_is_as_near_as_steps(kind, calls):
    block, x = layers_of(kind)[0][0], torch.randn(4, 14, 9, 40).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with use_native(True):
            found = block(x)
        assert ("attend_to_list_block" in calls) == (kind == "cells")  # PyTorch convolves in bfloat16
        assert "attend_in_windows_block" not in calls
        with use_native(False):
            usual = block(x)
    expected = exact_of(block, x)
    ours, theirs = (float((one - expected).norm()) for one in (found, usual))
    assert ours <= 1.2 * theirs


@pytest.mark.parametrize("shape", MAPS, ids=str)
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("kind", ["window", "cells"])
def test_gradients_are_those_of_the_layers(kind, residual, shape, calls):
    block, x = layers_of(kind)[0][0], torch.randn(*shape, 40).requires_grad_()
    exact = copy.deepcopy(block).double(), x.detach().double().requires_grad_()
    found = gradients_of(block, x, residual=residual)
    assert calls[0] == NAMES[kind]
    assert error_of(found, gradients_of(*exact, residual=residual, choice=False)) <= 2e-5


@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_gradients_of_small_maps_go_step_by_step(shape, calls):
    block, x = layers_of("window")[0][0], torch.randn(*shape, 40).requires_grad_()
    exact = copy.deepcopy(block).double(), x.detach().double().requires_grad_()
    assert error_of(gradients_of(block, x), gradients_of(*exact, choice=False)) <= 2e-5
    assert NAMES["window"] not in calls


@pytest.mark.parametrize("kind", ["window", "cells"])
def test_steps_keep_less_where_a_parameter_is_frozen(kind, calls):
    block, x = layers_of(kind)[0][0], torch.randn(4, 14, 9, 40).requires_grad_()
    block.norm.bias.requires_grad_(False)
    exact = copy.deepcopy(block).double(), x.detach().double().requires_grad_()
    assert error_of(gradients_of(block, x), gradients_of(*exact, choice=False)) <= 2e-5
    assert NAMES[kind] not in calls


@pytest.mark.parametrize("kind", ["window", "cells"])
def test_gradients_in_bfloat16_are_as_near_as_those_of_the_layers(kind, calls):
    block, x = layers_of(kind)[0][0], torch.randn(4, 14, 9, 40).bfloat16().requires_grad_()
    expected = gradients_of(copy.deepcopy(block).double(), x.detach().double().requires_grad_(), choice=False)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = gradients_of(block, x), gradients_of(block, x, choice=False)
    assert (NAMES[kind] in calls) == (kind == "cells")
    for found, usual, exact in zip(ours, theirs, expected, strict=True):
        assert found.dtype == usual.dtype
        assert float((found - exact).norm()) <= 1.2 * float((usual - exact).norm()) + 1e-2 * float(exact.norm())


@pytest.mark.parametrize("kind", ["window", "cells"])
def test_threads_give_the_same_bits(kind):
    block, x = layers_of(kind)[0][0], torch.randn(4, 14, 9, 40).requires_grad_()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(gradients_of(block, x))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, same) for other in found[1:] for one, same in zip(found[0], other, strict=True))


@pytest.mark.parametrize("kind", ["window", "cells"])
def test_second_derivatives_and_kernels_that_are_switched_off_in_between(kind, calls):
    block, x = layers_of(kind)[0][0], torch.randn(2, 14, 9, 40).requires_grad_()
    exact, exact_x = copy.deepcopy(block).double(), x.detach().double().requires_grad_()

    def second(block, x):
        (first,) = torch.autograd.grad(block(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [x, *block.parameters()])

    with use_native(True):
        found, out = second(block, x), block(x)
    assert NAMES[kind] in calls
    with use_native(False), sdpa_kernel(SDPBackend.MATH):
        expected = second(exact, exact_x)
    assert error_of(found, expected) <= 1e-4
    with use_native(False):
        found = torch.autograd.grad(out, (x, *block.parameters()), weights_for(out))
    assert error_of(found, gradients_of(exact, exact_x, choice=False)) <= 2e-5


@pytest.mark.parametrize("design", [DESIGNS["vit-pytorch"], *MIXED_DESIGNS.values()], ids=lambda design: design.name)
def test_networks_of_the_design_and_of_mixed_ones_learn(design, calls):
    model, x = randomise(ScalableViT(**SMALL_NETWORK, design=design)), torch.randn(2, 3, 97, 131)
    exact = copy.deepcopy(model).double()
    with use_native(True):
        model(x).square().sum().backward()
    assert set(NAMES.values()) <= set(calls)
    exact(x.double()).square().sum().backward()
    for found, expected in zip(model.parameters(), exact.parameters(), strict=True):
        assert_near(found.grad, expected.grad, 1e-4)


@pytest.mark.parametrize("shape", MAPS, ids=str)
def test_a_layer_is_one_call(shape, calls):
    layers, x = layers_of("cells ff peg ff window"), torch.randn(*shape, 40)
    with torch.no_grad(), use_native(True):
        found = run_blocks(layers, x)
        assert calls == ["run_steps"]
        assert torch.equal(found, layers(x))
    assert_near(found, exact_of(layers, x))


@pytest.mark.parametrize("choice", [True, False])
@pytest.mark.parametrize("shape", [*MAPS, *SMALL, (0, 7, 7)], ids=str)
def test_the_operator_of_a_graph_is_the_layers(shape, choice, calls, monkeypatch):
    layers, x, given = layers_of("cells ff peg ff window"), torch.randn(*shape, 40), []
    with torch.no_grad():
        with use_native(True), monkeypatch.context() as patch:
            patch.setattr(sequences, "_operator", lambda *arguments: given.extend(arguments))
            sequences._run_in_graph(x, parts_of(layers))
        with use_native(choice):
            found = sequences._operator(*given)
    assert ("run_steps" in calls) == (choice and shape in MAPS)
    assert_near(found, exact_of(layers, x))


def test_graphs_leave_what_no_kernel_convolves_to_the_compiler():
    layers = layers_of("cells window")
    with torch.no_grad(), use_native(True):
        assert sequences._run_in_graph(torch.randn(4, 14, 9, 40), parts_of(layers)) is not None
        with torch.autocast("cpu", torch.bfloat16):
            x = torch.randn(4, 14, 9, 40).bfloat16()
            assert sequences._run_in_graph(x, parts_of(layers)) is None
            cells, window = (block.parts() for block in layers[0])
            assert attend_in_graph(x, window) is None
            assert attend_in_graph(x, cells) is not None
        wide = InteractiveWindowedSelfAttention(40, heads=8, dim_key=16, dim_value=50, window_size=7, **COMMON)
        layers[0][1].branch = wide
        assert sequences._run_in_graph(torch.randn(4, 14, 9, 40), parts_of(layers)) is None


@pytest.mark.parametrize("design", [DESIGNS["vit-pytorch"], *MIXED_DESIGNS.values()], ids=lambda design: design.name)
def test_networks_of_the_design_and_of_mixed_ones(design, calls):
    model, x = randomise(ScalableViT(**SMALL_NETWORK, design=design)).eval(), torch.randn(2, 3, 97, 131)
    with torch.no_grad(), use_native(True):
        found = model(x)
    assert calls.count("run_steps") == 2
    assert_near(found, exact_of(model, x))


@pytest.mark.parametrize("choice", [True, "auto"])
def test_compilers_see_one_operator_for_a_stage_and_no_break(choice, calls):
    model, nodes = randomise(ScalableViT(**SMALL_NETWORK)).eval(), []

    def backend(graph, _):
        nodes.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch._dynamo.reset()
    compiled, x = torch.compile(model, backend=backend, fullgraph=True), torch.randn(2, 3, 97, 131)
    with torch.no_grad(), use_native(choice):
        found = compiled(x)
        held = nodes.count("scalablevit.block_sequence.default")
        assert held == 2 if convolves_any_map(torch.empty(32, 32, 3, 3), x.dtype) and is_served(x) else held == 0
    assert_near(found, exact_of(model, x))


def is_served(x):
    return multiplies_any_rows(x.device, x.dtype)


@pytest.mark.parametrize("kind", ["window", "cells"])
def test_layers_that_do_more_than_they_were_made_for_are_called(kind, calls):
    block, x = layers_of(kind)[0][0], torch.randn(4, 14, 9, 40)
    with torch.no_grad(), use_native(True):
        assert_layers_are_called(block, x)
        layer = block.branch.lim if kind == "window" else block.branch.keys_values.to_kv
        nn.utils.parametrizations.weight_norm(layer)
        block(x)
    assert not {*NAMES.values()} & set(calls)
