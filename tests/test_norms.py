"""Norms that are recorded, by kernels of our own, against PyTorch's in float64."""

import pytest
import torch
from torch import nn

from scalablevit.cell_convolutions import CellConv2d
from scalablevit.feed_forward import FeedForward
from scalablevit.kernels import use_native
from scalablevit.kernels.selection import rows_kernel
from scalablevit.layers import PEG
from scalablevit.norms import normed
from tests.networks import randomise

DTYPES = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
needs_kernels = pytest.mark.skipif(rows_kernel(torch.zeros(1, 1), torch.float32) is None, reason="no compiler")


@pytest.fixture
def norm():
    torch.manual_seed(0)
    return randomise(nn.LayerNorm(24, eps=1e-3))


def errors(found, exact):
    return [((one.double() - other).norm() / other.norm()).item() for one, other in zip(found, exact, strict=True)]


def count_calls(monkeypatch):
    from scalablevit.kernels.cpu import rows

    calls, kernel = [], rows.differentiate_norm
    monkeypatch.setattr(
        rows, "differentiate_norm", lambda *given, **named: (calls.append(1), kernel(*given, **named))[1]
    )
    return calls


@needs_kernels
@pytest.mark.parametrize("parameters", ["float32", "of the map"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_are_those_of_float64(norm, dtype, parameters, monkeypatch):
    calls = count_calls(monkeypatch)
    norm = norm.to(dtype) if parameters == "of the map" else norm
    x, grad = (torch.randn(2, 5, 7, 24).to(dtype) for _ in range(2))
    inputs = [x.requires_grad_(), *norm.parameters()]
    found = torch.autograd.grad(normed(norm, x), inputs, grad)
    types = [one.dtype for one in inputs]

    wide = x.detach().double().requires_grad_()
    exact = torch.autograd.grad(norm.double()(wide), [wide, *norm.parameters()], grad.double())
    assert calls
    assert [one.dtype for one in found] == types
    assert max(errors(found, exact)) < DTYPES[dtype]


@needs_kernels
@pytest.mark.parametrize("frozen", ["x", "weight", "bias"])
def test_what_is_frozen_has_no_gradient(norm, frozen, monkeypatch):
    calls, x = count_calls(monkeypatch), torch.randn(3, 24)
    tensors = {"x": x, "weight": norm.weight, "bias": norm.bias}
    for name, tensor in tensors.items():
        tensor.requires_grad_(name != frozen)
    normed(norm, x).sin().sum().backward()
    assert calls
    assert [name for name, tensor in tensors.items() if tensor.grad is None] == [frozen]


def test_second_derivatives_are_those_of_pytorch(norm):
    x = torch.randn(3, 24, requires_grad=True)

    def penalty(function):
        (grad,) = torch.autograd.grad(function(x).sin().sum(), x, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), [x, norm.weight])

    for one, other in zip(penalty(lambda x: normed(norm, x)), penalty(norm), strict=True):
        torch.testing.assert_close(one, other)


def test_several_gradients_at_once_are_those_one_by_one(norm):
    x, grads = torch.randn(3, 24, requires_grad=True), torch.randn(4, 3, 24)
    inputs = [x, *norm.parameters()]
    together = torch.autograd.grad(normed(norm, x), inputs, grads, is_grads_batched=True)
    for i, grad in enumerate(grads):
        for one, other in zip(together, torch.autograd.grad(norm(x), inputs, grad), strict=True):
            torch.testing.assert_close(one[i], other)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")  # PyTorch's own
def test_jacobians_forwards_are_those_of_pytorch(norm):
    x = torch.randn(2, 24)
    norm.requires_grad_(False)
    found, expected = (torch.func.jacfwd(each)(x) for each in (lambda x: normed(norm, x), norm))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("change", ["channels first", "no kernels", "float64"])
def test_what_no_kernel_takes_is_pytorchs(norm, change):
    x = torch.randn(2, 24, 3, 5).permute(0, 2, 3, 1) if change == "channels first" else torch.randn(2, 3, 5, 24)
    norm, x = (norm.double(), x.double()) if change == "float64" else (norm, x)
    with use_native("auto" if change != "no kernels" else False):
        found = torch.autograd.grad(normed(norm, x.requires_grad_()).sin().sum(), [x, *norm.parameters()])
    expected = torch.autograd.grad(norm(x).sin().sum(), [x, *norm.parameters()])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_what_a_norm_gives_may_be_changed_in_place(norm):
    x = torch.randn(3, 24, requires_grad=True)
    found = torch.autograd.grad(normed(norm, x).mul_(2.0).sin().sum(), x)
    expected = torch.autograd.grad((norm(x) * 2.0).sin().sum(), x)
    torch.testing.assert_close(found, expected)


def test_gradients_of_zeros_that_have_no_memory(norm):
    modules = [lambda x: normed(norm, x), PEG(24), FeedForward(24), CellConv2d(24, 2).bfloat16()]
    for module in modules:
        x = torch.randn(1, 6, 6, 24).to(torch.bfloat16 if isinstance(module, CellConv2d) else torch.float32)
        torch.sgn(module(x.requires_grad_())).sum().backward()
        assert not x.grad.any()
