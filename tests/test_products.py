"""Linear layers and products by the native kernels, against PyTorch's; what the kernels give is in tests/kernels."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scalablevit.feed_forward import FeedForward
from scalablevit.kernels import selection, use_native
from scalablevit.layers import Linear
from scalablevit.products import add_product_, linear_by_kernel, product
from scalablevit.residual_stream import add_projected, normed_linear
from tests.networks import randomise, small_network

pytestmark = pytest.mark.skipif(selection._fewest_rows(torch.float32) == 0, reason="no compiler")

TOLERANCES = {torch.float32: 3e-6, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def wherever_they_can_run():
    with use_native(True):
        yield


@pytest.fixture(params=TOLERANCES, ids=str)
def dtype(request):
    if selection._fewest_rows(request.param) == 0:
        pytest.skip("a processor that does not multiply this type")
    torch.manual_seed(0)
    return request.param


def near(found, expected, dtype):
    return bool((found.double() - expected).norm() <= TOLERANCES[dtype] * expected.norm())


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_and_its_gradients(dtype, bias):
    layer = Linear(40, 72, bias=bias).to(dtype)
    exact = nn.Linear(40, 72, bias=bias).double()
    exact.load_state_dict({name: value.double() for name, value in layer.state_dict().items()})
    x, grad = torch.randn(2, 5, 7, 40).to(dtype).requires_grad_(), torch.randn(2, 5, 7, 72).to(dtype)
    assert type(linear_by_kernel(x, layer.weight, layer.bias).grad_fn).__name__ == "ViewBackward0"
    out, expected = layer(x), exact(x.double())
    assert near(out.detach(), expected.detach(), dtype)
    found = torch.autograd.grad(out, [x, *layer.parameters()], grad)
    wanted = torch.autograd.grad(expected, [x, *exact.parameters()], grad.double())
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == dtype
        assert near(one, other, dtype)
    with torch.no_grad():
        assert torch.equal(layer(x), out)


def test_autocast_gives_gradients_in_the_type_of_the_weights():
    layer, x = Linear(40, 72), torch.randn(3, 40, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, half = layer(x), layer(x.bfloat16())
    assert mixed.dtype == half.dtype == torch.bfloat16
    weight, of_x = torch.autograd.grad(half.float().sum(), [layer.weight, x])
    assert weight.dtype == of_x.dtype == torch.float32
    assert near(of_x, layer.weight.double().sum(0).expand(3, -1), torch.bfloat16)


def test_second_derivatives():
    layer, x = Linear(5, 3), torch.randn(4, 5, requires_grad=True)
    found = []
    for function in (layer, lambda x: F.linear(x, layer.weight, layer.bias)):
        (first,) = torch.autograd.grad(function(x).sin().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), [x, layer.weight]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_vectorised_jacobian():
    layer, x = Linear(5, 3), torch.randn(5)
    found = torch.autograd.functional.jacobian(lambda x: layer(x[None])[0], x, vectorize=True)
    torch.testing.assert_close(found, layer.weight.detach())


def test_wrong_widths_are_pytorchs_to_tell_of():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Linear(5, 3)(torch.randn(2, 4))


def test_types_that_do_not_go_together_are_pytorchs_to_tell_of():
    with pytest.raises(RuntimeError, match="dtype"):
        Linear(5, 3)(torch.randn(2, 5, dtype=torch.bfloat16))


def test_products(dtype):
    left, right = torch.randn(70, 33).to(dtype), torch.randn(33, 50).to(dtype)
    assert near(product(left, right), left.double() @ right.double(), dtype)
    total = torch.randn(70, 50)
    expected = total.double() + left.double() @ right.double()
    add_product_(total, left, right)
    assert near(total, expected, dtype)
    with use_native(False):
        assert torch.equal(product(left, right), left @ right)


def test_few_rows_are_pytorchs_unless_native_kernels_are_asked_for(monkeypatch):
    x, layer = torch.randn(10, 4, 48), Linear(48, 32)
    monkeypatch.setattr(selection, "_fewest_rows", lambda dtype: {torch.float32: 41, torch.bfloat16: 40}[dtype])
    assert linear_by_kernel(x, layer.weight, layer.bias) is not None
    with use_native("auto"):
        assert linear_by_kernel(x, layer.weight, layer.bias) is None
        assert linear_by_kernel(x.bfloat16(), layer.weight.bfloat16(), layer.bias.bfloat16()) is not None


def test_types_that_a_processor_does_not_multiply_are_pytorchs(monkeypatch):
    monkeypatch.setattr(selection, "_fewest_rows", lambda dtype: 0)
    layer = Linear(48, 32)
    assert linear_by_kernel(torch.randn(40, 48), layer.weight, layer.bias) is None


def test_norm_and_layer_at_once(dtype):
    norm, layer = nn.LayerNorm(48).to(dtype), Linear(48, 160).to(dtype)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    x = torch.randn(2, 5, 7, 48).to(dtype)
    assert normed_linear(norm, x, layer.weight, layer.bias, [64, 96]) is None  # recorded
    with torch.no_grad():
        found = torch.cat(normed_linear(norm, x, layer.weight, layer.bias, [64, 96]), -1)
        assert normed_linear(norm, x, layer.weight, layer.bias, [63, 97]) is None
    assert near(found, layer.double()(norm.double()(x.double())).detach(), dtype)


def test_layer_and_residual_stream_at_once(dtype):
    layer, dropout = Linear(40, 24).to(dtype), nn.Dropout(0.5).eval()
    residual, values = torch.randn(2, 5, 7, 24).to(dtype), torch.randn(2, 5, 7, 40).to(dtype)
    kept = residual.clone()
    with torch.no_grad():
        found = add_projected(residual, layer, dropout, values)
    assert torch.equal(residual, kept)
    assert near(found, residual.double() + layer.double()(values.double()).detach(), dtype)


class TestWhatPyTorchRefusesOrBroadcasts:
    """Nothing of it may be read as something else."""

    def test_a_bias_of_another_size(self):
        x, weight = torch.randn(4, 5), torch.randn(3, 5)
        assert linear_by_kernel(x, weight, torch.zeros(1)) is None
        assert linear_by_kernel(x, weight, torch.zeros(2)) is None

    @pytest.mark.parametrize("width", [32, 96])
    def test_a_feed_forward_for_other_maps(self, dtype, width):
        with pytest.raises(RuntimeError), torch.no_grad():
            FeedForward(64).to(dtype)(torch.randn(1, 7, 7, width).to(dtype))

    def test_weights_of_two_types_under_autocast(self):
        ff, x = FeedForward(32), torch.randn(1, 2, 3, 32).bfloat16()
        ff.fc2.bfloat16()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            found = ff(x)
            expected = ff._apply_layers(x)
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)

    @pytest.mark.parametrize("kind", ["ssa", "iwsa"])
    def test_an_attention_for_other_maps(self, kind, dtype):
        layer = small_network().to(dtype).eval().stages[0].layers[0]
        block = getattr(layer, kind)
        with pytest.raises(RuntimeError), torch.no_grad():
            block(torch.randn(1, 8, 8, 2 * block.norm.normalized_shape[0]).to(dtype))


@pytest.mark.parametrize("kind", ["ssa", "iwsa", "ff1"])
def test_second_derivatives_and_jacobians_of_blocks(kind):
    block = getattr(randomise(small_network()).eval().stages[0].layers[0], kind)
    x = torch.randn(1, 4, 4, block.norm.normalized_shape[0], requires_grad=True)
    inputs, found = [x, *block.parameters()], []
    for choice in (True, False):
        with use_native(choice), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            (first,) = torch.autograd.grad(block(x).sin().sum(), x, create_graph=True)
            found.append(torch.autograd.grad(first.square().sum(), inputs, allow_unused=True))
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()) + 1e-5)


def test_an_empty_batch(dtype):
    model = small_network().to(dtype).eval()
    with torch.no_grad():
        assert model(torch.randn(0, 3, 64, 64).to(dtype)).shape[0] == 0


def test_the_default_device_is_not_that_of_the_results():
    layer, x = Linear(40, 24), torch.randn(3, 40)
    with torch.device("meta"):
        assert layer(x).device.type == "cpu"


def test_a_frozen_layer_keeps_nothing_of_what_it_reads():
    layer, x = Linear(5, 3).requires_grad_(False), torch.randn(2, 5, requires_grad=True)
    read = x * 1
    out = layer(read)
    read.add_(1)
    out.sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(2, -1))


# Numbers of rows just below what memory is taken in, whose last block is not full.
AT_THE_EDGE = """
import torch
from scalablevit.kernels import selection
from scalablevit.kernels.cpu import products
torch.set_num_threads(1)
for _ in range(3):
    left, right = torch.randn(1, 32768).t(), torch.randn(1, 32)
    assert torch.allclose(products.multiply(left, right), left @ right)
    if selection._fewest_rows(torch.bfloat16):
        products.multiply(torch.randn(3, 16384).bfloat16().t(), torch.randn(3, 8).bfloat16())
"""


def test_nothing_is_written_beyond_what_was_taken():
    done = subprocess.run([sys.executable, "-c", AT_THE_EDGE], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
