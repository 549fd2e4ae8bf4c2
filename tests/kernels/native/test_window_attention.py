import pytest
import torch

from scalablevit.windows import _attend_in_windows
from tests.kernels.maps import CASES, Case, assert_near, assert_no_matter_of_threads, gradients, lim_in_loops
from tests.kernels.window_contract import WindowContract

# Widths on both sides of vectors of 4, 8 and 16; windows on both sides of blocks of 16 and 64 queries, up to 256.
WIDTHS = [
    Case(height=5, width=4, window_size=3, heads=1, key_width=d, value_width=71 - d, batch=1) for d in range(1, 71, 3)
]
WINDOWS = [
    Case(height=side, width=side + extra, window_size=side, key_width=9, value_width=5, batch=1)
    for side in (1, 2, 3, 4, 5, 6, 8, 9, 12, 15, 16)
    for extra in (0, 1)
]


class TestNative(WindowContract):
    @pytest.fixture(params=[torch.bfloat16], ids=str)
    def half(self, request):
        return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [*WIDTHS, *WINDOWS], ids=str)
def test_all_widths_and_windows(case, dtype, launcher):
    (query_key, value, grad), lim = case.maps(dtype), case.lim(dtype)
    expected = _attend_in_windows(query_key.double(), value.double(), *case.arguments, 0.0) + lim_in_loops(value, *lim)
    assert_near(launcher.attend_in_windows(query_key, value, *case.arguments, lim), expected, dtype)
    found = launcher.attend_in_windows_backward(grad, query_key, value, *case.arguments, lim[0])
    for one, other in zip(found, gradients([query_key, value, grad], lim, case.arguments)[:2], strict=True):
        assert_near(one, other, dtype)


def test_maps_and_parameters_of_any_stride(launcher):
    case = CASES[1]
    maps, lim = case.maps(), case.lim()
    query_key, value, grad = (torch.stack([x, x], -1).flatten(-2)[..., ::2] for x in maps)
    weight, bias = (torch.stack([x, x], -1)[..., 0] for x in lim)
    assert not any(x.is_contiguous() for x in (query_key, value, grad, bias))
    out = launcher.attend_in_windows(query_key, value, *case.arguments, (weight, bias))
    assert torch.equal(out, launcher.attend_in_windows(*maps[:2], *case.arguments, lim))
    found = launcher.attend_in_windows_backward(grad, query_key, value, *case.arguments, weight)
    clean = launcher.attend_in_windows_backward(maps[2], *maps[:2], *case.arguments, lim[0])
    assert all(torch.equal(*pair) for pair in zip(found, clean, strict=True))


@pytest.mark.parametrize("batch", [1, 40])
def test_the_same_bits_whatever_the_threads_and_the_batch(batch, launcher):
    case = Case(height=9, width=8, window_size=7, key_width=10, value_width=6, batch=batch)
    (query_key, value, grad), lim = case.maps(), case.lim()

    def results(part=slice(None)):
        maps = query_key[part], value[part]
        back = launcher.attend_in_windows_backward(grad[part], *maps, *case.arguments, lim[0])
        return launcher.attend_in_windows(*maps, *case.arguments, lim), *back

    assert_no_matter_of_threads(results)
    assert all(torch.equal(one[0], other[-1]) for one, other in zip(results(slice(-1, None)), results(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_where_plain_products_have_it(number, dtype, launcher):
    case = Case(height=4, width=6, window_size=4, heads=1, key_width=9, value_width=5, batch=1)
    for place in ("query", "key", "value"):
        query_key, value, _ = case.maps(dtype)
        if place == "value":
            value[0, 1, 2, 3] = number
        else:
            query_key[0, 1, 2, 3 if place == "query" else 12] = number
        out = launcher.attend_in_windows(query_key, value, *case.arguments)
        expected = _attend_in_windows(query_key.double(), value.double(), *case.arguments, 0.0)
        assert not bool(expected.isfinite().all()) or place == "key"
        assert torch.equal(out.isnan(), expected.isnan()), place
        assert torch.equal(out.isinf(), expected.isinf()), place


def test_a_default_device_is_not_that_of_the_results(launcher):
    case = CASES[0]
    (query_key, value, grad), lim = case.maps(), case.lim()
    with torch.device("meta"):
        out = launcher.attend_in_windows(query_key, value, *case.arguments, lim)
        found = launcher.attend_in_windows_backward(grad, query_key, value, *case.arguments, lim[0])
    assert {x.device.type for x in (out, *found)} == {"cpu"}


def test_what_is_no_number_stays_none_in_bfloat16_whatever_its_bits(launcher):
    case = CASES[0]
    *maps, _ = case.maps(torch.bfloat16)
    weight, bias = case.lim()
    bias.view(torch.int32)[1] = 0x7FFFFFFF  # rounded like a number it would be -0
    out = launcher.attend_in_windows(*maps, *case.arguments, (weight, bias))
    assert bool(out[..., 1].isnan().all())
    assert bool(out[..., 0].isfinite().all())
