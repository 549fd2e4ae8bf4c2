"""Norms and their gradients, and sums over rows, by the native kernels against float64."""

import pytest
import torch

from scalablevit.kernels.cpu import depthwise
from scalablevit.kernels.cpu import rows as native_rows

# Rows and channels: fewer than a vector has, a few more, and so many that threads share them and sums have parts.
SIZES = [(1, 3), (3, 16), (40, 37), (700, 64), (301, 100)]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
DTYPES = list(TOLERANCE)


def error(found, exact):
    return ((found.double() - exact).norm() / exact.norm().clamp_min(1e-30)).item()


@pytest.fixture
def case(request, dtype, size):
    torch.manual_seed(0)
    rows, channels = size
    x = (3.0 * torch.randn(rows, channels) + torch.randn(rows, 1)).to(dtype)
    weight, bias = torch.randn(channels), torch.randn(channels)
    return x, weight, bias


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_are_those_of_float64_and_keep_their_moments(launcher, case, dtype, size):
    x, weight, bias = case
    moments = torch.full((2, size[0]), float("nan")).unbind(0)
    found = native_rows.normalise(x, weight, bias, 1e-5, moments=moments)

    exact = torch.nn.functional.layer_norm(x.double(), x.shape[1:], weight.double(), bias.double(), 1e-5)
    variance = x.double().var(1, correction=0)
    assert error(found, exact) < TOLERANCE[dtype]
    assert error(moments[0], x.double().mean(1)) < 2e-6
    assert error(moments[1], (variance + 1e-5).rsqrt()) < 2e-6
    assert torch.equal(found, native_rows.normalise(x, weight, bias, 1e-5))


@pytest.mark.parametrize("adds", ["nothing", "a second gradient", "a residual", "both"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_norms_are_those_of_float64(launcher, case, dtype, size, adds):
    x, weight, bias = case
    grads = [torch.randn(size).to(dtype) for _ in range(2 if adds in ("a second gradient", "both") else 1)]
    residual = torch.randn(size).to(dtype) if adds in ("a residual", "both") else None
    moments = torch.empty(2, size[0]).unbind(0)
    native_rows.normalise(x, weight, bias, 1e-5, moments=moments)
    out = torch.full_like(x, float("nan"))
    second = grads[1] if len(grads) > 1 else None
    of_parameters = native_rows.differentiate_norm(grads[0], second, x, moments, weight, residual=residual, out=out)

    inputs = [one.double().requires_grad_() for one in (x, weight, bias)]
    normed = torch.nn.functional.layer_norm(inputs[0], x.shape[1:], *inputs[1:], 1e-5)
    exact = list(torch.autograd.grad(normed, inputs, sum(one.double() for one in grads)))
    if residual is not None:
        exact[0] = exact[0] + residual.double()
    assert error(out, exact[0]) < TOLERANCE[dtype]
    assert [one.dtype for one in of_parameters] == [torch.float32, torch.float32]
    for found, of_parameter in zip(of_parameters, exact[1:], strict=True):
        assert error(found, of_parameter) < 5e-6


@pytest.mark.parametrize("size", [*SIZES, (0, 5)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_over_rows_are_those_of_float64(launcher, case, dtype, size):
    x = case[0]
    found = native_rows.sum_rows(x)
    assert found.dtype == torch.float32
    assert (found.double() - x.double().sum(0)).abs().max() <= 1e-6 * x.double().abs().sum(0).max()


def test_sums_are_the_same_bits_for_any_number_of_threads(launcher):
    x, grad, weight = torch.randn(5000, 20), torch.randn(5000, 20), torch.randn(20)
    moments, maps, cells = torch.rand(2, 5000).unbind(0), torch.randn(2, 3, 24, 24, 16), torch.randn(16, 1, 2, 2)

    def sums():
        of_norm = native_rows.differentiate_norm(grad, None, x, moments, weight, residual=None, out=torch.empty_like(x))
        of_lim = depthwise.parameter_gradients(*maps, torch.empty(16, 1, 3, 3))
        of_cells = depthwise.cell_gradients(maps[0, :, :12, :12].contiguous(), maps[1], cells, needs_x=False)[1:]
        return [native_rows.sum_rows(x), *of_norm, *of_lim, *of_cells]

    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append(sums())
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))
