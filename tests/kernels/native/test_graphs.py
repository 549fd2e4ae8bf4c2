"""What compiled graphs hold of linear layers and feed-forwards where gradients are wanted: operators, which agree."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from scalablevit import feed_forward
from scalablevit.feed_forward import FeedForward
from scalablevit.kernels import use_native
from scalablevit.kernels.parts import Norm
from scalablevit.layers import Linear, PreNormResidual
from scalablevit.linear_in_graphs import linear_in_graph, normed_linear_in_graph
from tests.networks import all_designs, randomise, small_network


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def nodes():
    return set()


@pytest.fixture
def compiled(nodes):
    """Compiles, for all sizes unless told otherwise, and notes the operators of the graphs."""

    def note(graph, _):
        nodes.update(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=note, bw_compiler=note, inference_compiler=note)
    return lambda module, dynamic=True: torch.compile(module, backend=backend, fullgraph=True, dynamic=dynamic)


def gradients_of(function, x, parameters):
    out = function(x)
    weights = torch.linspace(-1.0, 2.0, out.numel(), dtype=torch.float64).view(out.shape)
    return [out.detach(), *torch.autograd.grad((out.double() * weights).sum(), [x, *parameters])]


def assert_close(found, expected, error):
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert float((one - other).abs().max()) <= error * max(float(other.abs().max()), 1e-3)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_linear_layer_is_one_operator_for_any_rows(bias, dtype, compiled, nodes, calls):
    torch.manual_seed(0)
    layer = Linear(40, 24, bias=bias)
    exact = copy.deepcopy(layer).double()
    run = compiled(layer)
    for shape in ((2, 3, 5, 40), (1, 9, 7, 40), (3, 1, 1, 40)):
        x = torch.randn(shape, requires_grad=True)
        with use_native(True), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            found = gradients_of(run, x, layer.parameters())
        assert found[0].dtype == dtype
        expected = gradients_of(exact, x.detach().double().requires_grad_(), exact.parameters())
        assert_close(found, expected, 1e-6 if dtype == torch.float32 else 2e-2)
    assert {"scalablevit.linear.default", "scalablevit.linear_backward.default"} <= nodes
    assert not any("mm" in node for node in nodes)
    assert {"linear", "multiply"} <= set(calls)


@pytest.mark.parametrize("trained", ["x", "weight", "bias", "residual"])
def test_only_what_is_asked_for_has_a_gradient(trained, compiled, launcher):
    names = "x", "weight", "bias", "residual"
    tensors = torch.randn(3, 7, 40), torch.randn(24, 40), torch.randn(24), torch.randn(3, 7, 24)
    for name, tensor in zip(names, tensors, strict=True):
        tensor.requires_grad_(name == trained)
    wanted = tensors[names.index(trained)]
    with use_native(True):
        out = compiled(linear_in_graph)(*tensors)
    x, weight, bias, residual = tensors
    expected = F.linear(x, weight, bias) + residual
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    grad = torch.randn(out.shape)
    found, reference = (torch.autograd.grad(one, wanted, grad)[0] for one in (out, expected))
    torch.testing.assert_close(found, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_residual_stream_of_another_type_is_added_by_the_compiler(dtype, compiled, launcher):
    x, weight, residual = torch.randn(2, 5, 40), torch.randn(24, 40), torch.randn(2, 5, 24, dtype=dtype)
    with torch.no_grad(), use_native(True), torch.autocast("cpu", torch.bfloat16):
        out = compiled(linear_in_graph)(x, weight, None, residual)
        expected = residual + F.linear(x, weight)
    assert out.dtype == expected.dtype
    torch.testing.assert_close(out, expected, rtol=2e-2, atol=1e-1)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_in_two_parts_runs_the_norm_before_it(bias, dtype, compiled, nodes, calls):
    norm, layer, widths = randomise(nn.LayerNorm(40)), randomise(Linear(40, 76, bias=bias)), (64, 12)

    def run(x):
        parameters = Norm(norm.weight, norm.bias, norm.eps)
        return normed_linear_in_graph(x, parameters, layer.weight, layer.bias, widths)

    graph = compiled(run)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        for shape in ((2, 3, 5, 40), (1, 9, 7, 40), (0, 2, 2, 40)):
            x = torch.randn(shape, dtype=dtype)
            expected = layer.double()(norm.double()(x.double())).split(widths, dim=-1)
            norm.float(), layer.float()
            with use_native(True):
                found = graph(x)
            with use_native(False):
                steps = torch.ops.scalablevit.normed_linear(
                    x, norm.weight, norm.bias, norm.eps, layer.weight, layer.bias, widths[0]
                )
            for parts in (found, steps):
                for one, other in zip(parts, expected, strict=True):
                    assert one.dtype == dtype
                    torch.testing.assert_close(one.double(), other.double(), **tolerance(dtype))
    assert nodes >= {"scalablevit.normed_linear.default"}
    assert "linear" in calls
    assert run(torch.randn(2, 3, 5, 40)) is None  # it is recorded


def tolerance(dtype):
    return {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 3e-2, "atol": 3e-2}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of the checks themselves
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operators_pass_the_checks_of_torch_library(dtype, launcher, monkeypatch):
    def parameter(*shape):
        return torch.randn(*shape, dtype=dtype, requires_grad=True)

    norm_and_layers = [parameter(*shape) for shape in ((40,), (40,), (160, 40), (160,), (40, 160), (40,))]
    turned = parameter(1, 40, 4, 5).permute(0, 2, 3, 1)
    with use_native(True):
        for x in (parameter(2, 5, 4, 40), turned):
            for residual in (None, parameter(*x.shape[:-1], 24)):
                arguments = x, parameter(24, 40), parameter(24), residual
                torch.library.opcheck(torch.ops.scalablevit.linear.default, arguments)
            frozen = [one.detach() for one in (x, *norm_and_layers)]
            arguments = *frozen[:3], 1e-5, *frozen[3:5], 64
            torch.library.opcheck(torch.ops.scalablevit.normed_linear.default, arguments)
            for residual, kept_from in ((True, 1), (False, 256)):
                monkeypatch.setattr(feed_forward, "_KEPT_FROM", kept_from)
                arguments = x, *norm_and_layers, 1e-5, dtype, residual, True
                torch.library.opcheck(torch.ops.scalablevit.recorded_feed_forward.default, arguments)


@pytest.mark.parametrize("native", [True, False])
def test_gradients_lie_in_memory_as_compilers_take_them_to(native, launcher):
    x = torch.randn(1, 40, 4, 5).permute(0, 2, 3, 1)  # of which rows are a view that does not lie row by row
    shapes = (40,), (40,), (160, 40), (160,), (40, 160), (40,)
    tensors = [x, *(torch.randn(shape) for shape in shapes)]
    arguments = torch.randn(x.shape), torch.empty(20, 0), tensors, 1e-5, torch.float32, True, [True] * len(tensors)
    with use_native(native):
        found = torch.ops.scalablevit.feed_forward_backward(*arguments)
    assert [one.shape for one in found] == [one.shape for one in tensors]
    assert all(one.is_contiguous() for one in found)


@pytest.mark.parametrize("kept_from", [1, 256])
def test_a_feed_forward_that_is_recorded_is_one_operator(kept_from, compiled, nodes, calls, monkeypatch):
    monkeypatch.setattr(feed_forward, "_KEPT_FROM", kept_from)
    torch.manual_seed(0)
    block = randomise(PreNormResidual(nn.LayerNorm(40), FeedForward(40)))
    run, exact = compiled(block), copy.deepcopy(block).double()
    for shape in ((2, 9, 7, 40), (1, 3, 2, 40), (2, 1, 1, 40)):
        x = torch.randn(shape, requires_grad=True)
        calls.clear()
        with use_native(True):
            found = gradients_of(run, x, block.parameters())
        expected = gradients_of(exact, x.detach().double().requires_grad_(), exact.parameters())
        assert_close(found, expected, 2e-6)
        assert {"feed_forward_block", "differentiate_norm"} <= set(calls)
    assert {"scalablevit.recorded_feed_forward.default", "scalablevit.feed_forward_backward.default"} <= nodes
    assert not any("gelu" in node for node in nodes)


def test_a_feed_forward_with_drop_path_drops_what_is_added(compiled, nodes, launcher):
    block = randomise(PreNormResidual(nn.LayerNorm(40), FeedForward(40), 0.5))
    x = torch.randn(8, 3, 2, 40, requires_grad=True)
    found = []
    for native, run in ((True, compiled(block)), (False, block)):
        with use_native(native):
            torch.manual_seed(1)
            found.append(gradients_of(run, x, block.parameters()))
    assert torch.equal((found[0][0] == x).flatten(1).all(1), (found[1][0] == x).flatten(1).all(1))
    assert_close(*found, 1e-5)
    assert "scalablevit.recorded_feed_forward.default" in nodes


@pytest.mark.parametrize("frozen", ["x", "branch.fc1.weight", "branch.fc2.bias", "norm.weight", "branch.fc2.weight"])
def test_a_feed_forward_of_which_a_part_is_frozen(frozen, compiled, launcher):
    block = randomise(PreNormResidual(nn.LayerNorm(40), FeedForward(40)))
    x = torch.randn(2, 9, 7, 40, requires_grad=frozen != "x")
    if frozen != "x":
        block.get_parameter(frozen).requires_grad_(False)
    wanted = [one for one in (x, *block.parameters()) if one.requires_grad]
    grad = torch.randn(x.shape)
    with use_native(True):
        found = torch.autograd.grad(compiled(block)(x), wanted, grad)
    with use_native(False):
        expected = torch.autograd.grad(block(x), wanted, grad)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("trained", ["nothing but what comes", "bias", "branch.fc2.bias"])
def test_what_no_gradient_asks_for_is_not_kept(trained, launcher, monkeypatch):
    monkeypatch.setattr(feed_forward, "_KEPT_FROM", 1)
    saved = []

    def note(graph, _):
        outputs = graph.graph.find_nodes(op="output")[0].args[0]
        saved.append([tuple(node.meta["val"].shape) for node in outputs if node is not None])
        return make_boxed_func(graph.forward)

    layer = PreNormResidual(nn.LayerNorm(40), FeedForward(40)) if "fc2" in trained else Linear(40, 24)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name == trained)
    x = torch.randn(3, 5, 4, 40, requires_grad=trained not in ("bias", "branch.fc2.bias"))
    backend = aot_autograd(fw_compiler=note, bw_compiler=note)
    with use_native(True):
        torch.compile(lambda x: layer(x * 2.0), backend=backend, fullgraph=True)(x).sum().backward()
    largest = max(parameter.numel() for parameter in layer.parameters())
    assert all(math.prod(shape) <= largest for shape in saved[0][1:])  # neither what a layer reads nor a hidden layer


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("design", all_designs())
def test_a_network_trains_by_operators_alone(design, autocast, compiled, nodes):
    model = randomise(small_network(design, depth=(1, 1, 1, 1)))
    images, training = torch.randn(2, 3, 65, 97), dict(model.named_parameters())
    found = []
    for native, run in ((True, compiled(model, dynamic=False)), (False, model)):
        with use_native(native), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = run(images)
        found.append([logits.detach(), *torch.autograd.grad(logits.float().sin().sum(), list(training.values()))])
    for name, one, other in zip(("logits", *training), *found, strict=True):
        error = float((one - other).norm() / (other.norm() + 1e-6))
        assert error <= (0.2 if autocast else 1e-4), name
    assert not [node for node in nodes for kind in ("aten.mm", "aten.addmm", "aten.bmm") if kind in node]


@pytest.mark.parametrize("grad", [True, False])
def test_what_layers_refuse_is_refused(grad, compiled, launcher):
    block, narrow = (PreNormResidual(nn.LayerNorm(40), FeedForward(40)) for _ in range(2))
    narrow.branch.fc2 = Linear(100, 40)
    weight = torch.ones(24, 40)
    cases = [
        (Linear(40, 24), torch.randn(3, 39), "shapes cannot be multiplied|size"),
        (Linear(40, 24), torch.randn(3, 40, dtype=torch.float64), "dtype"),
        (block, torch.randn(1, 3, 2, 39), "normalized_shape|Given"),
        (narrow, torch.randn(1, 3, 2, 40), "shapes cannot be multiplied|size"),
        (lambda x: linear_in_graph(x, weight, None, x[..., :8]), torch.randn(3, 40), "must match|broadcast|expand"),
    ]
    with use_native(True), torch.set_grad_enabled(grad):
        for function, x, message in cases:
            torch._dynamo.reset()
            with pytest.raises(Exception, match=message):
                compiled(function)(x)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_empty_batches_and_layers_without_channels(compiled, launcher):
    with use_native(True):
        for layer, rows in ((Linear(40, 24), 0), (Linear(0, 24), 3), (Linear(5, 0), 3)):
            torch._dynamo.reset()
            x = torch.randn(rows, layer.in_features, requires_grad=True)
            out = compiled(layer)(x)
            assert out.shape == (rows, layer.out_features)
            out.sum().backward()
            assert x.grad.shape == x.shape


def test_without_kernels_the_compiler_sees_the_layer(compiled, nodes, launcher):
    layer, x = Linear(40, 24), torch.randn(3, 40)
    with use_native(False):
        torch.testing.assert_close(compiled(layer)(x), F.linear(x, layer.weight, layer.bias))
    assert not any("scalablevit" in node for node in nodes)
    with use_native(True):
        assert linear_in_graph(x, layer.weight, layer.bias) is not None
        with torch.autograd.forward_ad.dual_level():
            assert linear_in_graph(x, layer.weight, layer.bias) is None
        assert torch.func.vmap(lambda x: x.new_tensor(linear_in_graph(x, layer.weight, None) is None))(x[None]).all()
