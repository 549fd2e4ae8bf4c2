"""Convolutions in half precision on processors whose instructions for it PyTorch's convolutions do not know."""

import pytest
import torch

from scalablevit import convolutions
from scalablevit.cell_convolutions import CellConv2d, cell_convolution_gradients
from scalablevit.convolutions import MapConv2d
from scalablevit.kernels import use_native
from scalablevit.kernels.selection import rows_kernel
from scalablevit.layers import PEG
from tests.networks import randomise

LAYERS = {
    "patches": lambda: MapConv2d(8, 12, 3, 2, 1),
    "depthwise": lambda: MapConv2d(8, 8, 3, 1, 1, groups=8),
    "cells": lambda: CellConv2d(8, 2),
    "without a bias": lambda: MapConv2d(8, 12, 3, 2, 1, bias=False),
    "around the edges": lambda: MapConv2d(8, 12, 3, 1, 1, padding_mode="reflect"),
}
HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(params=LAYERS)
def layer(request, monkeypatch):
    monkeypatch.setattr(convolutions, "_has_half", lambda dtype: False)
    with use_native(False):  # kernels of our own know half precision themselves
        yield randomise(LAYERS[request.param]())


def record_types(monkeypatch):
    """Lists the types in which PyTorch convolves from now on."""
    types, convolve = [], torch.nn.functional.conv2d

    def recorded(x, *arguments, **settings):
        types.append(x.dtype)
        return convolve(x, *arguments, **settings)

    monkeypatch.setattr(torch.nn.functional, "conv2d", recorded)
    return types


@pytest.mark.parametrize("autocasts", [True, False])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_they_are_computed_in_float32_with_their_gradients(layer, dtype, autocasts, monkeypatch):
    types = record_types(monkeypatch)
    if not autocasts:
        layer = layer.to(dtype)
    x, names = torch.randn(2, 9, 6, 8).to(dtype).requires_grad_(), ["x", *dict(layer.named_parameters())]
    with torch.autocast("cpu", dtype, enabled=autocasts):
        out = layer(x)
    grad = torch.randn_like(out)
    found = torch.autograd.grad(out, [x, *layer.parameters()], grad)
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=autocasts):
        unrecorded = layer(x)
    assert types == [torch.float32] * 2
    assert out.dtype == dtype

    exact = layer.double()
    wide = x.detach().double().requires_grad_()
    expected = exact(wide)
    wanted = torch.autograd.grad(expected, [wide, *exact.parameters()], grad.double())
    # Cells have gradients of their own in half precision, whose terms are rounded.
    unit = torch.finfo(dtype).eps * (4 if isinstance(layer, CellConv2d) else 1)
    names, others = ["unrecorded", "out", *names], (expected, expected, *wanted)
    for name, one, other in zip(names, (unrecorded, out, *found), others, strict=True):
        assert float((one - other).detach().norm()) <= unit * float(other.detach().norm()), name


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_compiled_graphs_compute_them_in_float32(layer, dtype, monkeypatch):
    if layer.padding_mode != "zeros":
        pytest.skip("the compiler's")
    types = record_types(monkeypatch)
    layer, x = layer.to(dtype), torch.randn(2, 9, 6, 8).to(dtype).requires_grad_()
    stride, padding = list(layer.stride), list(layer.padding)
    out = torch.ops.scalablevit.map_convolution(x, layer.weight, layer.bias, stride, padding, layer.groups)
    assert types == [torch.float32]
    expected = layer(x)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    inputs = [x, *layer.parameters()]
    found, wanted = torch.autograd.grad(out, inputs, grad), torch.autograd.grad(expected, inputs, grad)
    for one, other in zip(found, wanted, strict=True):
        assert float((one - other).norm()) <= 4 * torch.finfo(dtype).eps * float(other.norm())


def test_what_pytorch_refuses_is_refused(layer):
    with pytest.raises(RuntimeError):
        layer(torch.randn(2, 9, 6, 8).bfloat16())


def test_where_the_processor_has_instructions_pytorch_is_left_alone(monkeypatch):
    monkeypatch.setattr(convolutions, "_has_half", lambda dtype: True)
    layer, types = LAYERS["patches"]().bfloat16(), record_types(monkeypatch)
    layer(torch.randn(2, 9, 6, 8).bfloat16())
    assert types == [torch.bfloat16]


