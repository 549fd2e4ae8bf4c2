"""Whole attentions in one call, against the same layers in float64."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from scalablevit.attention import InteractiveWindowedSelfAttention, ScalableSelfAttention
from scalablevit.blocks import attend_in_graph
from scalablevit.design import DESIGNS
from scalablevit.kernels import use_native
from scalablevit.keys_values import DepthwiseKeysValues
from scalablevit.layers import PreNormResidual
from tests.networks import assert_layers_are_called, randomise

COMMON = {"dropout": 0.0, "attention_dropout": 0.0, "design": DESIGNS["paper"]}
KINDS = {
    "window": lambda: InteractiveWindowedSelfAttention(40, heads=2, dim_key=16, dim_value=12, window_size=7, **COMMON),
    "list": lambda: ScalableSelfAttention(40, heads=3, dim_key=9, dim_value=7, reduction_factor=1, **COMMON),
    "list of cells": lambda: ScalableSelfAttention(40, heads=3, dim_key=9, dim_value=7, reduction_factor=3, **COMMON),
}
# Of few rows and of many, with windows and cells that stick out, and of a single row.
MAPS = [(1, 7, 7), (2, 14, 9), (1, 3, 4), (1, 25, 16), (3, 6, 40)]


@pytest.fixture(params=KINDS)
def block(request):
    torch.manual_seed(0)
    return randomise(PreNormResidual(nn.LayerNorm(40), KINDS[request.param]())).eval()


def name_of(block):
    return (
        "attend_in_windows_block"
        if isinstance(block.branch, InteractiveWindowedSelfAttention)
        else "attend_to_list_block"
    )


@pytest.mark.parametrize("shape", MAPS, ids=str)
@pytest.mark.parametrize("residual", [True, False])
def test_a_block_is_its_layers(block, shape, residual, calls):
    x = torch.randn(*shape, 40)
    if residual:
        run = lambda block, x: block(x)  # noqa: E731
    else:
        run = lambda block, x: block.branch.forward_after(block.norm, x, residual=False)  # noqa: E731
    with torch.no_grad(), use_native(True):
        found = run(block, x)
        assert calls == [name_of(block)]
        expected = run(copy.deepcopy(block).double(), x.double())
    assert float((found - expected).abs().max()) <= 2e-5 * float(expected.abs().max())


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_a_block_in_bfloat16_is_as_near_as_its_layers(block, weights, calls, kernels):
    x = torch.randn(2, 14, 9, 40).bfloat16()
    exact = copy.deepcopy(block).double()
    block = block.to(weights)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=weights == torch.float32):
        with use_native(True):
            found = block(x)
        assert calls == [name_of(block)]
        with use_native(False):
            usual = block(x)
    with torch.no_grad():
        exact.load_state_dict(block.double().state_dict())
        expected = exact(x.double())
    ours, theirs = (float((one - expected).norm()) for one in (found, usual))
    assert found.dtype == torch.bfloat16
    assert ours <= 1.2 * theirs


def test_strides_and_empty_batches(block, calls):
    x = torch.randn(2, 9, 14, 40).transpose(1, 2)
    with torch.no_grad(), use_native(True):
        torch.testing.assert_close(block(x), block(x.contiguous()), rtol=1e-4, atol=1e-4)
        assert block(torch.randn(0, 7, 7, 40)).shape == (0, 7, 7, 40)
    nothing = gradients_of(block, torch.randn(0, 7, 7, 40).requires_grad_())
    assert [one.shape for one in nothing] == [(0, 7, 7, 40), *(one.shape for one in block.parameters())]
    assert not any(one.any() for one in nothing)


def gradients_of(block, x, *, residual=True, choice=True):
    """For the map, where it is wanted, and for all parameters that are."""
    wanted = [one for one in (x, *block.parameters()) if one.requires_grad]
    with use_native(choice):
        out = block(x) if residual else block.branch.forward_after(block.norm, x, residual=False)
        return torch.autograd.grad(out, wanted, weights_for(out))


def weights_for(out):
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out.dtype)


def error_of(found, expected):
    """The largest of all, each relative to its length; of what is nothing but rounding, to one."""
    return max(
        float((one.double() - other).norm()) / max(float(other.norm()), 1.0)
        for one, other in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("shape", MAPS, ids=str)
@pytest.mark.parametrize("residual", [True, False])
def test_gradients_are_those_of_the_layers(block, shape, residual, calls):
    x = torch.randn(*shape, 40).requires_grad_()
    exact = copy.deepcopy(block).double(), x.detach().double().requires_grad_()
    found = gradients_of(block, x, residual=residual)
    assert calls[0] == name_of(block)
    assert error_of(found, gradients_of(*exact, residual=residual, choice=False)) <= 2e-5


def test_gradients_without_biases_and_with_a_map_that_wants_none(calls):
    for kind, branch in KINDS.items():
        block = randomise(PreNormResidual(nn.LayerNorm(40), branch()))
        for name, layer in block.named_modules():
            if name.endswith(("to_q", "to_kv", "to_qkv", "to_out")):
                layer.bias = None
        calls.clear()
        x = torch.randn(2, 14, 9, 40)
        exact = copy.deepcopy(block).double(), x.double()
        assert error_of(gradients_of(block, x), gradients_of(*exact, choice=False)) <= 2e-5, kind
        assert calls[0] == name_of(block)


def test_steps_keep_less_where_a_parameter_is_frozen(block, calls):
    x = torch.randn(2, 14, 9, 40).requires_grad_()
    expected = gradients_of(block, x)
    block.norm.bias.requires_grad_(False)
    calls.clear()
    found = gradients_of(block, x)
    assert name_of(block) not in calls
    wanted = [
        one for one, name in zip(expected, ["x", *dict(block.named_parameters())], strict=True) if name != "norm.bias"
    ]
    assert error_of(found, [one.double() for one in wanted]) <= 2e-5


def test_threads_give_the_same_bits(block):
    x = torch.randn(4, 14, 14, 40).requires_grad_()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with use_native(True):
                found.append([block(x).detach(), *gradients_of(block, x)])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(one, same) for one, same in zip(found[0], other, strict=True))


def test_gradients_in_bfloat16_are_as_near_as_those_of_the_layers(block, calls, kernels):
    x = torch.randn(2, 14, 9, 40).bfloat16().requires_grad_()
    expected = gradients_of(copy.deepcopy(block).double(), x.detach().double().requires_grad_(), choice=False)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = gradients_of(block, x), gradients_of(block, x, choice=False)
    assert calls[0] == name_of(block)
    for found, usual, exact in zip(ours, theirs, expected, strict=True):
        assert found.dtype == usual.dtype
        assert float((found - exact).norm()) <= 1.2 * float((usual - exact).norm()) + 1e-2 * float(exact.norm())


def test_gradients_of_depthwise_weights_are_not_rounded_under_autocast(block, calls):
    x = torch.randn(2, 14, 9, 40).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        _, *found = gradients_of(block, x)
    assert calls[0] == name_of(block)
    for (name, _), grad in zip(block.named_parameters(), found, strict=True):
        if name in ("branch.lim.weight", "branch.keys_values.reduce.weight"):
            assert not torch.equal(grad, grad.bfloat16().float()), name


def test_gradients_where_kernels_are_switched_off_in_between(block, calls):
    x = torch.randn(2, 14, 9, 40).requires_grad_()
    expected = gradients_of(block, x)
    with use_native(True):
        out = block(x)
    with use_native(False):
        found = torch.autograd.grad(out, (x, *block.parameters()), weights_for(out))
    assert error_of(found, [one.double() for one in expected]) <= 2e-5


def test_second_derivatives_and_several_gradients_at_once(block, calls):
    x = torch.randn(1, 6, 6, 40).requires_grad_()
    exact, exact_x = copy.deepcopy(block).double(), x.detach().double().requires_grad_()

    def second(block, x):
        (first,) = torch.autograd.grad(block(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [x, *block.parameters()])

    with use_native(True):
        found = second(block, x)
        assert calls[0] == name_of(block)
    with use_native(False), sdpa_kernel(SDPBackend.MATH):
        expected = second(exact, exact_x)
    assert error_of(found, expected) <= 1e-4
    grads = torch.randn(3, *x.shape)
    with use_native(True):
        together = torch.autograd.grad(block(x), x, grads, is_grads_batched=True)[0]
        for grad, found in zip(grads, together, strict=True):
            torch.testing.assert_close(found, torch.autograd.grad(block(x), x, grad)[0], rtol=1e-4, atol=1e-4)


def test_gradients_that_lie_otherwise_in_memory(block, calls):
    x = torch.randn(2, 6, 6, 40).requires_grad_()
    with use_native(True):
        for grad in (torch.ones(()).expand(x.shape), torch._neg_view(torch.randn(x.shape)), torch.randn(x.shape).mT.mT):
            found, expected = (torch.autograd.grad(block(x), x, one)[0] for one in (grad, grad.clone()))
            assert torch.equal(found, expected)


def test_layers_that_do_more_than_they_were_made_for_are_called(block, calls):
    x = torch.randn(1, 7, 7, 40)
    with torch.no_grad(), use_native(True):
        assert_layers_are_called(block, x)
        assert name_of(block) not in calls
        block.branch.to_out = nn.utils.parametrizations.weight_norm(block.branch.to_out)
        block(x)
    assert name_of(block) not in calls


def test_wrong_sizes_are_pytorchs_errors(block, calls):
    block.branch.to_out = nn.Linear(5, 40)
    with torch.no_grad(), use_native(True), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        block(torch.randn(1, 7, 7, 40))


def test_maps_of_other_axes_and_negative_weights_are_left_to_pytorch(block, calls):
    with torch.no_grad(), use_native(True):
        for shape in ((7, 7, 40), (2, 3, 7, 7, 40)):
            with pytest.raises((ValueError, RuntimeError)):
                block(torch.randn(shape))
        block.branch.to_out.weight = nn.Parameter(torch._neg_view(torch.ones_like(block.branch.to_out.weight)))
        block(torch.randn(1, 7, 7, 40))
    assert name_of(block) not in calls


def test_a_reduction_with_other_settings_is_called(calls):
    block = PreNormResidual(nn.LayerNorm(40), KINDS["list of cells"]()).eval()
    block.branch.keys_values.reduce.padding = (1, 1)
    with torch.no_grad(), use_native(True):
        block(torch.randn(1, 9, 9, 40))
    assert name_of(block) not in calls


def test_dropout_in_training_is_not_left_out(block, calls):
    block.branch.dropout.p = 0.5
    with torch.no_grad(), use_native(True):
        block.train()(torch.randn(1, 7, 7, 40))
    assert name_of(block) not in calls


def compiled_with_nodes(block):
    """The block in a compiled graph, and the names of what that holds."""
    nodes = set()

    def backend(graph, _):
        nodes.update(str(node.target) for node in graph.graph.nodes)
        return graph

    torch._dynamo.reset()
    return torch.compile(block, backend=backend, fullgraph=True), nodes


def operator_of(block):
    kind = "window" if isinstance(block.branch, InteractiveWindowedSelfAttention) else "list"
    return f"scalablevit.{kind}_block.default"


def test_compiled_graphs_hold_it_as_one_operator_for_all_sizes(block, calls):
    with torch.no_grad(), use_native(True):
        compiled, nodes = compiled_with_nodes(block)
        for shape in MAPS:
            x = torch.randn(*shape, 40)
            calls.clear()
            found = compiled(x)
            assert calls == [name_of(block)]
            torch.testing.assert_close(found, block(x), rtol=1e-6, atol=1e-6)
    assert operator_of(block) in nodes
    assert not any("linear" in node for node in nodes)


def test_compiled_graphs_see_the_steps_where_gradients_are_wanted_or_products_are_pytorchs(block, calls, monkeypatch):
    x = torch.randn(1, 14, 14, 40)
    with use_native(True):
        compiled, nodes = compiled_with_nodes(block)
        compiled(x)
        assert operator_of(block) not in nodes
    with torch.no_grad(), use_native(True):
        compiled, nodes = compiled_with_nodes(block.double())
        compiled(x.double())
    assert operator_of(block) not in nodes
    monkeypatch.setattr("scalablevit.kernels.selection._fewest_rows", lambda dtype: 256)
    with torch.no_grad():
        compiled, nodes = compiled_with_nodes(block.float())
        compiled(x)
    assert operator_of(block) not in nodes


@pytest.mark.parametrize("shape", [(2, 14, 9), (1, 2, 5), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operator_without_a_kernel_goes_step_by_step(block, shape, dtype, calls):
    parts = block.branch.parts_after(block.norm)
    operator = getattr(torch.ops.scalablevit, operator_of(block).split(".")[1])
    x = torch.randn(*shape, 40)
    with torch.no_grad(), use_native(False):
        found = operator(x, parts.tensors(), parts.numbers(), parts.factors(), dtype)
        expected = copy.deepcopy(block).double()(x.double())
    assert found.dtype == torch.float32  # of the residual stream
    error = 2e-5 if dtype == torch.float32 else 2e-2
    assert float((found - expected).abs().max()) <= error * float(expected.abs().max())
    assert calls == []


@pytest.mark.parametrize("residual_dtype", [torch.float32, torch.bfloat16])
def test_compiled_graphs_have_the_types_of_autocast(block, residual_dtype, calls):
    x = torch.randn(1, 14, 14, 40, dtype=residual_dtype)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), use_native(True):
        compiled, _ = compiled_with_nodes(block)
        found, expected = compiled(x), block(x)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def test_the_operator_passes_the_checks_of_torch_library(block, calls):
    parts = block.branch.parts_after(block.norm)
    operator = getattr(torch.ops.scalablevit, operator_of(block).split(".")[1]).default
    tensors = [None if one is None else one.detach() for one in parts.tensors()]
    for shape in ((1, 7, 7), (2, 14, 9)):
        arguments = torch.randn(*shape, 40), tensors, parts.numbers(), parts.factors(), torch.float32
        torch.library.opcheck(operator, arguments)


def test_compiled_graphs_keep_empty_batches_and_refuse_what_layers_refuse(block, calls):
    x = torch.randn(2, 14, 14, 40)
    with torch.no_grad():
        for choice in (True, False):
            with use_native(choice):
                compiled, _ = compiled_with_nodes(block)
                assert compiled(x[:0]).shape == (0, 14, 14, 40)
        parts = block.branch.parts_after(block.norm)
        operator = getattr(torch.ops.scalablevit, operator_of(block).split(".")[1])
        assert operator(x[:0], parts.tensors(), parts.numbers(), parts.factors(), torch.float32).shape[0] == 0
        with use_native(True), pytest.raises(Exception, match=r"dtype|scalar type"):
            compiled_with_nodes(block)[0](x.bfloat16())


def test_derivatives_forwards_are_left_to_the_layers(block):
    """The operator has no rule for them, so that they would be zeros."""
    parts, x = block.branch.parts_after(block.norm), torch.randn(1, 7, 7, 40)
    with torch.no_grad(), use_native(True):
        assert attend_in_graph(x, parts) is not None
        with torch.autograd.forward_ad.dual_level():
            assert attend_in_graph(x, parts) is None
        assert torch.func.vmap(lambda x: x.new_tensor(attend_in_graph(x, parts) is None))(x[None]).all()


def test_parameters_of_other_classes_are_left_to_their_own_operations(block, calls):
    class Renamed(torch.Tensor):
        pass

    weight = block.branch.to_out.weight.detach()
    block.branch.to_out.weight = nn.Parameter(weight.as_subclass(Renamed), requires_grad=False)
    with torch.no_grad(), use_native(True):
        compiled, nodes = compiled_with_nodes(block.requires_grad_(False))
        compiled(torch.randn(1, 14, 14, 40))
    assert operator_of(block) not in nodes


def test_a_reduction_over_cells_of_one_position_is_called(calls):
    block = PreNormResidual(nn.LayerNorm(40), KINDS["list"]()).eval()
    reduction = DepthwiseKeysValues(40, 27, 21, 1, bias=True)
    block.branch.keys_values = reduction
    x = torch.randn(1, 9, 9, 40)
    with torch.no_grad(), use_native(True):
        found = randomise(block)(x)
        assert name_of(block) not in calls
        torch.testing.assert_close(found, block.double()(x.double()).float(), rtol=1e-3, atol=1e-4)
