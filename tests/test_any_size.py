"""Any height and width from one pixel up, square or not, in both forms."""

import pytest
import torch

from scalablevit.exporting.program import smallest_side
from tests.networks import SIZES, all_designs, randomise, small_network

pytestmark = pytest.mark.parametrize("design", all_designs())


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_batched_equals_one_by_one_with_the_size_of_every_map(design, size):
    model = randomise(small_network(design)).double().eval()
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    logits, maps = model(images), model.forward_intermediates(images, intermediates_only=True)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(logits, alone, rtol=1e-10, atol=1e-12)
    for index, feature in enumerate(maps):
        stride = model.feature_info[index]["reduction"]
        assert feature.shape[2:] == (-(-size[0] // stride), -(-size[1] // stride))
        assert bool(feature.isfinite().all())


@pytest.mark.parametrize("size", SIZES[4:], ids=str)
def test_training_reaches_every_pixel_with_finite_gradients(design, size):
    model = randomise(small_network(design)).double()
    images = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    model(images).square().sum().backward()
    assert images.grad is not None
    assert bool(images.grad.isfinite().all())
    assert bool((images.grad != 0).all())


@pytest.mark.parametrize("window_size", [1, 2, 5, 14, 64, None])
def test_any_window_on_a_ragged_map(design, window_size):
    model = randomise(small_network(design, window_size=window_size)).double().eval()
    images = torch.randn(2, 3, 41, 59, dtype=torch.float64)
    torch.testing.assert_close(model(images)[1:], model(images[1:]), rtol=1e-10, atol=1e-12)


def test_a_window_as_large_as_the_map_or_larger_is_the_whole_map(design):
    images = torch.randn(2, 3, 41, 59, dtype=torch.float64)
    whole = randomise(small_network(design, window_size=None)).double().eval()
    for window_size in (15, 100):
        windowed = small_network(design, window_size=window_size).double().eval()
        windowed.load_state_dict(whole.state_dict())
        torch.testing.assert_close(windowed(images), whole(images), rtol=1e-10, atol=1e-12)


def test_the_smallest_side_of_programs_leaves_two_positions(design):
    model = small_network(design, patch_size=2)
    assert smallest_side(model) == 17
    assert model.forward_features(torch.zeros(1, 3, 17, 17)).shape[2:] == (2, 2)
    assert model.forward_features(torch.zeros(1, 3, 16, 16)).shape[2:] == (1, 1)
