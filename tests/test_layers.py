import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scalablevit.cell_convolutions import CellConv2d, _CellConvolution
from scalablevit.convolutions import MapConv2d
from scalablevit.feed_forward import FeedForward
from scalablevit.initialisation import initialise
from scalablevit.layers import PEG, DropPath, PatchEmbedding
from tests.networks import small_network


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    module, x = DropPath(0.25), torch.ones(4000, 2, 2, 1)
    out = module(x)
    values = {round(float(v), 4) for v in out.unique()}
    assert values == {0.0, round(1 / 0.75, 4)}
    assert all(len(sample.unique()) == 1 for sample in out)
    assert out.mean().item() == pytest.approx(1.0, abs=0.04)  # 4 standard errors
    assert module.eval()(x) is x


@pytest.mark.parametrize("shape", [(1, 15, 2, 64), (2, 29, 1, 64), (1, 57, 2, 64), (1, 2, 29, 64)], ids=str)
@pytest.mark.parametrize("autocast", [True, False])
def test_a_convolution_to_one_position_along_an_axis_is_right_in_bfloat16(shape, autocast):
    torch.manual_seed(0)
    module = MapConv2d(64, 80, 3, 2, 1)
    exact = copy.deepcopy(module).double()
    module = module if autocast else module.bfloat16()
    x = torch.randn(shape).bfloat16().requires_grad_()
    expected = exact(x.double())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = module(x)
        operator = torch.ops.scalablevit.map_convolution
        weight, bias = module.weight.detach().bfloat16(), module.bias.detach().bfloat16()
        compiled = operator(x.detach(), weight, bias, [2, 2], [1, 1], 1)
    grad = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad(expected, (x, exact.weight), grad)
    gradients = torch.autograd.grad(found, (x, module.weight), grad.bfloat16())
    for one, other in zip((found, compiled, *gradients), (expected, expected, *expected_gradients), strict=True):
        assert float((one.double() - other).detach().norm()) <= 0.02 * float(other.detach().norm())


def test_a_map_convolution_is_the_convolution():
    module = MapConv2d(3, 5, 3, stride=2, padding=1)
    x = torch.randn(2, 7, 6, 3)
    expected = F.conv2d(x.permute(0, 3, 1, 2), module.weight, module.bias, 2, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(module(x), expected)


def cell_arguments(cell, size, dtype=torch.float64):
    shapes = (2, *size, 3), (3, 1, cell, cell), (3,)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("cell", [2, 3])
@pytest.mark.parametrize("size", [(6, 6), (7, 5), (3, 8)], ids=str)
def test_the_backward_pass_over_cells_is_that_of_the_convolution(cell, size):
    tensors = cell_arguments(cell, size)
    function = lambda x, w, b: _CellConvolution.apply(x, w, b, cell)  # noqa: E731
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)
    x, weight, bias = tensors
    expected = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, cell, groups=3).permute(0, 2, 3, 1)
    out = function(*tensors)
    torch.testing.assert_close(out, expected)
    probe = torch.randn_like(out).transpose(1, 2).contiguous().transpose(1, 2)  # not laid out as a convolution's
    for one, other in zip(*(torch.autograd.grad(y, tensors, probe) for y in (out, expected)), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("frozen", [(), ("weight",), ("bias",), ("weight", "bias")], ids=str)
def test_cells_in_half_precision_are_near_float64(dtype, frozen):
    torch.manual_seed(0)
    module, exact = CellConv2d(8, 4), CellConv2d(8, 4).double()
    exact.load_state_dict(module.state_dict())
    for name in frozen:
        for one in (module, exact):
            one.get_parameter(name).requires_grad_(False)
    x = torch.randn(2, 9, 13, 8).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        out = module(x)
    assert type(out.grad_fn).__name__ == "_CellConvolutionBackward"
    double = x.detach().double().requires_grad_()
    expected = exact(double)
    assert out.dtype == dtype
    probe = torch.randn_like(out)
    out.backward(probe)
    expected.backward(probe.double())
    pairs = [(out, expected), (x.grad, double.grad)]
    for name, parameter in module.named_parameters():
        if name in frozen:
            assert parameter.grad is None
        else:
            assert parameter.grad.dtype == torch.float32
            pairs.append((parameter.grad, exact.get_parameter(name).grad))
    for one, other in pairs:
        assert ((one.double() - other).norm() / other.norm()).item() < 0.01


def test_cells_leave_to_pytorch_what_is_not_theirs():
    x = torch.randn(1, 8, 8, 4)
    module = CellConv2d(4, 2)
    plain = MapConv2d(4, 4, 2, 2, groups=4)
    plain.load_state_dict(module.state_dict())
    assert torch.equal(module(x), plain(x))
    assert type(module(x).grad_fn).__name__ == type(plain(x).grad_fn).__name__
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(x), plain(x))
    with pytest.raises(RuntimeError):
        module(x.to(torch.bfloat16))
    half = module.to(torch.bfloat16)
    torch.func.vmap(torch.func.grad(lambda x: half(x[None]).float().sum()))(x.to(torch.bfloat16))


