"""What kernels for short lists do, whoever launches them. A module of tests inherits it and names a `launcher`."""

import pytest
import torch

from tests.kernels.maps import TOLERANCES, assert_near
from tests.networks import attend_in_loops

# Queries, keys, widths of keys and values: more than a block, one of each, a block to the brim.
CASES = [(70, 49, 40, 32), (1, 1, 3, 2), (64, 64, 16, 17), (5, 9, 8, 8)]


def lists(queries, keys, key_width, value_width, dtype=torch.float32, b=2, heads=2):
    """Queries, keys and values as a projection gives them, with heads inside, and a gradient of the result."""
    torch.manual_seed(0)
    sizes = [(queries, key_width), (keys, key_width), (keys, value_width), (queries, value_width)]
    return [torch.randn(b, n, heads, width).to(dtype).transpose(1, 2) for n, width in sizes]


def expected_of(query, key, value, grad, scale):
    """Result and gradients, by PyTorch's autograd in float64."""
    inputs = [x.double().requires_grad_() for x in (query, key, value)]
    out = torch.softmax(inputs[0] @ inputs[1].mT * scale, -1) @ inputs[2]
    return [out.detach(), *torch.autograd.grad(out, inputs, grad.double())]


class ListContract:
    @pytest.fixture(params=CASES, ids=str)
    def sizes(self, request):
        return request.param

    @pytest.fixture(params=TOLERANCES, ids=str)
    def dtype(self, request):
        return request.param

    def test_attention_is_what_plain_loops_give(self, launcher, sizes):
        query, key, value, _ = lists(*sizes, b=1)
        out = launcher.attend_to_few(query, key, value, 0.4)
        for n in range(2):
            assert_near(
                out[0, n], attend_in_loops(*(x[0, n].double() for x in (query, key, value)), 0.4), torch.float32
            )

    def test_results_and_gradients_are_those_of_float64(self, launcher, sizes, dtype):
        query, key, value, grad = lists(*sizes, dtype)
        out = launcher.attend_to_few(query, key, value, 0.3)
        found = out, *launcher.attend_to_few_backward(grad, query, key, value, 0.3)
        for one, expected in zip(found, expected_of(query, key, value, grad, 0.3), strict=True):
            assert_near(one, expected, dtype)
            assert one.transpose(1, 2).is_contiguous()

    def test_lists_are_read_where_they_lie_and_nothing_beside_them(self, launcher):
        def amid_poison(x):
            b, n, length, width = x.shape
            storage = torch.full((2 * b, n + 1, length + 5, width + 3), float("nan"))
            return storage[::2, 1:, 2 : length + 2, 1 : width + 1].copy_(x)

        tensors = lists(70, 5, 8, 6)
        query, key, value, grad = map(amid_poison, tensors)
        assert torch.equal(launcher.attend_to_few(query, key, value, 0.3), launcher.attend_to_few(*tensors[:3], 0.3))
        found = launcher.attend_to_few_backward(grad, query, key, value, 0.3)
        clean = launcher.attend_to_few_backward(tensors[3], *tensors[:3], 0.3)
        assert all(torch.equal(*pair) for pair in zip(found, clean, strict=True))

    def test_a_gradient_of_stride_zero_is_read_rightly(self, launcher):
        query, key, value, grad = lists(9, 5, 8, 6)
        grad = torch.ones(()).expand(grad.shape)
        found = launcher.attend_to_few_backward(grad, query, key, value, 0.3)
        for one, expected in zip(found, expected_of(query, key, value, grad, 0.3)[1:], strict=True):
            assert_near(one, expected, torch.float32)

    def test_every_element_of_a_result_is_written_and_none_beside_it(self, launcher, monkeypatch):
        query, key, value, grad = lists(70, 5, 3, 2)
        margin, storages = 256, []

        def empty_amid_poison(shape, dtype, device):
            storages.append(torch.full((torch.Size(shape).numel() + 2 * margin,), float("nan"), dtype=dtype))
            return storages[-1][margin:-margin].view(shape)

        monkeypatch.setattr(torch, "empty", empty_amid_poison)
        launcher.attend_to_few(query, key, value, 0.3)
        launcher.attend_to_few_backward(grad, query, key, value, 0.3)
        assert len(storages) == 4
        for storage in storages:
            assert bool(storage[margin:-margin].isfinite().all())
            assert bool(storage[:margin].isnan().all())
            assert bool(storage[-margin:].isnan().all())
