"""The native kernels for what happens to each position alone, against PyTorch in float64."""

import pytest
import torch
import torch.nn.functional as F

from scalablevit.feed_forward import FeedForward
from scalablevit.kernels import use_native
from scalablevit.kernels.selection import rows_kernel

# Widths around the length of a vector (4, 8, 16), which none divides, and rows for one thread and for several.
SIZES = [(1, 1), (3, 7), (5, 16), (2, 17), (9, 40), (400, 64), (7, 129)]
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 8e-3}  # of the values, which are near 1; bfloat16 has 8 bits


@pytest.fixture(params=TOLERANCES, ids=str)
def dtype(request):
    return request.param


@pytest.fixture(params=SIZES, ids=str)
def rows(request, dtype):
    torch.manual_seed(0)
    return torch.randn(request.param).mul(2).to(dtype)


@pytest.fixture
def kernel(rows):
    kernel = rows_kernel(rows, rows.dtype)
    if kernel is None:
        pytest.skip("no compiler")
    return kernel


def near(found, expected):
    assert found.dtype in TOLERANCES
    scale = expected.abs().max().clamp_min(1.0)
    return bool((found.double() - expected).abs().max() <= TOLERANCES[found.dtype] * scale)


def test_norm(kernel, rows):
    weight, bias = torch.randn(2, rows.shape[1])
    expected = F.layer_norm(rows.double(), rows.shape[1:], weight.double(), bias.double(), 1e-5)
    assert near(kernel.normalise(rows, weight, bias, 1e-5), expected)


def test_bias_and_gelu(kernel, rows):
    bias = torch.randn(rows.shape[1])
    expected = F.gelu(rows.double() + bias.double())
    assert kernel.add_bias_gelu_(rows, bias) is rows
    assert near(rows, expected)


def test_bias_and_residual_stream(kernel, rows):
    bias, residual = torch.randn(rows.shape[1]), torch.randn(rows.shape).to(rows.dtype)
    expected = rows.double() + bias.double()
    assert near(kernel.add_bias_residual_(rows.clone(), bias, residual), expected + residual.double())
    assert near(kernel.add_bias_residual_(rows, bias, None), expected)


def test_gradient_of_gelu(kernel, rows):
    bias, grad = torch.randn(rows.shape[1]), torch.randn(rows.shape).to(rows.dtype)
    x = (rows.double() + bias.double()).requires_grad_()
    value = F.gelu(x)
    expected = torch.autograd.grad(value, x, grad.double())[0]
    kernel.differentiate_gelu_(grad, rows, bias)
    assert near(grad, expected)
    assert near(rows, value.detach())


def test_gelu_is_right_to_rounding_everywhere_and_keeps_what_is_no_number():
    x = torch.linspace(-20, 20, 400_001).reshape(1, -1)
    kernel = rows_kernel(x, x.dtype)
    if kernel is None:
        pytest.skip("no compiler")
    expected = F.gelu(x.double())
    found = kernel.add_bias_gelu_(x.clone(), torch.zeros(x.shape[1]))
    assert (found - expected).abs().div(expected.abs().clamp_min(1.0)).max() <= 1.2e-7
    special = torch.tensor([[float("nan"), float("inf"), 1e30, -1e30, -1e20, float("-inf")]])
    expected, found = F.gelu(special.double()), kernel.add_bias_gelu_(special.clone(), torch.zeros(6))
    torch.testing.assert_close(found.double(), expected, equal_nan=True)


def test_gradient_of_gelu_is_right_to_rounding_everywhere():
    x = torch.cat([torch.linspace(-20, 20, 400_001), torch.tensor([1e4, -1e4, 1e30, -1e30])]).reshape(1, -1)
    kernel = rows_kernel(x, x.dtype)
    if kernel is None:
        pytest.skip("no compiler")
    exact = x.double().requires_grad_()
    expected = F.gelu(exact)
    slope = torch.autograd.grad(expected.sum(), exact)[0].nan_to_num(0.0)  # PyTorch's is none at 1e30 squared
    slope[0, -2:] = torch.tensor([1.0, 0.0])
    found, grad = x.clone(), torch.ones_like(x)
    kernel.differentiate_gelu_(grad, found, torch.zeros(x.shape[1]))
    assert (found - expected).abs().div(expected.abs().clamp_min(1.0)).max() <= 1.2e-7
    assert (grad - slope).abs().max() <= 3e-7


def test_gelu_in_bfloat16_errs_by_its_rounding_alone():
    x = torch.linspace(-8, 20, 400_001).bfloat16().unique().reshape(1, -1)
    kernel = rows_kernel(x, x.dtype)
    if kernel is None:
        pytest.skip("no compiler")
    expected = x.double() * torch.special.log_ndtr(x.double()).exp()  # F.gelu loses digits far below zero
    found = kernel.add_bias_gelu_(x.clone(), torch.zeros(x.shape[1]))
    error = (found - expected).abs() / expected.abs().clamp_min(1e-30)
    assert error.max() <= 2**-8 * 1.05
    special = torch.tensor([[float("nan"), float("inf"), 1e30, -1e30, -1e20, float("-inf")]]).bfloat16()
    expected, found = F.gelu(special.double()), kernel.add_bias_gelu_(special.clone(), torch.zeros(6))
    torch.testing.assert_close(found.double(), expected, equal_nan=True)


def test_a_parameter_elsewhere_is_an_error_and_no_crash(kernel, rows):
    with pytest.raises(RuntimeError, match="a parameter is on meta"):
        kernel.normalise(rows, torch.ones(rows.shape[1], device="meta"), torch.zeros(rows.shape[1]), 1e-5)


def test_what_is_not_one_after_the_other_in_memory_or_of_another_type_falls_back():
    x = torch.randn(6, 8)
    assert rows_kernel(x[:, :4], x.dtype) is None
    assert rows_kernel(x, torch.bfloat16) is None
    assert rows_kernel(x.double(), torch.float64) is None
    with use_native(False):
        assert rows_kernel(x, x.dtype) is None


@pytest.mark.parametrize("is_half", [False, True])
def test_a_feed_forward_computes_what_it_does_without_kernels(is_half):
    torch.manual_seed(0)
    ff, norm = FeedForward(24), torch.nn.LayerNorm(24)
    x = torch.randn(2, 9, 5, 24, requires_grad=True)
    inputs = [x, *norm.parameters(), *ff.parameters()]

    def outputs():
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            out = ff.forward_after(norm, x.bfloat16() if is_half else x, residual=True)
        return [out, *torch.autograd.grad(out.float().square().sum(), inputs)]

    found = outputs()
    with use_native(False):
        expected = outputs()
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).norm() <= (3e-2 if is_half else 3e-6) * other.norm()