@pytest.mark.parametrize(("stride", "size", "expected"), [(4, 224, 56), (4, 1, 1), (2, 7, 4), (1, 5, 5), (3, 10, 4)])
def test_a_patch_embedding_has_one_position_per_started_stride(stride, size, expected):
    module = PatchEmbedding(3, 4, stride=stride, norm=torch.nn.Identity())
    assert module(torch.randn(1, size, size, 3)).shape == (1, expected, expected, 4)
    assert module.conv.kernel_size == (2 * stride - 1, 2 * stride - 1)


def test_peg_and_feed_forward_by_hand():
    peg, ff, x = PEG(4), FeedForward(4, expansion_factor=2), torch.randn(1, 3, 3, 4)
    centre = (x[0] * peg.conv.weight[:, 0].permute(1, 2, 0)).sum((0, 1)) + peg.conv.bias + x[0, 1, 1]
    torch.testing.assert_close(peg(x)[0, 1, 1], centre)
    hidden = x[0, 0, 0] @ ff.fc1.weight.T + ff.fc1.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    torch.testing.assert_close(ff(x)[0, 0, 0], hidden @ ff.fc2.weight.T + ff.fc2.bias)


def test_the_papers_initialisation():
    torch.manual_seed(0)
    model = small_network("paper", dim=(64, 128, 160, 192))
    layer = model.stages[2].layers[0]
    qkv, lim = layer.iwsa.branch.to_qkv, layer.iwsa.branch.lim
    pointwise, patches = layer.ssa.branch.keys_values.scale_channels, model.stages[2].patch_embedding.conv
    assert qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert lim.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.15)  # depthwise: 3 * 3 * 1
    assert pointwise.weight.std().item() == pytest.approx((2 / pointwise.out_features) ** 0.5, rel=0.1)
    assert patches.weight.std().item() == pytest.approx((2 / (9 * 160)) ** 0.5, rel=0.1)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.ndim == 1:
            assert bool((parameter == 1).all()), name


def test_the_seeds_initialisation_is_pytorchs():
    model = small_network("vit-pytorch")
    torch.manual_seed(1)
    initialise(model, "pytorch")
    fc1 = model.stages[3].layers[0].ff1.branch.fc1
    bound = fc1.in_features**-0.5
    assert fc1.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert fc1.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # opcheck's own
def test_what_compiled_graphs_hold_for_a_convolution(groups):
    torch.manual_seed(0)
    conv = MapConv2d(4, 8, 3, stride=2, padding=1, groups=groups)
    x = torch.randn(2, 6, 5, 4, requires_grad=True)
    arguments = conv.weight, conv.bias, [2, 2], [1, 1], groups
    torch.library.opcheck(torch.ops.scalablevit.map_convolution, (x, *arguments))
    inputs = [x, conv.weight, conv.bias]
    out, expected = torch.ops.scalablevit.map_convolution(x, *arguments), conv(x)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(out, expected)
    for one, other in zip(*(torch.autograd.grad(y, inputs, grad) for y in (out, expected)), strict=True):
        torch.testing.assert_close(one, other)


def test_compiled_graphs_take_autocast_and_other_convolutions_into_account():
    seen = []

    def backend(graph, _):
        seen.append({str(node.target) for node in graph.graph.nodes})
        return graph

    x = torch.randn(1, 6, 5, 4)
    for conv, is_operator in ((MapConv2d(4, 4, 3), True), (MapConv2d(4, 4, 3, dilation=2), False)):
        for is_half in (False, True):
            compiled = torch.compile(conv, backend=backend, fullgraph=True)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=is_half):
                torch.testing.assert_close(compiled(x), conv(x), rtol=1e-2, atol=1e-2)
            assert ("scalablevit.map_convolution" in seen[-1]) is is_operator


