import pytest
import torch

from scalablevit.heads import ClassifierHead, GlobalPool


def head(kind="linear", norm_eps=None, pooling="avg", num_classes=3):
    torch.manual_seed(0)
    return ClassifierHead(4, num_classes, kind=kind, norm_eps=norm_eps, pooling=pooling, dropout=0.0).eval()


def test_pooling_by_hand():
    maps = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]], [[-1.0, 0.0], [0.0, -3.0]]]])
    assert GlobalPool("avg")(maps).tolist() == [[3.0, -1.0]]
    assert GlobalPool("max")(maps).tolist() == [[6.0, 0.0]]
    assert GlobalPool("avgmax")(maps).tolist() == [[4.5, -0.5]]
    assert GlobalPool("catavgmax")(maps).tolist() == [[3.0, -1.0, 6.0, 0.0]]


def test_pre_logits_of_the_linear_head_are_the_normed_mean():
    module, maps = head(norm_eps=1e-5), torch.randn(2, 4, 3, 5)
    mean = maps.mean((2, 3))
    expected = (mean - mean.mean(1, keepdim=True)) / (mean.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(module(maps, pre_logits=True), expected)
    torch.testing.assert_close(module(maps), module.classifier(expected))


def test_pre_logits_of_the_hidden_head_are_4096_wide_and_after_gelu():
    module, maps = head("hidden"), torch.randn(2, 4, 3, 5)
    features = module(maps, pre_logits=True)
    assert features.shape == (2, 4096)
    assert module.features == 4096
    assert features.min().item() > -0.18  # the least value of GELU


@pytest.mark.parametrize("num_classes", [0, 3])
def test_without_pooling_each_position_has_its_logits(num_classes):
    module, maps = head(pooling="", num_classes=num_classes), torch.randn(2, 4, 3, 5)
    out = module(maps)
    assert out.shape == (2, num_classes or 4, 3, 5)
    torch.testing.assert_close(out.permute(0, 2, 3, 1)[1, 2, 4], module.classifier(maps[1, :, 2, 4]))


def test_reset_keeps_everything_but_the_classifier():
    module = head("hidden", norm_eps=1e-5).to(torch.bfloat16)
    before = {name: p.clone() for name, p in module.named_parameters() if "classifier" not in name}
    module.reset(7, requires_grad=False, dtype=torch.bfloat16)
    assert module.classifier.weight.shape == (7, 4096)
    assert module.classifier.weight.dtype == torch.bfloat16
    assert not module.classifier.weight.requires_grad
    for name, parameter in before.items():
        assert torch.equal(module.get_parameter(name), parameter)
    module.reset(0)
    assert isinstance(module.classifier, torch.nn.Identity)
    module.reset(2, "max")
    assert module.pool.pooling == "max"


def test_reset_to_a_wider_pooling():
    module = head()
    module.reset(3, "catavgmax")
    assert module(torch.randn(1, 4, 2, 2)).shape == (1, 3)
    assert module.features == 8
    normed = head(norm_eps=1e-5)
    with pytest.raises(ValueError, match="cannot change from 'avg' to 'catavgmax'"):
        normed.reset(3, "catavgmax")
