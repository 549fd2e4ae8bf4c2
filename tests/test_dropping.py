"""Dropout in training, where native kernels do it, against the same blocks with its factors multiplied in by hand."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from scalablevit.benchmarking.cost import count_saved_bytes
from scalablevit.dot_product import attend
from scalablevit.dropping import add_dropped
from scalablevit.feed_forward import FeedForward
from scalablevit.kernels import use_native
from scalablevit.kernels.dropout import Dropout
from scalablevit.kernels.selection import rows_kernel
from scalablevit.layers import Linear, PreNormResidual
from scalablevit.residual_stream import add_projected
from tests.networks import randomise, small_network

DTYPES = {torch.float32: 5e-6, torch.bfloat16: 2e-2}  # with tolerances, of the largest number; sums are of 3,200 rows
DIM = 24


@pytest.fixture(autouse=True)
def _kernels():
    if rows_kernel(torch.zeros(1, 16), torch.float32) is None:
        pytest.skip("no compiler")
    torch.manual_seed(0)


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    return request.param


@pytest.fixture
def known(monkeypatch):
    """Dropouts with seeds 1, 2, 3, ... in the order in which they are drawn, as a list."""
    drawn = []

    def draw(probability):
        drawn.append(Dropout(probability, len(drawn) + 1))
        return drawn[-1] if probability else Dropout()

    monkeypatch.setattr(Dropout, "drawn", staticmethod(draw))
    return drawn


def assert_near(found, expected, dtype):
    assert found.dtype == dtype
    assert (found.double() - expected).abs().max() <= DTYPES[dtype] * expected.abs().max().clamp_min(1e-2)


def block_of(probability=0.4):
    return randomise(PreNormResidual(nn.LayerNorm(DIM), FeedForward(DIM, dropout=probability)))


def factors_of(dropout, x):
    return dropout.factors(x.numel() // x.shape[-1], x.shape[-1]).view(x.shape).to(x.dtype)


def by_hand(block, x, dropout):
    norm, branch = block.norm, block.branch
    hidden = nn.functional.gelu(branch.fc1(norm(x)))
    out = branch.fc2(hidden * factors_of(dropout, hidden))
    return x + out * factors_of(dropout.another(), out)


@pytest.mark.parametrize("native", ["auto", True])
@pytest.mark.parametrize("size", [(5, 3), (40, 40)], ids=str)
def test_a_feed_forward_and_its_gradients(known, dtype, native, size):
    block, x = block_of().to(dtype), torch.randn(2, *size, DIM).to(dtype).requires_grad_()
    inputs = [x, *block.parameters()]
    grad = torch.randn(x.shape).to(dtype)
    with use_native(native):
        out = block(x)
        found = out, *torch.autograd.grad(out, inputs, grad)
    assert len(known) == 1
    double = block_of().double()
    double.load_state_dict(block.state_dict())
    exact = x.detach().double().requires_grad_()
    expected = by_hand(double, exact, known[0])
    gradients = torch.autograd.grad(expected, [exact, *double.parameters()], grad.double())
    names = ["out", "x", *(name for name, _ in block.named_parameters())]
    for name, one, other in zip(names, found, (expected, *gradients), strict=True):
        if dtype == torch.float32 or not name.startswith("norm"):  # which PyTorch sums up in bfloat16
            assert_near(one, other, dtype)


def test_second_derivatives(known):
    block, x = block_of(), torch.randn(2, 4, 3, DIM).requires_grad_()

    def twice(out):
        first = torch.autograd.grad(out.sin().sum(), x, create_graph=True)[0]
        return first, torch.autograd.grad(first.square().sum(), x)[0]

    found, expected = twice(block(x)), twice(by_hand(block, x, Dropout(0.4, 1)))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("residual", [False, True])
def test_a_sum_with_the_residual_stream(known, dtype, residual):
    layer, dropout = Linear(DIM, DIM).to(dtype), nn.Dropout(0.4)
    values, stream, grad = (torch.randn(2, 4, 3, DIM).to(dtype).requires_grad_() for _ in range(3))
    out = add_projected(stream if residual else None, layer, dropout, values)
    inputs = [values, layer.weight, *([stream] if residual else [])]
    found = out, *torch.autograd.grad(out, inputs, grad)
    exact = [one.detach().double().requires_grad_() for one in inputs]
    projected = exact[0] @ exact[1].t() + layer.bias.detach().double()
    expected = projected * factors_of(known[0], projected) + (exact[2] if residual else 0.0)
    for one, other in zip(found, (expected, *torch.autograd.grad(expected, exact, grad.double())), strict=True):
        assert_near(one, other, dtype)
    with torch.no_grad():
        again = add_projected(stream, layer, dropout, values)
        assert_near(again, projected * factors_of(known[1], projected) + stream.double(), dtype)


def test_attention_and_its_second_derivatives(known):
    query, key, value = (torch.randn(2, 2, n, 5).requires_grad_() for n in (7, 9, 9))
    left = Dropout(0.4, 1).factors(28, 9).view(2, 2, 7, 9)

    def twice(out):
        first = torch.autograd.grad(out.sin().sum(), query, create_graph=True)[0]
        return out, first, *torch.autograd.grad(first.square().sum(), (query, key, value))

    expected = twice((torch.softmax(query @ key.mT * 0.5, -1) * left) @ value)
    for one, other in zip(twice(attend(query, key, value, 0.5, 0.4)), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert known


@pytest.mark.parametrize("design", ["vit-pytorch", "paper"])
def test_a_seed_repeats_a_network_and_checkpointing_does(design):
    model, images = randomise(small_network(design, dropout=0.3)), torch.randn(2, 3, 64, 64)

    def gradients(run):
        torch.manual_seed(3)
        return torch.autograd.grad(run(images).sin().sum(), list(model.parameters()))

    expected = gradients(model)
    for one, other in zip(gradients(model), expected, strict=True):
        assert torch.equal(one, other)
    recomputed = gradients(lambda images: checkpoint(model, images, use_reentrant=False))
    for one, other in zip(recomputed, expected, strict=True):
        torch.testing.assert_close(one, other)
    torch.manual_seed(4)
    assert not torch.equal(torch.autograd.grad(model(images).sin().sum(), list(model.parameters()))[0], expected[0])


def test_the_mean_of_a_network_without_a_softmax_is_that_without_dropout():
    block, x = block_of(), torch.randn(1, 2, 2, DIM)
    with torch.no_grad():
        total = sum(block(x).double() for _ in range(4000)) / 4000
        spread = torch.stack([block(x) for _ in range(200)]).double().std(0)
        torch.testing.assert_close(total, block.eval()(x).double(), rtol=0, atol=float(6 * spread.max() / 4000**0.5))


@pytest.mark.parametrize(("window_size", "most"), [(None, 1.0), (4, 1.05)])
def test_no_masks_are_kept(window_size, most):
    images = torch.randn(2, 3, 64, 64)
    models = (small_network("vit-pytorch", window_size=window_size, dropout=p) for p in (0.0, 0.1))
    plain, dropping = (count_saved_bytes(model.train(), images) for model in models)
    assert dropping <= most * plain  # windows are cut out, since no kernel drops in place


@pytest.mark.parametrize("reason", ["hook", "switch", "all", "evaluation", "another class"])
def test_what_is_left_to_pytorch(known, reason):
    block, x = block_of(), torch.randn(2, 4, 3, DIM)
    dropout = block.branch.dropout
    if reason == "hook":
        dropout.register_forward_hook(lambda *_: None)
    elif reason == "another class":
        block.branch.dropout = type("Another", (nn.Dropout,), {})(0.4)
    elif reason == "all":
        dropout.p = 1.0
    elif reason == "evaluation":
        dropout.eval()
    with use_native(reason != "switch"):
        out = block(x)
    assert not any(one.probability for one in known)
    if reason == "all":
        assert torch.equal(out, x)


def test_maps_of_another_layout_or_type_are_left_to_pytorch(known):
    x = torch.randn(2, 4, 3, DIM)
    assert add_dropped(None, x.transpose(1, 2), 0.4) is None
    assert add_dropped(x.transpose(1, 2).contiguous(), x, 0.4) is None
    assert add_dropped(x.half(), x, 0.4) is None
    assert add_dropped(None, x.double(), 0.4) is None
    assert known == []


def test_a_default_device_is_not_the_cpus():
    block, x = block_of(), torch.randn(2, 4, 3, DIM).requires_grad_()
    query = torch.randn(1, 2, 5, 3, requires_grad=True)
    with torch.device("meta"):
        outs = block(x), attend(query, query.detach(), query.detach(), 0.5, 0.4)
        for out, into in zip(outs, (x, query), strict=True):
            assert torch.autograd.grad(out.sin().sum(), into, create_graph=True)[0].device.type == "cpu"


def test_an_empty_batch_has_second_derivatives():
    query = torch.randn(0, 2, 5, 3, requires_grad=True)
    out = attend(query, query.detach(), query.detach(), 0.5, 0.4)
    assert torch.autograd.grad(out.sin().sum(), query, create_graph=True)[0].shape == query.shape


@pytest.mark.parametrize("dropout", [-0.1, 1.5, float("nan")])
def test_a_probability_that_is_none_is_pytorchs_to_refuse(dropout):
    with pytest.raises(RuntimeError, match=r"dropout|probability"):
        attend(*torch.randn(3, 1, 2, 5, 3), 0.5, dropout)


def test_gradients_that_lie_in_memory_without_their_sign():
    layer, dropout = Linear(DIM, DIM), nn.Dropout(0.4)
    values, grad = torch.randn(2, 4, 3, DIM, requires_grad=True), torch.randn(2, 4, 3, DIM)
    query = torch.randn(1, 2, 5, 3, requires_grad=True)
    outs = block_of()(values), add_projected(None, layer, dropout, values), attend(query, query, query, 0.5, 0.4)
    for out, into, change in zip(outs, (values, values, query), (grad, grad, torch.randn(1, 2, 5, 3)), strict=True):
        expected = torch.autograd.grad(out, into, change, retain_graph=True)[0]
        assert torch.equal(torch.autograd.grad(out, into, torch._neg_view(-change))[0], expected)
