import pytest
import torch
import torch.nn.functional as F

from scalablevit.initialisation import initialise
from scalablevit.layers import PEG, DropPath, FeedForward, MapConv2d, PatchEmbedding
from tests.networks import small_network


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    module, x = DropPath(0.25), torch.ones(4000, 2, 2, 1)
    out = module(x)
    values = {round(float(v), 4) for v in out.unique()}
    assert values == {0.0, round(1 / 0.75, 4)}
    assert all(len(sample.unique()) == 1 for sample in out)
    assert out.mean().item() == pytest.approx(1.0, abs=0.04)  # 4 standard errors
    assert module.eval()(x) is x


def test_a_map_convolution_is_the_convolution():
    module = MapConv2d(3, 5, 3, stride=2, padding=1)
    x = torch.randn(2, 7, 6, 3)
    expected = F.conv2d(x.permute(0, 3, 1, 2), module.weight, module.bias, 2, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize(("stride", "size", "expected"), [(4, 224, 56), (4, 1, 1), (2, 7, 4), (1, 5, 5), (3, 10, 4)])
def test_a_patch_embedding_has_one_position_per_started_stride(stride, size, expected):
    module = PatchEmbedding(3, 4, stride=stride, norm=torch.nn.Identity())
    assert module(torch.randn(1, size, size, 3)).shape == (1, expected, expected, 4)
    assert module.conv.kernel_size == (2 * stride - 1, 2 * stride - 1)


def test_peg_and_feed_forward_by_hand():
    peg, ff, x = PEG(4), FeedForward(4, expansion_factor=2), torch.randn(1, 3, 3, 4)
    centre = (x[0] * peg.conv.weight[:, 0].permute(1, 2, 0)).sum((0, 1)) + peg.conv.bias + x[0, 1, 1]
    torch.testing.assert_close(peg(x)[0, 1, 1], centre)
    hidden = x[0, 0, 0] @ ff.fc1.weight.T + ff.fc1.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    torch.testing.assert_close(ff(x)[0, 0, 0], hidden @ ff.fc2.weight.T + ff.fc2.bias)


def test_the_papers_initialisation():
    torch.manual_seed(0)
    model = small_network("paper", dim=(64, 128, 160, 192))
    layer = model.stages[2].layers[0]
    qkv, lim = layer.iwsa.branch.to_qkv, layer.iwsa.branch.lim
    pointwise, patches = layer.ssa.branch.keys_values.scale_channels, model.stages[2].patch_embedding.conv
    assert qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert lim.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.15)  # depthwise: 3 * 3 * 1
    assert pointwise.weight.std().item() == pytest.approx((2 / pointwise.out_features) ** 0.5, rel=0.1)
    assert patches.weight.std().item() == pytest.approx((2 / (9 * 160)) ** 0.5, rel=0.1)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.ndim == 1:
            assert bool((parameter == 1).all()), name


def test_the_seeds_initialisation_is_pytorchs():
    model = small_network("vit-pytorch")
    torch.manual_seed(1)
    initialise(model, "pytorch")
    fc1 = model.stages[3].layers[0].ff1.branch.fc1
    bound = fc1.in_features**-0.5
    assert fc1.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert fc1.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


@pytest.mark.parametrize("frozen", [(), ("fc2.weight",), ("fc1.weight", "fc1.bias", "fc2.bias")], ids=str)
def test_the_feed_forward_keeps_less_and_has_the_gradients_of_plain_autograd(frozen):
    ff, x = FeedForward(6).double(), torch.randn(2, 3, 4, 6, dtype=torch.float64)
    for name in frozen:
        ff.get_parameter(name).requires_grad_(False)
    inputs = [x.requires_grad_(), *(p for p in ff.parameters() if p.requires_grad)]
    saved = []

    def gradients(out):
        return torch.autograd.grad(out.square().sum(), inputs)

    plain = gradients(ff._project(ff.fc1(x)))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        out = ff(x)
    for one, other in zip(gradients(out), plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert saved.count(24 * 24) == 1  # the hidden layer once, not before and after the GELU
    assert torch.autograd.gradgradcheck(lambda x: ff(x), (x[:1, :1, :2].detach().requires_grad_(),))


def test_the_feed_forward_under_autocast_has_gradients_in_the_type_of_the_weights():
    ff, x = FeedForward(8), torch.randn(2, 3, 4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ff(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # its cache of weights in bfloat16 is per context
        expected = ff._project(ff.fc1(x))
    assert torch.equal(out, expected)
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
    ff.fc2 = Adapter(ff.fc2)
    torch.testing.assert_close(ff(x), 2 * out)


def test_inference_in_slices_is_the_same(monkeypatch):
    ff, x = FeedForward(6), torch.randn(2, 5, 7, 6)
    expected = ff(x).detach()
    calls = []
    project = ff._project
    monkeypatch.setattr(ff, "_project", lambda hidden: calls.append(len(hidden)) or project(hidden))
    monkeypatch.setattr("scalablevit.layers._SLICE_BYTES", 24 * 4 * 32)  # 32 positions at a time
    with torch.no_grad():
        torch.testing.assert_close(ff(x.transpose(1, 2)).transpose(1, 2), expected)
        assert calls == [32, 32, 6]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(ff(x).float(), expected, rtol=3e-2, atol=3e-2)


def test_gradients_over_several_slices(monkeypatch):
    monkeypatch.setattr("scalablevit.layers._SLICE_BYTES", 24 * 8 * 5)  # 5 positions at a time
    ff, x = FeedForward(6).double(), torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    inputs = [x, *ff.parameters()]
    plain = torch.autograd.grad(ff._project(ff.fc1(x)).square().sum(), inputs)
    for one, other in zip(torch.autograd.grad(ff(x).square().sum(), inputs), plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
