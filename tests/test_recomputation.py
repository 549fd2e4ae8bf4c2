"""Blocks whose norm is computed again in the backward pass, against the same blocks recorded module by module."""

import copy
import functools

import pytest
import torch
import torch.nn.attention
from torch import nn
from torch.utils.checkpoint import checkpoint

from scalablevit.attention import InteractiveWindowedSelfAttention, ScalableSelfAttention
from scalablevit.benchmarking.cost import count_saved_bytes
from scalablevit.design import PAPER, VIT_PYTORCH
from scalablevit.feed_forward import FeedForward
from scalablevit.kernels import use_native
from scalablevit.layers import PreNormResidual
from tests.networks import randomise, small_network

DIM = 6


def ssa(design, reduction_factor, **changes):
    arguments = {"heads": 2, "dim_key": 3, "dim_value": 2, "dropout": 0.0, "attention_dropout": 0.0, **changes}
    return ScalableSelfAttention(DIM, reduction_factor=reduction_factor, design=design, **arguments)


def iwsa(design, window_size, **changes):
    arguments = {"heads": 2, "dim_key": 3, "dim_value": 2, "dropout": 0.0, "attention_dropout": 0.0, **changes}
    return InteractiveWindowedSelfAttention(DIM, window_size=window_size, design=design, **arguments)


BRANCHES = {
    "ff": lambda **changes: FeedForward(DIM, **changes),
    "ssa linear": lambda **changes: ssa(PAPER, 1, **changes),
    "ssa dense": lambda **changes: ssa(VIT_PYTORCH, 2, **changes),
    "ssa depthwise": lambda **changes: ssa(PAPER, 2, **changes),
    "iwsa windows": lambda **changes: iwsa(PAPER, 3, **changes),
    "iwsa whole": lambda **changes: iwsa(VIT_PYTORCH, None, **changes),
}
# PyTorch's fused attention for CPUs has no second derivative and no forward one; plain products have.
plain_products = functools.partial(torch.nn.attention.sdpa_kernel, torch.nn.attention.SDPBackend.MATH)
every_branch = pytest.mark.parametrize("name", BRANCHES)


def block_of(name, dtype=torch.float64):
    torch.manual_seed(0)
    return randomise(PreNormResidual(nn.LayerNorm(DIM, eps=1e-3), BRANCHES[name]())).to(dtype)


def plain(block, x):
    """The block, module by module: hooks on the norm and on the layers have all else stand aside."""
    handles = [module.register_forward_hook(lambda *_: None) for module in block.modules() if module is not block]
    try:
        return block(x)
    finally:
        for handle in handles:
            handle.remove()


def images_of(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1)).requires_grad_()


def gradients(out, inputs):
    return torch.autograd.grad(out.float().sin().sum() if out.dtype != torch.float64 else out.sin().sum(), inputs)


def saved_by(function, *arguments):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        out = function(*arguments)
    return out, saved


@every_branch
@pytest.mark.parametrize("frozen", ["", "norm", "branch", "weight", "bias", "x"])
@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 1)], ids=str)
def test_gradients_are_those_of_plain_autograd(name, frozen, size):
    block, x = block_of(name), images_of(2, *size, DIM)
    x.requires_grad_(frozen != "x")
    for key, parameter in block.named_parameters():
        parameter.requires_grad_(not (frozen and frozen in key))
    inputs = [tensor for tensor in (x, *block.parameters()) if tensor.requires_grad]
    out, expected = block(x), plain(block, x)
    # In float64 a bias is added in the product or after it, and products of other widths may be rounded otherwise, as
    # they are on AMD's processors.
    assert torch.equal(out, expected) or name == "ff" or name.startswith("iwsa")
    torch.testing.assert_close(out, expected, rtol=1e-13, atol=1e-13)
    for one, other in zip(gradients(out, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@every_branch
@pytest.mark.parametrize("frozen", ["", "norm", "branch", "weight", "bias", "x"])
@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 1)], ids=str)
def test_gradients_by_kernels_are_those_of_float64(name, frozen, size):
    block, x = block_of(name, torch.float32), images_of(2, *size, DIM, dtype=torch.float32)
    x.requires_grad_(frozen != "x")
    for key, parameter in block.named_parameters():
        parameter.requires_grad_(not (frozen and frozen in key))
    exact, double = copy.deepcopy(block).double(), x.detach().double().requires_grad_(x.requires_grad)
    inputs, of_exact = (
        [tensor for tensor in (first, *module.parameters()) if tensor.requires_grad]
        for first, module in ((x, block), (double, exact))
    )
    expected = plain(exact, double)
    loss = torch.randn_like(expected)
    found = torch.autograd.grad(block(x), inputs, loss.float())
    for one, other in zip(found, torch.autograd.grad(expected, of_exact, loss), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5 * float(other.abs().max()) + 1e-6)


