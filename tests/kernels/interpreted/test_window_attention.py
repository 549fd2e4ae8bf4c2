import pytest
import torch

from scalablevit.kernels import window_attention
from scalablevit.kernels.triton_selection import takes_windows
from tests.kernels.maps import Case, assert_near, windows_in_loops
from tests.kernels.window_contract import RAGGED, WindowContract


@pytest.fixture
def launcher():
    return window_attention


class TestInterpreted(WindowContract):
    pass


@pytest.mark.parametrize(
    ("dtype", "window_size", "width", "takes"),
    [
        (torch.float32, 8, 32, True),
        (torch.float32, 9, 32, False),
        (torch.float32, 8, 33, False),
        (torch.bfloat16, 11, 32, True),
        (torch.bfloat16, 11, 33, False),
        (torch.float16, 8, 64, True),
        (torch.float16, 8, 65, False),
        (torch.float16, 12, 32, False),
        (torch.float64, 4, 8, False),
    ],
)
def test_what_is_taken_and_what_falls_back(dtype, window_size, width, takes):
    case = Case(height=13, width=13, window_size=window_size, key_width=width, value_width=width, batch=1)
    *maps, _ = case.maps(dtype)
    assert takes_windows(*maps, case.heads, case.window_size) is takes


def test_a_window_counts_as_large_as_it_is_in_the_map(launcher):
    case = Case(height=4, width=9, window_size=64, batch=1)  # 36 tokens
    *maps, _ = case.maps()
    assert takes_windows(*maps, case.heads, case.window_size)
    assert_near(
        launcher.attend_in_windows(*maps, *case.arguments), windows_in_loops(*maps, *case.arguments), torch.float32
    )


def test_maps_of_two_dtypes_fall_back():
    query_key, value, _ = RAGGED.maps()
    assert takes_windows(query_key, value, RAGGED.heads, RAGGED.window_size)
    assert not takes_windows(query_key, value.bfloat16(), RAGGED.heads, RAGGED.window_size)
