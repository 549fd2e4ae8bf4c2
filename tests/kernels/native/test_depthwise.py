"""Depthwise convolutions and the gradients of their parameters by the native kernels, against float64."""

import pytest
import torch
import torch.nn.functional as F

from scalablevit.kernels.cpu import depthwise

# Batch, height, width and channels: a single position, ragged channels, and so many that threads share them.
MAPS = [(1, 1, 1, 3), (2, 5, 3, 16), (1, 2, 9, 37), (3, 14, 14, 64)]
DTYPES = {torch.float32: 2e-6, torch.bfloat16: 6e-3}


def error(found, exact):
    return ((found.double() - exact).norm() / exact.norm().clamp_min(1e-30)).item()


def exactly(x, weight, bias, **settings):
    """The convolution of a map in float64."""
    arguments = x.double().permute(0, 3, 1, 2), weight.double(), bias.double()
    return F.conv2d(*arguments, groups=x.shape[-1], **settings).permute(0, 2, 3, 1)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("size", MAPS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_convolutions_are_those_of_float64(launcher, dtype, size, residual):
    x, weight, bias = torch.randn(size).to(dtype), torch.randn(size[-1], 1, 3, 3), torch.randn(size[-1])
    found = depthwise.convolve(x, weight, bias, residual=residual)
    expected = exactly(x, weight, bias, padding=1)
    assert found.dtype == dtype
    assert error(found, expected + x.double() if residual else expected) < DTYPES[dtype]
    without = depthwise.convolve(x, weight, None)
    assert error(without, exactly(x, weight, torch.zeros(size[-1]), padding=1)) < DTYPES[dtype]


@pytest.mark.parametrize("layout", ["contiguous", "beside others", "turned"])
@pytest.mark.parametrize("size", MAPS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_of_parameters_are_those_of_float64(launcher, dtype, size, layout):
    b, height, width, channels = size
    if layout == "beside others":
        x = torch.randn(b, height, width, 2 * channels + 5).to(dtype)[..., 3 : 3 + channels]
    elif layout == "turned":
        x = torch.randn(b, channels, height, width).to(dtype).permute(0, 2, 3, 1)
    else:
        x = torch.randn(size).to(dtype)
    weight, grad = torch.randn(channels, 1, 3, 3), torch.randn(size).to(dtype)
    found = depthwise.parameter_gradients(grad, x, weight)

    parameters = weight.double().requires_grad_(), torch.zeros(channels).double().requires_grad_()
    expected = torch.autograd.grad(exactly(x, *parameters, padding=1), parameters, grad.double())
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert error(one, other) < 2e-6


@pytest.mark.parametrize("needs_x", [False, True])
@pytest.mark.parametrize(
    ("size", "cell"), [((1, 1, 1, 3), 1), ((2, 6, 9, 16), 3), ((2, 7, 9, 37), 2), ((3, 16, 8, 64), 8)]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_over_cells_are_those_of_float64(launcher, dtype, size, cell, needs_x):
    x, weight = torch.randn(size).to(dtype), torch.randn(size[-1], 1, cell, cell)
    grad = torch.randn(size[0], size[1] // cell, size[2] // cell, size[3]).to(dtype)
    found = depthwise.cell_gradients(grad, x, weight, needs_x=needs_x)

    inputs = [one.double().requires_grad_() for one in (x, weight, torch.zeros(size[-1]))]
    expected = torch.autograd.grad(exactly(*inputs, stride=cell), inputs, grad.double())
    assert (found[0] is not None) == needs_x
    for one, other, most in zip(found, expected, (DTYPES[dtype], 2e-6, 2e-6), strict=True):
        assert one is None or error(one, other) < most
