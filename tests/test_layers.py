import pytest
import torch
import torch.nn.functional as F

from scalablevit.feed_forward import FeedForward
from scalablevit.initialisation import initialise
from scalablevit.layers import PEG, DropPath, MapConv2d, PatchEmbedding
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
