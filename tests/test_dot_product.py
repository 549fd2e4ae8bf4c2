import pytest
import torch

from scalablevit.dot_product import _attend_unfused, attend, merge_heads, split_heads
from tests.networks import attend_in_loops


def inputs(key_width, value_width, queries=5, keys=4, dtype=torch.float64):
    shapes = [(2, 3, queries, key_width), (2, 3, keys, key_width), (2, 3, keys, value_width)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize(("key_width", "value_width"), [(4, 4), (6, 3), (2, 5)])
def test_attention_is_what_plain_loops_give(key_width, value_width):
    query, key, value = inputs(key_width, value_width)
    out = attend(query, key, value, scale=0.3)
    assert out.shape == (2, 3, 5, value_width)
    for b in range(2):
        for n in range(3):
            expected = attend_in_loops(query[b, n], key[b, n], value[b, n], 0.3)
            torch.testing.assert_close(out[b, n], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("key_width", "value_width"), [(4, 4), (6, 3), (2, 5)])
def test_gradients_of_unequal_widths_are_those_of_plain_products(key_width, value_width):
    tensors = inputs(key_width, value_width)
    mask = torch.zeros(2, 1, 1, 4, dtype=torch.float64)
    mask[1, ..., -1] = float("-inf")
    fused, plain = attend(*tensors, 0.3, 0.0, mask), _attend_unfused(*tensors, 0.3, 0.0, mask)
    torch.testing.assert_close(fused, plain, rtol=1e-12, atol=1e-12)
    probe = torch.randn_like(fused)
    expected = torch.autograd.grad(plain, tensors, probe)
    for gradient, reference in zip(torch.autograd.grad(fused, tensors, probe), expected, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-11, atol=1e-11)


def test_heads_are_outer_and_head_width_inner_in_the_channels():
    x = torch.arange(2 * 3 * 8.0).view(2, 3, 8)
    heads = split_heads(x, 2)
    assert heads[1, 1, 2].tolist() == x[1, 2, 4:].tolist()
    assert torch.equal(merge_heads(heads), x)


def test_dropout_keeps_the_mean_and_hits_the_weights():
    query, key, value = (torch.randn(1, 1, 50, 8) for _ in range(3))
    torch.manual_seed(0)
    draws = torch.stack([attend(query, key, value, 0.3, 0.2) for _ in range(2000)])
    exact = attend(query, key, value, 0.3)
    assert not torch.equal(draws[0], draws[1])
    # Each draw deviates by about sqrt(0.2 / 0.8 * sum of squared weights), under 0.25; 2000 draws leave under 0.006.
    torch.testing.assert_close(draws.mean(0), exact, rtol=0, atol=0.035)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("keys", [4, 128, 129])
@pytest.mark.parametrize("is_masked", [False, True])
def test_training_in_half_precision_is_near_float64(dtype, keys, is_masked):
    tensors = inputs(6, 3, keys=keys, dtype=dtype)
    # As they come: heads inside the channels, so that a head's rows are not side by side in memory.
    tensors = [x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in tensors]
    mask = torch.zeros(2, 1, 1, keys, dtype=dtype)
    if is_masked:
        mask[1, ..., -2:] = float("-inf")
    exact = [x.detach().double().requires_grad_() for x in tensors]
    out, expected = attend(*tensors, 0.3, 0.0, mask), attend(*exact, 0.3, 0.0, mask.double())
    probe = torch.randn_like(out)
    found = [out, *torch.autograd.grad(out, tensors, probe)]
    wanted = [expected, *torch.autograd.grad(expected, exact, probe.double())]
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == dtype
        assert ((one.double() - other).norm() / other.norm()).item() < 0.015
    with torch.no_grad():
        torch.testing.assert_close(attend(*tensors, 0.3, 0.0, mask), out, rtol=0.02, atol=0.02)
