import pytest
import torch

from scalablevit import feed_forward, feed_forward_passes
from scalablevit.feed_forward import FeedForward
from scalablevit.kernels import selection, use_native


@pytest.mark.parametrize("frozen", [(), ("fc2.weight",), ("fc1.weight", "fc1.bias", "fc2.bias")], ids=str)
def test_the_feed_forward_keeps_less_and_has_the_gradients_of_plain_autograd(frozen):
    ff, x = FeedForward(6).double(), torch.randn(2, 3, 4, 6, dtype=torch.float64)
    for name in frozen:
        ff.get_parameter(name).requires_grad_(False)
    inputs = [x.requires_grad_(), *(p for p in ff.parameters() if p.requires_grad)]
    saved = []

    def gradients(out):
        return torch.autograd.grad(out.square().sum(), inputs)

    plain = gradients(ff._apply_layers(x))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        out = ff(x)
    for one, other in zip(gradients(out), plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert 24 * 24 not in saved  # the hidden layer
    assert torch.autograd.gradgradcheck(lambda x: ff(x), (x[:1, :1, :2].detach().requires_grad_(),))


def test_the_feed_forward_under_autocast_is_that_of_its_layers_where_pytorch_multiplies(monkeypatch):
    monkeypatch.setattr(selection, "_fewest_rows", lambda dtype: 0)
    ff, x = FeedForward(8), torch.randn(2, 3, 4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ff(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(out, ff._apply_layers(x))


def test_the_feed_forward_under_autocast_has_gradients_in_the_type_of_the_weights():
    ff, x = FeedForward(8), torch.randn(2, 3, 4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ff(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # its cache of weights in bfloat16 is per context
        expected = ff._apply_layers(x)
    torch.testing.assert_close(out, expected, rtol=2e-2, atol=2e-2)  # kernels round less often than PyTorch's layers
    for one, other in zip(
        torch.autograd.grad(out.float().sum(), list(ff.parameters())),
        torch.autograd.grad(expected.float().sum(), list(ff.parameters())),
        strict=True,
    ):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)


def test_what_stands_in_for_a_linear_layer_is_called():
    class Adapter(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return 2 * self.inner(x)

    ff, x = FeedForward(4), torch.randn(1, 2, 2, 4)
    out = ff(x)
    seen = []
    handle = ff.fc2.register_forward_hook(lambda module, args, output: seen.append(output))
    torch.testing.assert_close(ff(x), out)
    assert len(seen) == 1
    handle.remove()
    handle = ff.dropout.register_forward_hook(lambda module, args, output: seen.append(output))
    torch.testing.assert_close(ff(x), out)
    assert len(seen) == 3  # after each of the layers
    handle.remove()
    ff.fc2 = Adapter(ff.fc2)
    torch.testing.assert_close(ff(x), 2 * out)


def test_inference_in_slices_is_the_same(monkeypatch):
    ff, x = FeedForward(6), torch.randn(2, 5, 7, 6)
    expected = ff(x).detach()
    calls = []
    linear = feed_forward_passes._linear
    monkeypatch.setattr(
        feed_forward_passes, "_linear", lambda rows, *args, **kw: calls.append(len(rows)) or linear(rows, *args, **kw)
    )
    monkeypatch.setattr("scalablevit.feed_forward_passes._SLICE_BYTES", 24 * 4 * 32)  # 32 positions at a time
    with torch.no_grad():
        with use_native(False):
            torch.testing.assert_close(ff(x.transpose(1, 2)).transpose(1, 2), expected)
        assert calls == [24, 24, 24, 24, 22, 22]
        torch.testing.assert_close(ff(x.transpose(1, 2)).transpose(1, 2), expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(ff(x).float(), expected, rtol=3e-2, atol=3e-2)


def test_gradients_over_several_slices(monkeypatch):
    monkeypatch.setattr("scalablevit.feed_forward_passes._SLICE_BYTES", 24 * 8 * 5)  # 5 positions at a time
    ff, x = FeedForward(6).double(), torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    inputs = [x, *ff.parameters()]
    plain = torch.autograd.grad(ff._apply_layers(x).square().sum(), inputs)
    for one, other in zip(torch.autograd.grad(ff(x).square().sum(), inputs), plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_what_it_gives_may_be_changed_in_place_and_nothing_is_needed_of_it():
    ff = FeedForward(4)
    out = ff(torch.randn(1, 2, 2, 4, requires_grad=True))
    out.mul_(2).sum().backward()
    assert ff(torch.empty(0, 2, 2, 4)).shape == (0, 2, 2, 4)
    assert ff.to("meta")(torch.empty(1, 2, 2, 4, device="meta")).shape == (1, 2, 2, 4)
    ff = FeedForward(4)
    ff.fc1.bias = None
    assert ff(torch.randn(1, 2, 2, 4)).shape == (1, 2, 2, 4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("fewest", [1, 256])  # rows that products are native from
def test_gradients_are_the_same_where_the_hidden_layer_is_kept(monkeypatch, dtype, dropout, fewest):
    native = selection._fewest_rows
    monkeypatch.setattr(selection, "_fewest_rows", lambda dtype: fewest if native(dtype) else 0)
    torch.manual_seed(0)
    monkeypatch.setattr(feed_forward_passes, "_SLICE_BYTES", 24 * 4 * 32)  # 32 positions at a time
    ff, x = FeedForward(6, dropout=dropout).to(dtype), torch.randn(5, 4, 7, 6).to(dtype).requires_grad_()
    inputs, grad = [x, *ff.parameters()], torch.randn(x.shape).to(dtype)

    def gradients(backward_by=True):
        torch.manual_seed(1)
        out = ff(x)
        with use_native("auto" if backward_by else False):
            once = torch.autograd.grad(out, inputs, grad, retain_graph=True)
        again = torch.autograd.grad(out, inputs, grad)  # what is kept is as it was
        assert all(torch.equal(*pair) for pair in zip(once, again, strict=True)) or not backward_by
        return out, *once

    expected = gradients()
    monkeypatch.setattr(feed_forward, "_KEPT_FROM", 6)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    for backward_by in (True, False):
        for one, other in zip(gradients(backward_by), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * float(other.detach().abs().max()))


def test_the_hidden_layer_is_kept_where_it_is_wide_and_there_are_many_rows():
    def saved(dim, rows):
        kept = []
        x = torch.zeros(1, rows, 1, dim, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
            FeedForward(dim)(x)
        return kept.count((rows, 4 * dim))

    assert (saved(256, 300), saved(256, 255), saved(128, 600)) == (1, 0, 0)


def test_the_hidden_layer_is_not_kept_for_the_last_bias_alone():
    ff, kept = FeedForward(256).requires_grad_(False), []
    ff.fc2.bias.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        out = ff(torch.zeros(1, 300, 1, 256))
    assert (300, 1024) not in kept
    out.sum().backward()
    assert ff.fc2.bias.grad.tolist() == [300.0] * 256


@pytest.mark.parametrize("layer", ["fc1", "fc2"])
def test_biases_of_another_length_are_pytorchs_to_refuse(layer):
    ff = FeedForward(24)
    getattr(ff, layer).bias = torch.nn.Parameter(torch.randn(7))
    with pytest.raises(RuntimeError, match="size"):
        ff(torch.randn(1, 2, 2, 24))
    getattr(ff, layer).bias = torch.nn.Parameter(torch.ones(1))  # for every channel
    assert torch.equal(ff(torch.zeros(1, 2, 2, 24)), ff._apply_layers(torch.zeros(1, 2, 2, 24)))
