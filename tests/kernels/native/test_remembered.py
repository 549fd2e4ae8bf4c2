"""What is remembered of blocks holds only for as long as it is true."""

import copy
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from scalablevit.attention import InteractiveWindowedSelfAttention, ScalableSelfAttention
from scalablevit.design import DESIGNS
from scalablevit.feed_forward import FeedForward
from scalablevit.kernels import remembered, use_native
from scalablevit.kernels.cpu import calls
from scalablevit.layers import PEG, PatchEmbedding, PreNormResidual
from tests.networks import randomise

DESIGN = {"design": DESIGNS["paper"], "dropout": 0.0, "attention_dropout": 0.0}
HEADS = {"heads": 2, "dim_key": 16, "dim_value": 16}


def residual(branch):
    return PreNormResidual(nn.LayerNorm(32), branch)


BLOCKS = {
    "list": lambda: residual(ScalableSelfAttention(32, **HEADS, reduction_factor=2, **DESIGN)),
    "whole list": lambda: residual(ScalableSelfAttention(32, **HEADS, reduction_factor=1, **DESIGN)),
    "windows": lambda: residual(InteractiveWindowedSelfAttention(32, **HEADS, window_size=4, **DESIGN)),
    "feed-forward": lambda: residual(FeedForward(32)),
    "peg": lambda: PEG(32),
    "patches": lambda: PatchEmbedding(32, 32, stride=2, norm=nn.LayerNorm(32)),
}


@pytest.fixture(params=BLOCKS)
def block(request):
    return randomise(BLOCKS[request.param]()).eval()


def assert_right(block, x):
    """With kernels as without them."""
    with torch.no_grad():
        with use_native(True):
            found = block(x)
        with use_native(False):
            expected = block(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def each_weight(block):
    return [module for module in block.modules() if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm)]


def in_place(block):
    for parameter in block.parameters():
        parameter.mul_(1.5)


def other_memory(block):
    for parameter in block.parameters():
        parameter.data = parameter.data * 1.5


def turned(block):
    for parameter in block.parameters():
        if parameter.ndim == 2 and parameter.shape[0] == parameter.shape[1]:
            parameter.data = parameter.data.t()


def other_parameters(block):
    for module in each_weight(block):
        module.weight = nn.Parameter(module.weight * 1.5)


def another_precision(block):
    for module in each_weight(block):
        module.eps = 0.5


def hook(block):
    for module in each_weight(block):
        module.register_forward_hook(lambda module, inputs, out: out * 1.5)


def other_layers(block):
    for module in list(block.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, nn.Sequential(child, nn.Tanh()))


def without_biases(block):
    for module in each_weight(block):
        module.bias = None


def biases_as_buffers(block):
    for module in each_weight(block):
        if (bias := module.bias) is not None:
            del module.bias
            module.register_buffer("bias", bias.detach() + 1.0)


def biases_as_tensors(block):
    for module in each_weight(block):
        if (bias := module.bias) is not None:
            del module.bias
            module.bias = bias.detach() + 1.0


CHANGES = (
    *(in_place, other_memory, turned, other_parameters, another_precision, hook, other_layers, without_biases),
    *(biases_as_buffers, biases_as_tensors),
)


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_seen(block, change):
    x = torch.randn(1, 8, 8, 32)
    assert_right(block, x)
    with torch.no_grad():
        change(block)
    assert_right(block, x)


def test_settings_are_seen(block):
    x = torch.randn(2, 8, 8, 32)
    assert_right(block, x)
    for module in block.modules():
        for name, value in (("scale", 3.0), ("window_size", 3)):
            if hasattr(module, name):
                setattr(module, name, value)
    assert_right(block, x)


def test_sizes_types_and_autocast_are_seen(block):
    for size in ((1, 8, 8), (2, 8, 8), (1, 4, 16), (1, 9, 7), (1, 8, 8)):
        assert_right(block, torch.randn(*size, 32))
    x = torch.randn(1, 8, 8, 32)
    with torch.no_grad(), use_native(True):
        plain = block(x)
        with torch.autocast("cpu", torch.bfloat16):
            cast = block(x)
        torch.testing.assert_close(cast.float(), plain, rtol=5e-2, atol=5e-2)
        assert torch.equal(block(x), plain)
        half = block.bfloat16()(x.bfloat16())
        torch.testing.assert_close(half.float(), plain, rtol=5e-2, atol=8e-2)
        torch.testing.assert_close(block.float()(x), plain, rtol=5e-2, atol=8e-2)