@every_branch
def test_what_the_norm_gives_is_not_kept(name):
    block, x = block_of(name), images_of(2, 4, 6, DIM)
    normed = block.norm(x).detach()
    cells = normed.view(2, 2, 2, 3, 2, DIM).transpose(2, 3).reshape(2, 6, 4 * DIM)

    def keeps_it(function):
        return any(
            one.numel() == normed.numel() and (torch.equal(one.reshape(-1), other.reshape(-1)))
            for one in saved_by(function, x)[1]
            for other in (normed, cells)
        )

    assert keeps_it(lambda x: plain(block, x))
    assert not keeps_it(block)
    assert any(one.data_ptr() == x.data_ptr() for one in saved_by(block, x)[1])


@every_branch
@plain_products()
def test_second_derivatives(name):
    block, x = block_of(name), images_of(1, 2, 2, DIM)
    assert torch.autograd.gradgradcheck(lambda x: block(x), (x,))
    inputs = [x, *block.parameters()]
    found = []
    for out in (block(x), plain(block, x)):
        first = torch.autograd.grad(out.sin().sum(), inputs, create_graph=True)
        found.append(torch.autograd.grad(sum(one.square().sum() for one in first), inputs, allow_unused=True))
    for one, other in zip(*found, strict=True):
        if one is None or other is None:
            assert one is None or not one.any()
            assert other is None or not other.any()
        else:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_second_derivatives_where_one_block_runs_twice():
    block, x = block_of("ff"), images_of(1, 1, 2, DIM)
    inputs = [x, *block.parameters()]
    found = []
    for out in (block(block(x)), plain(block, plain(block, x))):
        first = torch.autograd.grad(out.sin().sum(), inputs, create_graph=True)
        found.append([*first, *torch.autograd.grad(sum(one.square().sum() for one in first), inputs)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@every_branch
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
def test_autocast_gives_what_it_gives_module_by_module(name, x_dtype):
    block, x = block_of(name, torch.float32), images_of(2, 4, 6, DIM, dtype=x_dtype)
    inputs = [x, *block.parameters()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, saved = saved_by(block, x)
        with torch.no_grad():
            without_gradients = block(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = plain(block, x)
    assert out.dtype == expected.dtype == torch.promote_types(x_dtype, torch.bfloat16)
    exact = copy.deepcopy(block).double()(x.double())
    for found in (out, without_gradients):  # kernels round less often than PyTorch's layers
        assert float((found - exact).detach().norm()) <= 1.2 * float((expected - exact).detach().norm())
    assert not any(torch.equal(one, block.norm(x)) for one in saved if one.shape == x.shape)
    for one, other in zip(gradients(out, inputs), gradients(expected, inputs), strict=True):
        assert one.dtype == other.dtype


@every_branch
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
def test_autocast_is_as_near_to_the_exact_gradients_as_module_by_module(name, x_dtype):
    totals = []  # of several draws, as one may round luckily: errors of ours and of the modules, and sizes
    for seed in range(6):
        block = block_of(name, torch.float32)  # from a seed of its own
        torch.manual_seed(seed)
        x = torch.randn(2, 4, 6, DIM).to(x_dtype).requires_grad_()
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        exact, double = copy.deepcopy(block).double(), x.detach().double().requires_grad_()
        reference = gradients(exact(double), [double, *exact.parameters()])
        found = []
        for run, choice in ((block, "auto"), (lambda x, block=block: plain(block, x), False)):
            with use_native(choice):
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    out = run(x)
                found.append(gradients(out, [x, *block.parameters()]))
        rows = [
            [float((one.double() - right).norm()), float((other.double() - right).norm()), float(right.norm())]
            for one, other, right in zip(*found, reference, strict=True)
        ]
        totals.append(torch.tensor(rows))
    for error, allowed, size in torch.stack(totals).square().sum(0).sqrt():
        assert error <= 1.5 * allowed + 1e-3 * size


@every_branch
def test_hooks_on_any_module_take_part(name):
    block, x = block_of(name), images_of(1, 4, 6, DIM)
    expected = block(x)
    for changed in block.modules():
        seen = []
        handle = changed.register_forward_hook(lambda module, args, out, seen=seen: seen.append((args, out)))
        torch.testing.assert_close(block(x), expected)
        handle.remove()
        if not isinstance(changed, nn.Dropout):  # which the feed-forward leaves out where it drops nothing
            assert len(seen) == 1, changed
        if changed is block.branch:
            torch.testing.assert_close(seen[0][0][0], block.norm(x))


def test_what_stands_in_for_a_part_is_called():
    class Doubling(FeedForward):
        def forward(self, x):
            return 2 * super().forward(x)

    class Adapter(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            out = self.inner(x)
            return [2 * one for one in out] if isinstance(out, (list, tuple)) else 2 * out

    x = images_of(1, 4, 6, DIM)
    block = block_of("ff")
    expected = x + 2 * (block(x) - x)
    block.branch.__class__ = Doubling
    torch.testing.assert_close(block(x), expected)
    for name in BRANCHES:
        block = block_of(name)
        for parent, child in [
            (block, "norm"),
            (block.branch, "to_q"),
            (block.branch, "to_qkv"),
            (block.branch, "keys_values"),
        ]:
            if not hasattr(parent, child):
                continue
            inner = getattr(parent, child)
            setattr(parent, child, Adapter(inner))
            with_adapter, expected = block(x), plain(block, x)
            setattr(parent, child, inner)
            torch.testing.assert_close(with_adapter, expected)
            assert not torch.allclose(with_adapter, block(x))


@every_branch
@pytest.mark.filterwarnings("ignore::FutureWarning")
@plain_products()
def test_transforms_and_dropout_are_left_to_pytorch(name):
    block, x = block_of(name), images_of(3, 4, 6, DIM)
    expected = gradients(block(x), [x])[0]
    found = torch.func.vmap(torch.func.grad(lambda x: block(x[None]).sin().sum()))(x.detach())
    torch.testing.assert_close(found, expected)
    tangent = torch.randn_like(x)
    with torch.autograd.forward_ad.dual_level():
        dual = block(torch.autograd.forward_ad.make_dual(x.detach(), tangent))
        assert torch.autograd.forward_ad.unpack_dual(dual).tangent is not None
    block = PreNormResidual(nn.LayerNorm(DIM), BRANCHES[name](dropout=0.5))
    assert not torch.equal(block(x.float()), block(x.float()))


@every_branch
def test_checkpointed(name):
    block, x = block_of(name), images_of(2, 4, 6, DIM)
    inputs = [x, *block.parameters()]
    expected = gradients(block(x), inputs)
    for one, other in zip(gradients(checkpoint(block, x, use_reentrant=False), inputs), expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("design", "most"), [("vit-pytorch", 730_000), ("paper", 840_000)])
def test_bytes_that_a_network_keeps(design, most):
    torch.manual_seed(0)
    assert count_saved_bytes(small_network(design), torch.randn(2, 3, 64, 64)) <= most
