"""Dense 3x3 convolutions by Winograd's filtering, against PyTorch's in float64."""

import pytest
import torch
import torch.nn.functional as F

from scalablevit.kernels.cpu import convolution

# Sides around those of a tile, of blocks of tiles, of vectors; channels around those of a group.
SIZES = [
    (1, 1, 1, 1, 1),
    (2, 5, 7, 8, 9),
    (1, 2, 3, 33, 64),
    (3, 4, 1, 64, 31),
    (2, 14, 14, 40, 70),
    (1, 27, 18, 16, 80),
    (3, 27, 26, 40, 24),  # 546 tiles, of which the kernel takes 512 at once
]


@pytest.fixture(autouse=True)
def everywhere(launcher, monkeypatch):
    monkeypatch.setattr(convolution, "_FEWEST_TILES", 0)


@pytest.fixture(params=SIZES, ids=str)
def tensors(request):
    """x, weight, bias and the gradient of the result."""
    torch.manual_seed(0)
    b, h, w, c, channels = request.param
    return (
        torch.randn(b, h, w, c),
        torch.randn(channels, c, 3, 3) / (3 * c**0.5),
        torch.randn(channels),
        torch.randn(b, h, w, channels),
    )


def exact(x, weight, bias):
    bias = None if bias is None else bias.double()
    return F.conv2d(x.double().permute(0, 3, 1, 2), weight.double(), bias, padding=1).permute(0, 2, 3, 1)


def check_near(found, expected):
    """In units of what a sum of a few hundred such numbers is rounded by."""
    assert found.shape == expected.shape
    assert found.is_contiguous()
    assert (found - expected).abs().max() <= 8 * 2**-23 * expected.abs().max().clamp_min(1.0)


@pytest.mark.parametrize("with_bias", [True, False])
def test_a_convolution(tensors, with_bias):
    x, weight, bias, _ = tensors
    bias = bias if with_bias else None
    check_near(convolution.convolve(x, weight, bias), exact(x, weight, bias))


def test_gradients(tensors):
    x, weight, bias, grad = tensors
    inputs = [one.double().requires_grad_() for one in (x, weight, bias)]
    expected = torch.autograd.grad(exact(*inputs), inputs, grad.double())
    for found, wanted in zip(convolution.gradients(grad, x, weight, (True, True, True)), expected, strict=True):
        check_near(found, wanted)
    assert convolution.gradients(grad, x, weight, (False, False, False)) == (None, None, None)


def test_a_weight_that_is_laid_out_another_way():
    torch.manual_seed(1)
    x, weight = torch.randn(1, 6, 7, 20), torch.randn(33, 20, 3, 3).contiguous(memory_format=torch.channels_last)
    check_near(convolution.convolve(x, weight, None), exact(x, weight, None))
    grad = torch.randn(1, 6, 7, 33)
    found, _, _ = convolution.gradients(grad, x, weight, (True, False, False))
    assert torch.equal(found, convolution.gradients(grad, x, weight.contiguous(), (True, False, False))[0])


def test_what_is_no_number_stays_where_its_tile_is():
    x, weight = torch.ones(1, 8, 8, 4), torch.ones(4, 4, 3, 3)
    x[0, 1, 1, 2] = torch.nan
    found = convolution.convolve(x, weight, None).isnan().any(-1)[0]
    assert found[:3, :3].all()  # where PyTorch's has none
    assert not found[4:, 4:].any()


def test_few_positions_or_many_channels_are_pytorchs(monkeypatch):
    monkeypatch.undo()
    calls = []
    monkeypatch.setattr(convolution, "_convolve", lambda *_, **__: calls.append(1))
    for height, channels in ((8, 8), (30, 400)):
        x, weight = torch.randn(1, height, 8, channels), torch.randn(channels, channels, 3, 3) / (3 * channels**0.5)
        wide = x.double().requires_grad_()
        (expected,) = torch.autograd.grad(exact(wide, weight, None), wide, x.double())
        found, (grad_x, _, _) = (
            convolution.convolve(x, weight, None),
            convolution.gradients(x, x, weight, (True, False, False)),
        )
        for one, other in ((found, exact(x, weight, None)), (grad_x, expected)):
            torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)
    assert not calls
    convolution.convolve(torch.randn(3, 8, 8, 8), torch.randn(8, 8, 3, 3), None)
    assert calls


def test_threads_give_the_same_bits(tensors):
    x, weight, bias, grad = tensors

    def results():
        return convolution.convolve(x, weight, bias), *convolution.gradients(grad, x, weight, (True, True, True))

    threads, expected = torch.get_num_threads(), results()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert all(torch.equal(*pair) for pair in zip(results()[:3], expected[:3], strict=True))
    finally:
        torch.set_num_threads(threads)
