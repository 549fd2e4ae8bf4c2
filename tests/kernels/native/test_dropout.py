"""Dropout of the native kernels, whose masks PyTorch's operations compute as well, against float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from scalablevit.kernels.cpu import products, rows
from scalablevit.kernels.dropout import NO_DROPOUT, Dropout
from tests.kernels.list_contract import lists
from tests.kernels.maps import assert_near, assert_no_matter_of_threads

pytestmark = pytest.mark.usefixtures("launcher")

DROPOUT = Dropout(0.3, 2**62 + 12345)
# Lengths around those of a vector, of a block of queries and of a stripe of keys; then widths.
LISTS = [(1, 1, 3, 2), (17, 7, 5, 20), (70, 49, 40, 32), (65, 128, 9, 5), (130, 129, 8, 8), (5, 300, 16, 17)]


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request):
    torch.manual_seed(0)
    return request.param


def test_masks_are_those_of_pytorchs_operations():
    for seed in (0, 1, 2**31, 2**63 - 1):
        for probability in (0.0, 1e-9, 0.1, 0.5, 0.999):
            dropout = Dropout(probability, seed)
            found = rows.drop(torch.ones(37, 53), dropout)
            torch.testing.assert_close(found, dropout.factors(37, 53), rtol=1e-6, atol=0.0)
    assert torch.equal(rows.drop(torch.ones(5, 53), DROPOUT, first_row=32), DROPOUT.factors(37, 53)[32:])


def test_as_many_are_left_as_asked_for_in_rows_and_columns_and_pairs():
    n, probability = 2048, 0.1
    left = (Dropout(probability, 7).factors(n, n) > 0).double()
    spread = math.sqrt(probability * (1 - probability))
    assert abs(left.mean() - (1 - probability)) < 5 * spread / n
    for means in (left.mean(0), left.mean(1)):
        normal = (means - (1 - probability)) * math.sqrt(n) / spread
        assert normal.abs().max() < 6
        assert abs(normal.std() - 1) < 0.1
    centred = (left - left.mean()) / spread
    other = (Dropout(probability, 7).another().factors(n, n) > 0).double().sub(1 - probability) / spread
    for neighbour in (centred.roll(1, 0), centred.roll(1, 1), centred.roll((1, 1), (0, 1)), centred.roll(16, 1), other):
        assert abs((centred * neighbour).mean()) < 5 / n


@pytest.mark.parametrize("sizes", LISTS, ids=str)
def test_weights_of_lists_are_dropped_and_have_no_gradients(launcher, sizes, dtype):
    query, key, value, grad = lists(*sizes, dtype)
    inputs = [x.double().requires_grad_() for x in (query, key, value)]
    b, heads, queries, _ = query.shape
    left = DROPOUT.factors(b * heads * queries, sizes[1]).view(b, heads, queries, -1).double()
    out = (torch.softmax(inputs[0] @ inputs[1].mT * 0.3, -1) * left) @ inputs[2]
    expected = out, *torch.autograd.grad(out, inputs, grad.double())
    found = launcher.attend_to_few(query, key, value, 0.3, DROPOUT)
    gradients = launcher.attend_to_few_backward(grad, query, key, value, 0.3, DROPOUT)
    for one, other in zip((found, *gradients), expected, strict=True):
        assert_near(one, other, dtype)


def test_the_same_elements_whatever_the_threads(launcher):
    query, key, value, grad = lists(700, 49, 10, 6, b=3)
    x = torch.randn(300, 65)  # enough for several threads

    def results():
        dropped = rows.drop(x, DROPOUT), launcher.attend_to_few(query, key, value, 0.3, DROPOUT)
        return *dropped, *launcher.attend_to_few_backward(grad, query, key, value, 0.3, DROPOUT)

    assert_no_matter_of_threads(results)


@pytest.mark.parametrize("size", [(1, 1), (5, 16), (9, 40), (400, 65)], ids=str)
def test_rows(size, dtype):
    x, residual, grad = torch.randn(3, *size).to(dtype)
    bias = torch.randn(size[1])
    left = DROPOUT.factors(size[0] + 3, size[1])[3:].double()
    hidden = (x.double() + bias.double()).requires_grad_()
    expected = F.gelu(hidden) * left
    change = torch.autograd.grad(expected, hidden, grad.double())[0]
    assert_near(rows.add_bias_gelu_(x.clone(), bias, DROPOUT, 3), expected, dtype)
    activated, found = x.clone(), grad.clone()
    rows.differentiate_gelu_(found, activated, bias, DROPOUT, 3)
    assert_near(activated, expected, dtype)
    assert_near(found, change, dtype)
    summed = (x.double() + bias.double()) * left + residual.double()
    assert_near(rows.add_bias_residual_(x.clone(), bias, residual, DROPOUT, 3), summed, dtype)
    assert_near(rows.drop(x, DROPOUT, first_row=3), x.double() * left, dtype)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("size", [(1, 3, 5), (33, 31, 130), (300, 64, 256)], ids=str)
def test_a_feed_forward(kernels, size, dtype, residual):
    count, width, hidden = size
    x, weight1 = torch.randn(count, width).to(dtype), torch.randn(hidden, width).div(width**0.5).to(dtype)
    weight2, bias1 = torch.randn(width, hidden).div(hidden**0.5).to(dtype), torch.randn(hidden)
    bias2, out = torch.randn(width), torch.empty(count, width, dtype=dtype)
    layers, margin = (weight1, bias1, weight2, bias2), 64
    storage = torch.full((count * hidden + 2 * margin,), 7.0, dtype=dtype)
    kept = storage[margin:-margin].view(count, hidden)
    products.feed_forward(x, None, layers, out, residual=residual, dropout=DROPOUT, kept=kept)
    assert_near(kept, x.double() @ weight1.double().t() + bias1.double(), dtype)
    assert bool((storage[:margin] == 7.0).all() and (storage[-margin:] == 7.0).all())
    activated = F.gelu(x.double() @ weight1.double().t() + bias1.double()) * DROPOUT.factors(count, hidden)
    expected = (activated @ weight2.double().t() + bias2.double()) * DROPOUT.another().factors(count, width)
    assert_near(out, expected + x.double() if residual else expected, dtype)
    products.feed_forward(x, None, layers, out, residual=residual, dropout=NO_DROPOUT)
    plain = F.gelu(x.double() @ weight1.double().t() + bias1.double()) @ weight2.double().t() + bias2.double()
    assert_near(out, plain + x.double() if residual else plain, dtype)
