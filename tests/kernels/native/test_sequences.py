"""Blocks of a stage in one call, against the same modules one after the other."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from scalablevit import ScalableViT, sequences
from scalablevit.attention import InteractiveWindowedSelfAttention, ScalableSelfAttention
from scalablevit.design import DESIGNS
from scalablevit.feed_forward import FeedForward
from scalablevit.kernels import use_native
from scalablevit.layers import PEG, Linear, PreNormResidual
from scalablevit.sequences import parts_of, run_blocks
from tests.networks import randomise

COMMON = {"dropout": 0.0, "attention_dropout": 0.0, "design": DESIGNS["paper"]}
BLOCKS = {
    "window": lambda: _residual(
        InteractiveWindowedSelfAttention(40, heads=2, dim_key=16, dim_value=12, window_size=7, **COMMON)
    ),
    "list": lambda: _residual(ScalableSelfAttention(40, heads=3, dim_key=9, dim_value=7, reduction_factor=1, **COMMON)),
    "cells": lambda: _residual(
        ScalableSelfAttention(40, heads=3, dim_key=9, dim_value=7, reduction_factor=3, **COMMON)
    ),
    "ff": lambda: _residual(FeedForward(40)),
    "peg": lambda: PEG(40),
}
ORDERS = ["window ff peg cells ff", "peg list ff", "list ff peg", "ff peg window peg peg", "ff"]
MAPS = [(1, 7, 7), (2, 14, 9), (1, 3, 4), (3, 6, 40), (1, 1, 1)]


def _residual(branch):
    return PreNormResidual(nn.LayerNorm(40), branch)


def layers_of(order, layers=1):
    torch.manual_seed(0)
    made = [nn.Sequential(*(BLOCKS[kind]() for kind in order.split())) for _ in range(layers)]
    return randomise(nn.Sequential(*made)).eval()


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request):
    return request.param


@pytest.mark.parametrize("shape", MAPS, ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_all_at_once_are_one_after_the_other_bit_for_bit(order, shape, dtype, calls):
    layers, x = layers_of(order, layers=2), torch.randn(*shape, 40).to(dtype)
    before = x.clone()
    with torch.no_grad(), use_native(True), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        expected = layers(x)
        calls.clear()
        found = run_blocks(layers, x)
    if min(shape[1:]) < 3 and "cells" in order:  # a map is filled up to a cell
        assert found is None
        return
    assert calls == ["run_steps"]
    assert torch.equal(found, expected)
    assert found.is_contiguous()
    assert torch.equal(x, before)


@pytest.mark.parametrize("kind", BLOCKS)
def test_parameters_in_bfloat16_are_converted_each_time(kind, calls):
    layers, x = layers_of(f"{kind} ff").bfloat16(), torch.randn(2, 14, 9, 40).bfloat16()
    with torch.no_grad(), use_native(True):
        for _ in range(2):
            expected = layers(x)
            calls.clear()
            assert torch.equal(run_blocks(layers, x), expected)
            assert calls == ["run_steps"]
            for parameter in layers.parameters():
                parameter.mul_(1.1)


def test_a_stage_is_one_call_and_sees_its_parameters_change(calls):
    model = randomise(ScalableViT(**_small())).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), use_native(True):
        for change in (_nothing, _in_place, _another_weight, _moved):
            change(model)
            calls.clear()
            found = model(x)
            assert calls.count("run_steps") == 2
            exact = copy.deepcopy(model).double()(x.double())
            assert float((found - exact).norm()) <= 1e-5 * float(exact.norm()), change.__name__


def _small():
    return {
        "num_classes": 5,
        "dim": (32, 64),
        "depth": (1, 2),
        "heads": (1, 2),
        "ssa_dim_key": 16,
        "ssa_dim_value": 16,
        "iwsa_dim_key": 16,
        "iwsa_dim_value": 16,
        "reduction_factor": (2, 1),
        "window_size": 7,
        "design": "paper",
    }


def _nothing(model):
    pass


def _in_place(model):
    for parameter in model.parameters():
        parameter.data += 0.01


def _another_weight(model):
    layer = model.stages[0].layers[0].ff1.branch.fc1
    layer.weight = nn.Parameter(torch.randn_like(layer.weight))


def _moved(model):
    for parameter in model.parameters():
        parameter.data = parameter.data.clone() * 1.01


def test_a_hook_anywhere_leaves_all_to_the_blocks(calls):
    layers, x = layers_of("window ff peg cells ff", layers=2), torch.randn(1, 7, 7, 40)
    with torch.no_grad(), use_native(True):
        for name, module in layers.named_modules():
            for register in (module.register_forward_hook, module.register_forward_pre_hook):
                hook = register(lambda *_: None)
                assert run_blocks(layers, x) is None, name
                hook.remove()
        hook = nn.modules.module.register_module_forward_hook(lambda *_: None)
        assert run_blocks(layers, x) is None
        hook.remove()
        assert run_blocks(layers, x) is not None


def test_a_stage_calls_a_module_that_has_a_hook(calls):
    model, heard = randomise(ScalableViT(**_small())).eval(), []
    hook = model.stages[1].layers[1].ff2.branch.fc1.register_forward_hook(lambda *_: heard.append(1))
    with torch.no_grad(), use_native(True):
        model(torch.randn(1, 3, 64, 64))
        assert heard == [1]
        assert calls.count("run_steps") == 1  # of the other stage
        hook.remove()
        model.set_grad_checkpointing()  # which is of no use here
        model(torch.randn(1, 3, 64, 64))
    assert calls.count("run_steps") == 3


def test_modules_of_other_kinds_leave_all_to_the_blocks():
    x = torch.randn(1, 7, 7, 40)

    class Doubled(nn.Sequential):
        def forward(self, x):
            return 2 * super().forward(x)

    class Bare(FeedForward):
        def forward_after(self, norm, x, *, residual):
            return x

    class Parted(nn.Identity):
        def parts(self):
            return 7

    def put(at, other):
        layers = layers_of("window ff peg")
        owner, _, name = at.rpartition(".")
        setattr(layers.get_submodule(owner), name, other)
        return layers

    others = [
        put("0", Doubled(*layers_of("ff")[0])),
        put("0.1.branch", Bare(40)),
        put("0.1.drop_path", nn.Identity()),
        put("0.0.branch.to_out", nn.Sequential(nn.Linear(24, 40))),
        put("0.2.conv", nn.Identity()),
        put("0.1.norm", nn.Identity()),
        put("0.1", Parted()),
    ]
    with torch.no_grad(), use_native(True):
        assert run_blocks(put("0.1.branch", FeedForward(40)), x) is not None
        assert all(run_blocks(layers, x) is None for layers in others)
        assert run_blocks(nn.Sequential(), x) is None


def test_what_is_recorded_or_dropped_is_left_to_the_blocks():
    layers, x = layers_of("window ff cells ff"), torch.randn(1, 7, 7, 40)
    with use_native(True):
        assert run_blocks(layers, x) is None  # with gradients
        with torch.no_grad():
            assert run_blocks(layers.train(), x) is not None
            for at in ("0.0.branch.dropout", "0.1.branch.dropout"):
                layers.get_submodule(at).p = 0.5
                assert parts_of(layers) is None, at
                layers.get_submodule(at).p = 0.0
            layers[0][2].branch.attention_dropout = 0.5
            assert parts_of(layers) is None
            layers[0][2].branch.attention_dropout = 0.0
            layers[0][1].drop_path.rate = 0.5
            assert parts_of(layers) is None
            layers[0][1].drop_path.rate = 0.0
            assert parts_of(layers) is not None


def test_what_no_kernel_takes_is_left_to_the_blocks():
    layers = layers_of("window ff cells ff")
    with torch.no_grad(), use_native(True):
        assert run_blocks(layers, torch.randn(7, 7, 40)) is None
        assert run_blocks(layers, torch.randn(1, 7, 7, 40, dtype=torch.float64)) is None
        assert run_blocks(layers, torch.randn(1, 7, 7, 40).bfloat16()) is None  # its parameters are float32
        assert run_blocks(layers, torch.randn(1, 7, 7, 41)) is None
        assert run_blocks(layers, torch.randn(1, 40, 7, 7).permute(0, 2, 3, 1)) is None
        with torch.autograd.forward_ad.dual_level():
            assert run_blocks(layers, torch.randn(1, 7, 7, 40)) is None
        with use_native(False):
            assert run_blocks(layers, torch.randn(1, 7, 7, 40)) is None
        layers[0][1].branch.to(torch.bfloat16)
        assert run_blocks(layers, torch.randn(1, 7, 7, 40)) is None
        with torch.autocast("cpu", torch.bfloat16):  # each block has a kernel, but not of one type
            assert run_blocks(layers, torch.randn(1, 7, 7, 40).bfloat16()) is None
        with torch.autocast("cpu", torch.float16):
            assert run_blocks(layers_of("ff"), torch.randn(1, 7, 7, 40)) is None


@pytest.mark.parametrize("shape", [(4, 14, 14), (1, 3, 4), (1, 1, 2)], ids=str)  # of many rows, few and fewest
def test_threads_give_the_same_bits(shape, dtype, launcher):
    layers, x, found = layers_of("window ff peg list ff"), torch.randn(*shape, 40).to(dtype), []
    before = torch.get_num_threads()
    try:
        for threads in (1, *[2, 3, 70] * 4):
            torch.set_num_threads(threads)
            with torch.no_grad(), use_native(True), torch.autocast("cpu", torch.bfloat16, dtype == torch.bfloat16):
                found.append(run_blocks(layers, x))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, found[0]) for one in found[1:])


def test_fewer_threads_than_were_asked_for_do_all_of_it():
    program = """