@pytest.mark.parametrize("by_operator", [False, True])
def test_gradients_of_weights_on_a_map_of_one_position(by_operator):
    """Where PyTorch leaves the taps that lie outside unwritten, with what was in memory before; not every time."""
    layer = randomise(MapConv2d(64, 128, 3, 2, 1)).bfloat16()
    for _ in range(16):
        before = [torch.full((layer.weight.numel() * times,), 7e20, dtype=torch.bfloat16) for times in (1, 2, 1, 2)]
        del before
        x = torch.randn(2, 1, 1, 64).bfloat16()
        settings = [2, 2], [1, 1], 1
        operator = torch.ops.scalablevit.map_convolution
        out = operator(x, layer.weight, layer.bias, *settings) if by_operator else layer(x)
        (found,) = torch.autograd.grad(out, layer.weight, torch.ones_like(out))
        expected = torch.zeros(128, 64, 3, 3)
        expected[:, :, 1, 1] = x.float().sum(0).flatten()
        torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("change", ["groups", "types"])
def test_the_operator_refuses_what_pytorch_refuses(change):
    x, weight = torch.randn(1, 4, 4, 8), torch.randn(8, 1, 3, 3)
    x, groups = (x, 1) if change == "groups" else (x.bfloat16(), 8)
    with pytest.raises(RuntimeError):
        torch.ops.scalablevit.map_convolution(x, weight, None, [1, 1], [1, 1], groups)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("side", [2, 3, 5])
def test_cells_whose_weight_was_put_in_place_of_another_size(dtype, side):
    """Steps of 4: gradients are those of what was convolved."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, 13, 12, 8, dtype=dtype), torch.randn(8, 1, side, side, dtype=dtype)
    out = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), weight, stride=4, groups=8).permute(0, 2, 3, 1)
    grad = torch.randn_like(out)
    found = cell_convolution_gradients(grad, x, weight, 4, (True, True, True))
    images, double = x.double().permute(0, 3, 1, 2).requires_grad_(), weight.double().requires_grad_()
    exact = torch.nn.functional.conv2d(images, double, stride=4, groups=8)
    expected = torch.autograd.grad(exact, [images, double], grad.double().permute(0, 3, 1, 2))
    for one, other in zip(found, (expected[0].permute(0, 2, 3, 1), expected[1]), strict=False):
        assert one.dtype == dtype
        assert float((one - other).norm()) <= max(torch.finfo(dtype).eps, 1e-6) * float(other.norm())


def test_one_channel_in_half_precision():
    module, x = CellConv2d(1, 2).bfloat16(), torch.randn(2, 8, 8, 1).bfloat16().requires_grad_()
    with use_native(False):
        module(x).sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.skipif(rows_kernel(torch.zeros(1, 1), torch.float32) is None, reason="no compiler")
@pytest.mark.parametrize("by", ["PEG", "module", "operator"])
@pytest.mark.parametrize("frozen", ["", "x", "weight", "bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_depthwise_ones_by_kernels_are_those_of_float64(dtype, frozen, by, monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "conv2d", None)  # PyTorch is not asked
    peg = randomise(PEG(24)).to(dtype)
    x = torch.randn(2, 5, 7, 24).to(dtype)
    tensors = {"x": x, "weight": peg.conv.weight, "bias": peg.conv.bias}
    for name, tensor in tensors.items():
        tensor.requires_grad_(name != frozen)
    if by == "operator":
        out = torch.ops.scalablevit.map_convolution(*tensors.values(), [1, 1], [1, 1], 24)
    else:
        out = peg(x) if by == "PEG" else peg.conv(x)
    grad, needed = torch.randn_like(out), [name for name in tensors if name != frozen]
    found = torch.autograd.grad(out, [tensors[name] for name in needed], grad)
    monkeypatch.undo()

    wide = {name: tensor.detach().double().requires_grad_() for name, tensor in tensors.items()}
    images = wide["x"].permute(0, 3, 1, 2)
    exact = torch.nn.functional.conv2d(images, wide["weight"], wide["bias"], padding=1, groups=24).permute(0, 2, 3, 1)
    exact = exact + wide["x"] if by == "PEG" else exact
    expected = torch.autograd.grad(exact, [wide[name] for name in needed], grad.double())
    for one, other in zip((out, *found), (exact, *expected), strict=True):
        assert one.dtype == dtype
        assert float((one - other).detach().norm()) <= max(torch.finfo(dtype).eps, 1e-6) * float(other.detach().norm())
