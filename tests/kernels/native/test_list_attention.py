import pytest
import torch

from tests.kernels.list_contract import CASES, ListContract, expected_of, lists
from tests.kernels.maps import assert_near, assert_no_matter_of_threads

# Queries and keys, one and around vectors and blocks; then widths.
LENGTHS = [(q, k, 9, 5) for q in (1, 2, 15, 17, 33, 65, 257) for k in (1, 4, 7, 49, 128, 129, 300)]
WIDTHS = [(5, 6, d, 71 - d) for d in range(1, 71)]


class TestNative(ListContract):
    @pytest.fixture(params=[*CASES, *LENGTHS, *WIDTHS], ids=str)
    def sizes(self, request):
        return request.param

    @pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
    def dtype(self, request):
        return request.param

    @pytest.mark.parametrize("sizes", CASES, ids=str)
    def test_attention_is_what_plain_loops_give(self, launcher, sizes):  # they are slow; float64 is near them
        super().test_attention_is_what_plain_loops_give(launcher, sizes)


def test_the_same_bits_whatever_the_threads(launcher):
    query, key, value, grad = lists(700, 49, 10, 6, b=3)

    def results():
        return launcher.attend_to_few(query, key, value, 0.3), *launcher.attend_to_few_backward(
            grad, query, key, value, 0.3
        )

    assert_no_matter_of_threads(results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [0.3, -0.3])
@pytest.mark.parametrize("size", [1e4, 1e12])
def test_scores_far_from_zero_and_an_empty_batch(launcher, dtype, scale, size):
    query, key, value, grad = (x.to(dtype) for x in lists(9, 50, 8, 6))
    out = launcher.attend_to_few(query * size, key, value, scale)
    assert_near(out, expected_of(query * size, key, value, grad, scale)[0], dtype)
    assert launcher.attend_to_few(query[:0], key[:0], value[:0], scale).shape == (0, 2, 9, 6)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_results_in_bfloat16_are_no_numbers_where_plain_products_have_none(number, launcher):
    query, key, value, grad = (x.bfloat16() for x in lists(20, 50, 8, 6))
    query[0, 0, 3, 2] = number
    value[0, 1, 7, 3] = number
    found = launcher.attend_to_few(query, key, value, 0.3)
    assert torch.equal(found.isnan(), expected_of(query, key, value, grad, 0.3)[0].isnan())


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_gradients_are_no_numbers_where_plain_products_have_none(number, launcher):
    query, key, value, grad = lists(20, 5, 8, 6)
    query[0, 0, 3, 2] = number
    found = launcher.attend_to_few_backward(grad, query, key, value, 0.3)
    for one, expected in zip(found, expected_of(query, key, value, grad, 0.3)[1:], strict=True):
        assert torch.equal(one.isnan(), expected.isnan())