def test_switching_off_and_recording_are_seen(block, monkeypatch):
    names, x, call = [], torch.randn(1, 8, 8, 32), calls.call
    monkeypatch.setattr(calls, "call", lambda name, *rest: names.append(name) or call(name, *rest))
    with torch.no_grad(), use_native(True):
        block(x)
        assert len(names) == 1
        block(x)
        assert len(names) == 2
        with use_native(False):
            block(x)
        assert len(names) == 2
    with use_native(True):
        recorded = block(x)
    assert recorded.requires_grad


def test_copies_have_their_own_parameters(block):
    x = torch.randn(1, 8, 8, 32)
    assert_right(block, x)
    other = copy.deepcopy(block)
    with torch.no_grad():
        in_place(other)
    assert_right(other, x)
    assert_right(block, x)


@pytest.mark.parametrize("kind", BLOCKS)
def test_no_tensor_lives_longer_for_it(kind):
    block, x = BLOCKS[kind]().eval(), torch.randn(1, 8, 8, 32)
    with torch.no_grad(), use_native(True):
        block(x)
    left = [weakref.ref(one) for one in (x, *block.parameters())]
    del block, x
    gc.collect()
    assert [one() for one in left] == [None] * len(left)


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(remembered, "_known", {})
    monkeypatch.setattr(remembered, "_MOST_TENSORS", 6)
    monkeypatch.setattr(remembered, "_MOST_CASES", 2)
    tensors = [torch.zeros(2) for _ in range(10)]
    for one in tensors:
        for case in range(5):
            assert remembered.remembered(case, [None, one], lambda case=case: case) == case
    assert len(remembered._known) <= 3
    assert all(len(cases) <= 2 for _, cases in remembered._known.values())
    asked = []
    for _ in range(2):
        remembered.remembered("again", [tensors[-1]], lambda: asked.append(1))
    assert len(asked) == 1


@pytest.mark.parametrize("kind", [kind for kind in BLOCKS if kind != "peg"])  # whose kernel runs everywhere
def test_a_kernel_that_ran_because_it_was_asked_for_does_not_run_by_itself(kind, monkeypatch):
    monkeypatch.setattr("scalablevit.kernels.selection._fewest_rows", lambda dtype: 10**9)
    block, x, names, call = BLOCKS[kind]().eval(), torch.randn(1, 8, 8, 32), [], calls.call
    monkeypatch.setattr(calls, "call", lambda name, *rest: names.append(name) or call(name, *rest))
    with torch.no_grad():
        with use_native(True):
            block(x)
        assert len(names) == 1
        with use_native("auto"):
            block(x)
        assert len(names) == 1


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("which", ["weight", "bias"])
def test_parameters_without_memory_are_left_to_their_own_operations(block, which, recorded):
    """As quantised and distributed ones are."""
    x = torch.randn(1, 8, 8, 32)
    with torch.no_grad():
        expected = block(x)
    for module in each_weight(block):
        if getattr(module, which) is not None:
            parameter = getattr(module, which).detach()
            setattr(module, which, nn.Parameter(TwoTensor(parameter, parameter.clone())))
    with torch.set_grad_enabled(recorded), use_native(True):
        found = block(x)
        if recorded:
            found.square().sum().backward()
            assert all(parameter.grad is not None for parameter in block.parameters())
    assert isinstance(found, TwoTensor)
    torch.testing.assert_close(found.a.detach(), expected, rtol=1e-4, atol=1e-4)


def test_several_threads_may_call_one_model(monkeypatch):
    monkeypatch.setattr(remembered, "_MOST_TENSORS", 2)  # so that each forgets what others found
    monkeypatch.setattr(remembered, "_MOST_CASES", 1)
    blocks = nn.Sequential(*(randomise(make()) for kind, make in BLOCKS.items() if kind != "patches")).eval()
    maps = [torch.randn(1, side, 8, 32) for side in (4, 6, 8, 10)]
    with torch.no_grad(), use_native(True):
        expected = [blocks(x) for x in maps]

    def run(index):
        with torch.no_grad():
            return all(torch.equal(blocks(maps[index]), expected[index]) for _ in range(30))

    with use_native(True), ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(4)))


def test_a_child_that_is_a_function_is_called():
    x = torch.randn(1, 8, 8, 32)
    block, patches = BLOCKS["feed-forward"](), BLOCKS["patches"]()
    for module, name in ((block, "drop_path"), (patches, "norm")):
        delattr(module, name)
        setattr(module, name, lambda x: 2.0 * x)
        assert_right(module, x)
