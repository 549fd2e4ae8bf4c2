"""What window attention kernels do, whoever launches them. A module of tests inherits it and names a `launcher`."""

import pytest
import torch

from scalablevit.windows import _attend_in_windows
from tests.kernels.maps import CASES, Case, amid_poison, assert_near, gradients, lim_in_loops, windows_in_loops

RAGGED = Case(height=7, width=5, window_size=4, batch=1)


class WindowContract:
    @pytest.fixture(params=CASES, ids=str)
    def case(self, request):
        return request.param

    @pytest.fixture(params=[torch.bfloat16, torch.float16], ids=str)
    def half(self, request):
        return request.param

    def test_attention_is_what_plain_loops_give(self, launcher, case):
        *maps, _ = case.maps()
        out = launcher.attend_in_windows(*maps, *case.arguments)
        assert_near(out, windows_in_loops(*maps, *case.arguments), torch.float32)

    def test_attention_and_lim_are_what_plain_loops_give(self, launcher, case):
        (*maps, _), lim = case.maps(), case.lim()
        out = launcher.attend_in_windows(*maps, *case.arguments, lim)
        expected = windows_in_loops(*maps, *case.arguments) + lim_in_loops(maps[1], *lim)
        assert_near(out, expected, torch.float32)

    @pytest.mark.parametrize("with_lim", [False, True], ids=["attention", "with LIM"])
    def test_gradients_are_those_of_autograd_in_float64(self, launcher, case, with_lim):
        query_key, value, grad = maps = case.maps()
        lim = case.lim() if with_lim else None
        found = launcher.attend_in_windows_backward(grad, query_key, value, *case.arguments, lim and lim[0])
        for one, expected in zip(found, gradients(maps, lim, case.arguments)[:2], strict=True):
            assert_near(one, expected, torch.float32)

    def test_half_precision_is_rounded_and_no_more(self, launcher, half):
        case = Case(height=9, width=8, window_size=7, key_width=40, value_width=32, batch=1)
        (query_key, value, grad), lim = case.maps(half), case.lim(half)
        out = launcher.attend_in_windows(query_key, value, *case.arguments, lim)
        maps = [x.double() for x in (query_key, value)]
        attention = _attend_in_windows(*maps, *case.arguments, 0.0)
        assert_near(out, attention + lim_in_loops(maps[1], *lim), half)
        found = launcher.attend_in_windows_backward(grad, query_key, value, *case.arguments, lim[0])
        for one, expected in zip(found, gradients([*maps, grad], lim, case.arguments)[:2], strict=True):
            assert_near(one, expected, half)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_maps_are_read_where_they_lie_and_nothing_beside_them(self, launcher, dtype):
        """Any NaN that is read shows: those around the maps, and of other windows where only attention looks."""
        case = Case(height=5, width=3, window_size=4, key_width=8)
        maps, lim = case.maps(dtype), case.lim(dtype)
        query_key, value, grad = poisoned = [amid_poison(x) for x in maps]
        assert not any(x.is_contiguous() for x in poisoned)
        for parameters in (None, lim):
            weight = parameters and parameters[0]
            out = launcher.attend_in_windows(query_key, value, *case.arguments, parameters)
            assert torch.equal(out, launcher.attend_in_windows(*maps[:2], *case.arguments, parameters))
            found = launcher.attend_in_windows_backward(grad, query_key, value, *case.arguments, weight)
            clean = launcher.attend_in_windows_backward(maps[2], *maps[:2], *case.arguments, weight)
            assert all(torch.equal(*pair) for pair in zip(found, clean, strict=True))

    @pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")  # the interpreter's maximum
    def test_a_window_reads_no_other(self, launcher):
        *maps, grad = RAGGED.maps()
        expected = launcher.attend_in_windows(*maps, *RAGGED.arguments)
        expected_gradients = launcher.attend_in_windows_backward(grad, *maps, *RAGGED.arguments)
        for x in (*maps, grad):
            x[0, :4, :4] = float("nan")
        out = launcher.attend_in_windows(*maps, *RAGGED.arguments)
        found = launcher.attend_in_windows_backward(grad, *maps, *RAGGED.arguments)
        for one, other in zip((out, *found), (expected, *expected_gradients), strict=True):
            assert bool(one[0, :4, :4].isnan().all())
            one[0, :4, :4] = other[0, :4, :4]
            assert torch.equal(one, other)

    def test_every_element_of_a_result_is_written_and_none_beside_it(self, launcher, case, monkeypatch):
        query_key, value, grad = case.maps()
        margin, storages = 256, []

        def empty_amid_poison(shape, dtype, device):
            storages.append(torch.full((shape.numel() + 2 * margin,), float("nan"), dtype=dtype, device=device))
            return storages[-1][margin:-margin].view(shape)

        monkeypatch.setattr(torch, "empty", empty_amid_poison)
        lim = case.lim()
        launcher.attend_in_windows(query_key, value, *case.arguments, lim)
        launcher.attend_in_windows_backward(grad, query_key, value, *case.arguments, lim[0])
        assert len(storages) == 3
        for storage in storages:
            assert bool(storage[margin:-margin].isfinite().all())
            assert bool(storage[:margin].isnan().all())
            assert bool(storage[-margin:].isnan().all())

    def test_a_gradient_of_stride_zero_is_read_rightly(self, launcher):
        query_key, value, _ = RAGGED.maps()
        grad = torch.ones(()).expand(value.shape)
        found = launcher.attend_in_windows_backward(grad, query_key, value, *RAGGED.arguments)
        for one, expected in zip(found, gradients([query_key, value, grad], None, RAGGED.arguments), strict=True):
            assert_near(one, expected, torch.float32)

    def test_scores_far_from_zero_neither_overflow_nor_vanish(self, launcher):
        query_key, value, grad = maps = RAGGED.maps()
        query_key *= 1e3
        out = launcher.attend_in_windows(query_key, value, *RAGGED.arguments)
        assert_near(out, windows_in_loops(query_key, value, *RAGGED.arguments), torch.float32)
        found = launcher.attend_in_windows_backward(grad, query_key, value, *RAGGED.arguments)
        assert all(bool(x.isfinite().all()) for x in found)
        assert_near(found[1], gradients(maps, None, RAGGED.arguments)[1], torch.float32)

    def test_an_empty_batch_gives_an_empty_map(self, launcher):
        case = Case(height=7, width=5, window_size=4, batch=0)
        query_key, value, grad = case.maps()
        assert launcher.attend_in_windows(query_key, value, *case.arguments).shape == value.shape
        assert launcher.attend_in_windows_backward(grad, query_key, value, *case.arguments)[0].shape == query_key.shape