class TestDenseConvolutions:
    """Those that a native kernel serves, as vit-pytorch's LIM."""

    @pytest.fixture(autouse=True)
    def wherever_they_can_run(self, monkeypatch):
        from scalablevit.kernels import selection, use_native
        from scalablevit.kernels.cpu import convolution

        if not selection._has_library():
            pytest.skip("no compiler")
        monkeypatch.setattr(convolution, "_FEWEST_TILES", 0)
        self.calls = []
        kernel = convolution._convolve
        monkeypatch.setattr(convolution, "_convolve", lambda *arguments: (self.calls.append(1), kernel(*arguments))[1])
        with use_native(True):
            yield

    def of(self, *sizes, **options):
        torch.manual_seed(0)
        module = MapConv2d(6, 5, 3, **{"padding": 1, **options})
        return module, torch.randn(*(sizes or (2, 7, 4)), 6, requires_grad=True)

    def test_results_and_gradients(self):
        for bias in (True, False):
            module, x = self.of(bias=bias)
            exact = copy.deepcopy(module).double()
            inputs, wide = [x, *module.parameters()], [x.detach().double().requires_grad_(), *exact.parameters()]
            out, expected = module(x), exact(wide[0])
            torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
            grad = torch.randn_like(out).transpose(1, 2).contiguous().transpose(1, 2)  # laid out another way
            found = torch.autograd.grad(out, inputs, grad)
            for one, other in zip(found, torch.autograd.grad(expected, wide, grad.double()), strict=True):
                torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)
        assert len(self.calls) == 4  # two results and two gradients of maps

    @pytest.mark.parametrize("frozen", ["weight", "bias", "x"])
    def test_what_is_frozen_has_no_gradient_made(self, frozen, monkeypatch):
        from scalablevit.kernels.cpu import convolution

        wanted, kernel = [], convolution.gradients
        monkeypatch.setattr(
            convolution, "gradients", lambda *arguments: (wanted.append(arguments[3]), kernel(*arguments))[1]
        )
        module, x = self.of()
        tensors = {"x": x, "weight": module.weight, "bias": module.bias}
        tensors[frozen].requires_grad_(False)
        module(x).sum().backward()
        assert wanted == [tuple(name != frozen for name in tensors)]
        assert [name for name, tensor in tensors.items() if tensor.grad is None] == [frozen]

    def test_second_derivatives_and_jacobians(self):
        module, x = self.of(1, 3, 2)
        found = []
        for function in (module, lambda x: F.conv2d(x.permute(0, 3, 1, 2), *module.parameters(), padding=1)):
            (first,) = torch.autograd.grad(function(x).sin().sum(), x, create_graph=True)
            found.append(torch.autograd.grad(first.square().sum(), [x, module.weight]))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        jacobian = torch.autograd.functional.jacobian(lambda x: module(x).sum((0, 1, 2)), x.detach(), vectorize=True)
        assert jacobian.shape == (5, 1, 3, 2, 6)
        per_image = torch.func.vmap(lambda x: module(x[None])[0])(x.detach())
        torch.testing.assert_close(per_image, module(x).detach(), rtol=1e-5, atol=1e-5)

    def test_a_compiled_graph_calls_it_as_well(self):
        module, x = self.of()
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        found = torch.autograd.grad(compiled(x).square().sum(), [x, *module.parameters()])
        assert len(self.calls) == 2
        expected = torch.autograd.grad(module(x).square().sum(), [x, *module.parameters()])
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        "options",
        [
            {"stride": 2},
            {"padding": 0},
            {"dilation": 2, "padding": 2},
            {"padding_mode": "reflect"},
            {"padding": "same"},
        ],
        ids=str,
    )
    def test_others_are_pytorchs(self, options):
        module, x = self.of(**options)
        expected = nn.Conv2d.forward(module, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        torch.testing.assert_close(module(x), expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert self.of()[0](x).dtype == torch.bfloat16
        assert not self.calls

    def test_numbers_that_lie_without_their_sign_are_pytorchs(self):
        module, x = self.of()
        negative = torch._neg_view(x.detach())
        torch.testing.assert_close(module(negative), module(-x.detach()), rtol=1e-5, atol=1e-5)

    def test_wrong_widths_are_pytorchs_to_tell_of(self):
        module, x = self.of()
        with pytest.raises(RuntimeError, match="channels"):
            module(x[..., :5])
        with pytest.raises(RuntimeError, match="type"):
            module(x.double())


def test_a_convolution_whose_bias_alone_is_trained():
    module = MapConv2d(4, 8, 3, stride=2, padding=1)
    module.weight.requires_grad_(False)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    (found,) = torch.autograd.grad(compiled(torch.randn(1, 5, 7, 4)).sum(), [module.bias])
    torch.testing.assert_close(found, torch.full((8,), 12.0))
