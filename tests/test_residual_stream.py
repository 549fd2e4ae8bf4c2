"""The native passes before and behind an attention, against the layers that they stand for."""

import pytest
import torch
from torch import nn

from scalablevit.kernels import use_native
from scalablevit.kernels.selection import rows_kernel
from scalablevit.layers import Linear
from scalablevit.norms import normed
from scalablevit.residual_stream import add_projected

DTYPES = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2}  # with tolerances, of values near 1


def needs_kernels():
    if rows_kernel(torch.zeros(1, 16), torch.float32) is None:
        pytest.skip("no compiler")


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    needs_kernels()
    torch.manual_seed(0)
    return request.param


def modules(dtype):
    norm, layer = nn.LayerNorm(24), Linear(40, 24)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm.to(dtype), layer.to(dtype)


def calls_of(monkeypatch, name):
    """How often a kernel is called from now on, as the length of a list."""
    from scalablevit.kernels import selection
    from scalablevit.kernels.cpu import rows

    monkeypatch.setattr(selection, "_fewest_rows", lambda dtype: 0)  # where there are products, they do all at once
    calls, kernel = [], getattr(rows, name)
    monkeypatch.setattr(rows, name, lambda *given, **named: (calls.append(name), kernel(*given, **named))[1])
    return calls


def test_norm(dtype, monkeypatch):
    calls = calls_of(monkeypatch, "normalise")
    norm, _ = modules(dtype)
    x = torch.randn(2, 5, 7, 24).to(dtype)
    with torch.no_grad():
        found = normed(norm, x)
        expected = norm.double()(x.double())
    assert calls
    assert found.dtype == dtype
    assert (found - expected).abs().max() <= DTYPES[dtype] * expected.abs().max()


def test_norm_under_autocast_is_of_the_type_of_the_map(monkeypatch):
    needs_kernels()
    calls = calls_of(monkeypatch, "normalise")
    norm, _ = modules(torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for dtype in DTYPES:
            x = torch.randn(2, 5, 7, 24).to(dtype)
            assert normed(norm, x).dtype == norm(x).dtype
    assert len(calls) == 2


@pytest.mark.parametrize("is_cast", [False, True], ids=["as stored", "autocast"])
def test_sum_with_the_residual_stream(dtype, is_cast, monkeypatch):
    if is_cast and dtype == torch.float32:
        pytest.skip("the stream is of the type that autocast computes in")
    calls = calls_of(monkeypatch, "add_bias_residual_")
    _, layer = modules(torch.float32 if is_cast else dtype)
    residual, values = torch.randn(2, 5, 7, 24).to(dtype), torch.randn(2, 5, 7, 40).to(dtype)
    kept = residual.clone()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_cast):
        found = add_projected(residual, layer, nn.Dropout(0.5).eval(), values)
    expected = residual.double() + layer.double()(values.double())
    assert calls
    assert found.dtype == dtype
    assert torch.equal(residual, kept)
    assert (found - expected).abs().max() <= DTYPES[dtype] * expected.abs().max()


@pytest.mark.parametrize(
    "change",
    [
        lambda layer, dropout: layer.register_forward_hook(lambda *_: None),
        lambda layer, dropout: dropout.register_forward_hook(lambda *_: None),
        lambda layer, dropout: setattr(layer, "bias", None),
    ],
    ids=["hook on the layer", "hook on the dropout", "no bias"],
)
def test_what_is_not_plain_runs_as_layers(change, monkeypatch):
    needs_kernels()
    calls = calls_of(monkeypatch, "add_bias_residual_")
    _, layer = modules(torch.float32)
    dropout = nn.Dropout(0.5).eval()
    change(layer, dropout)
    residual, values = torch.randn(1, 2, 3, 24), torch.randn(1, 2, 3, 40)
    with torch.no_grad():
        torch.manual_seed(0)
        found = add_projected(residual, layer, dropout, values)
        torch.manual_seed(0)
        expected = residual + dropout(layer(values))
    assert not calls
    assert torch.equal(found, expected)


def test_what_is_recorded_runs_as_layers(monkeypatch):
    needs_kernels()
    calls = calls_of(monkeypatch, "add_bias_residual_")
    _, layer = modules(torch.float32)
    out = add_projected(torch.randn(1, 2, 3, 24), layer, nn.Dropout(0.0), torch.randn(1, 2, 3, 40))
    out.sum().backward()
    assert not calls
    assert layer.weight.grad is not None


def test_without_kernels_the_result_is_the_same():
    norm, layer = modules(torch.float32)
    residual, values = torch.randn(1, 2, 3, 24), torch.randn(1, 2, 3, 40)
    with torch.no_grad(), use_native(False):
        assert torch.equal(normed(norm, residual), norm(residual))
        assert torch.equal(add_projected(residual, layer, nn.Dropout(0.0), values), residual + layer(values))
        assert torch.equal(add_projected(None, layer, nn.Dropout(0.0), values), layer(values))