import torch
from scalablevit import kernels
from tests.kernels.native.test_sequences import layers_of, run_blocks
torch.set_num_threads(3)
layers, x = layers_of("window ff peg list ff"), torch.randn(4, 14, 14, 40)
with torch.no_grad(), kernels.use_native(True):
    found = run_blocks(layers, x)
with torch.no_grad(), kernels.use_native(False):
    torch.testing.assert_close(found, layers(x), rtol=1e-4, atol=1e-4)
"""
    environment = {**os.environ, "OMP_THREAD_LIMIT": "1"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment, cwd=Path(__file__).parents[3])


def arguments_of(layers, x):
    """What the operator of a graph is given."""
    given = []

    class Operator:
        def __call__(self, *arguments):
            given.extend(arguments)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad(), use_native(True):
        patch.setattr(sequences, "_operator", Operator())
        sequences._run_in_graph(x, parts_of(layers))
    return given


@pytest.mark.parametrize("choice", [True, False])
@pytest.mark.parametrize("shape", [*MAPS, (0, 7, 7)], ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_the_operator_is_the_layers_with_kernels_and_without(order, shape, choice, calls):
    layers, x = layers_of(order), torch.randn(*shape, 40)
    exact = copy.deepcopy(layers).double()
    with torch.no_grad():
        arguments = arguments_of(layers, x)
        with use_native(choice):
            found = sequences._operator(*arguments)
        expected = exact(x.double())
    if choice and not (min(shape[1:]) < 3 and "cells" in order):
        assert calls == ["run_steps"]
    else:
        assert "run_steps" not in calls
    assert found.dtype == x.dtype
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())


@pytest.mark.parametrize("kernels_run", [True, False])
def test_the_operator_in_bfloat16_is_as_near_as_the_layers(kernels_run, calls):
    layers, x = layers_of(ORDERS[0]), torch.randn(2, 14, 9, 40).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        arguments = arguments_of(layers, x)
        with use_native(kernels_run), torch.autocast("cpu", enabled=False):
            found = sequences._operator(*arguments)
        with use_native(False):
            usual = layers(x)
    assert ("run_steps" in calls) == kernels_run
    assert found.dtype == usual.dtype == torch.bfloat16
    expected = layers.double()(x.double()).detach()
    ours, theirs = (float((one - expected).norm()) for one in (found, usual))
    assert ours <= 1.2 * theirs


def test_wrong_sizes_are_left_to_the_layers_in_graphs_as_well():
    for at, other in (("0.0.branch.fc2", Linear(160, 1)), ("0.1.branch.to_out", Linear(5, 40))):
        layers = layers_of("ff list")
        owner, _, name = at.rpartition(".")
        setattr(layers.get_submodule(owner), name, other)
        with torch.no_grad(), use_native(True):
            assert sequences._run_in_graph(torch.randn(1, 7, 7, 40), parts_of(layers)) is None, at


def test_the_operator_passes_the_checks_of_torch_library():
    arguments = arguments_of(layers_of(ORDERS[0]), torch.randn(1, 7, 9, 40))
    checks = "test_schema", "test_faketensor"
    torch.library.opcheck(sequences._operator, tuple(arguments), test_utils=checks)


def test_a_compiled_graph_holds_one_operator_for_a_stage(dtype, calls):
    torch.manual_seed(0)
    model, graphs = randomise(ScalableViT(**_small())).eval(), []

    def backend(graph, _):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    with torch.no_grad(), use_native(True), torch.autocast("cpu", torch.bfloat16, dtype == torch.bfloat16):
        for size in (64, 72, 96):
            x = torch.randn(2, 3, size, size)
            calls.clear()
            found = compiled(x)
            assert calls.count("run_steps") == 2
            torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-4)
    assert len(graphs) == 1
    assert sum("block_sequence" in name for name in graphs[0]) == 2
    assert not any("block" in name or "feed_forward" in name for name in graphs[0] if "block_sequence" not in name)
