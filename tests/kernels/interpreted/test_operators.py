"""The kernels where people meet them: behind the operators, in the network, compiled, under autocast."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from scalablevit.attention import InteractiveWindowedSelfAttention
from scalablevit.design import PAPER, VIT_PYTORCH
from scalablevit.interactive_windows import interactive_window_attention
from scalablevit.kernels import use_native, use_triton
from scalablevit.kernels import window_attention as launcher
from scalablevit.windows import _attend_in_windows, window_attention
from tests.kernels.maps import Case, assert_near, gradients
from tests.networks import randomise, small_network

CASE = Case(height=5, width=3, window_size=4, heads=1)


@pytest.fixture
def launches(monkeypatch):
    """The names of the kernels launched, with LIM or without, in order."""
    names = []

    def recorded(name, lim_at):
        launch = getattr(launcher, name)

        def record(*arguments):
            has_lim = len(arguments) > lim_at and arguments[lim_at] is not None
            names.append(f"{name} with LIM" if has_lim else name)
            return launch(*arguments)

        monkeypatch.setattr(launcher, name, record)

    recorded("attend_in_windows", 5)
    recorded("attend_in_windows_backward", 6)
    return names


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def iwsa(design=PAPER, **overrides):
    arguments = {"heads": 2, "dim_key": 3, "dim_value": 4, "window_size": 4, "dropout": 0.0, "attention_dropout": 0.0}
    torch.manual_seed(0)
    return InteractiveWindowedSelfAttention(6, **{**arguments, **overrides}, design=design)


def gradients_of(module, x):
    """Of the sum of squares: in parameters and input, after the output itself."""
    x = x.detach().requires_grad_()
    out = module(x)
    return [out.detach(), *torch.autograd.grad(out.float().square().sum(), [x, *module.parameters()])]


def test_the_function_runs_the_kernels_forward_and_backward(launches):
    *maps, grad = CASE.maps()
    inputs = [x.requires_grad_() for x in maps]
    out = window_attention(*inputs, *CASE.arguments)
    found = torch.autograd.grad(out, inputs, grad)
    assert launches == ["attend_in_windows", "attend_in_windows_backward"]
    assert_near(out, _attend_in_windows(*(x.double() for x in maps), *CASE.arguments, 0.0), torch.float32)
    for one, expected in zip(found, gradients([*maps, grad], None, CASE.arguments), strict=True):
        assert_near(one, expected, torch.float32)


def test_the_fused_function_gives_all_four_gradients(launches):
    (*maps, grad), lim = CASE.maps(), CASE.lim()
    inputs = [x.requires_grad_() for x in (*maps, *lim)]
    found = torch.autograd.grad(interactive_window_attention(*inputs, *CASE.arguments), inputs, grad)
    assert launches == ["attend_in_windows with LIM", "attend_in_windows_backward with LIM"]
    for one, expected in zip(found, gradients([*maps, grad], lim, CASE.arguments), strict=True):
        assert_near(one, expected, torch.float32)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of the check itself
@pytest.mark.parametrize("takes", [True, False], ids=["kernel", "PyTorch"])
def test_operators_pass_the_checks_of_torch_library(takes):
    (*maps, _), lim = CASE.maps(), CASE.lim()
    inputs = [x.requires_grad_() for x in (*maps, *lim)]
    checks = ["test_schema", "test_faketensor", "test_aot_dispatch_dynamic", "test_autograd_registration"]
    with use_triton(takes):
        for operator, count in [("window_attention", 2), ("interactive_window_attention", 4)]:
            arguments = (*inputs[:count], *CASE.arguments)
            torch.library.opcheck(getattr(torch.ops.scalablevit, operator).default, arguments, test_utils=checks)


def test_iwsa_runs_as_one_kernel_in_the_papers_design_and_agrees(launches):
    x = torch.randn(2, 5, 3, 6)
    for design, name in [(PAPER, "attend_in_windows with LIM"), (VIT_PYTORCH, "attend_in_windows")]:
        module = iwsa(design)
        with use_triton(False):
            expected = gradients_of(module, x)
        assert launches == []
        for one, other in zip(gradients_of(module, x), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
        assert launches[0] == name
        launches.clear()


@pytest.mark.parametrize("reason", ["hook", "dropout", "whole map", "adapter"])
def test_iwsa_falls_back_to_its_parts(reason, launches):
    overrides = {"dropout": {"attention_dropout": 0.5}, "whole map": {"window_size": None}}.get(reason, {})
    module, x, calls = iwsa(**overrides), torch.randn(2, 5, 3, 6), []
    if reason == "hook":
        module.lim.register_forward_hook(lambda *_: calls.append("lim"))
    if reason == "adapter":
        module.lim = torch.nn.Sequential(module.lim)
        module.lim.weight, module.lim.bias = module.lim[0].weight, module.lim[0].bias
    module(x)
    assert launches == (["attend_in_windows"] if reason in ("hook", "adapter") else [])
    assert calls == (["lim"] if reason == "hook" else [])


def test_dropout_is_no_matter_in_evaluation(launches):
    iwsa(attention_dropout=0.5).eval()(torch.randn(2, 5, 3, 6))
    assert launches == ["attend_in_windows with LIM"]


def test_compiled_graphs_hold_operators_which_run_kernels(launches):
    module, seen = iwsa(), []

    def backend(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    compiled = torch.compile(module, backend=backend, fullgraph=True)
    for size in [(5, 3), (6, 7)]:
        x = torch.randn(2, *size, 6)
        torch.testing.assert_close(compiled(x), module(x))
    assert "scalablevit.interactive_window_attention" in seen
    assert launches == ["attend_in_windows with LIM"] * 4
    with use_triton(False), use_native(False):  # a guard on the choice: the graph is made anew
        compiled(torch.randn(2, 5, 3, 6))
    assert "scalablevit.window_attention" in seen
    assert len(launches) == 4


def test_compiled_gradients_agree(launches):
    module, x = iwsa(), torch.randn(2, 5, 3, 6)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for one, other in zip(gradients_of(compiled, x), gradients_of(module, x), strict=True):
        torch.testing.assert_close(one, other)
    assert set(launches) == {"attend_in_windows with LIM", "attend_in_windows_backward with LIM"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_what_it_gives_without_kernels(dtype, launches):
    module, x = iwsa(), torch.randn(2, 5, 3, 6)
    with torch.autocast("cpu", dtype=dtype):
        with use_triton(False):
            expected = gradients_of(module, x)
        found = gradients_of(module, x)
    assert launches == ["attend_in_windows with LIM", "attend_in_windows_backward with LIM"]
    assert found[0].dtype == expected[0].dtype == dtype
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).abs().max()) < 0.03 * float(other.abs().max())


def test_parameters_are_taken_in_the_dtype_of_the_map():
    (*maps, _), lim = CASE.maps(torch.bfloat16), CASE.lim()
    found = interactive_window_attention(*maps, *lim, *CASE.arguments)
    with use_triton(False):
        expected = interactive_window_attention(*maps, *lim, *CASE.arguments)
    assert_near(found, expected.double(), torch.bfloat16)


def test_checkpointing_runs_the_forward_kernel_again(launches):
    module, x = iwsa(), torch.randn(2, 5, 3, 6)
    found = gradients_of(module, x)
    launches.clear()
    module_forward = module.forward
    module.forward = lambda x: checkpoint(module_forward, x, use_reentrant=False)
    for one, other in zip(gradients_of(module, x), found, strict=True):
        assert torch.equal(one, other)
    assert launches == ["attend_in_windows with LIM"] * 2 + ["attend_in_windows_backward with LIM"]


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of vmap over fused attention
def test_transforms_of_torch_func_run_as_ever(launches):
    *maps, _ = CASE.maps(torch.float64)
    *single, _ = CASE.maps()

    def attend(query_key, value):
        return window_attention(query_key, value, *CASE.arguments).square().sum()

    found = torch.func.grad(attend)(*single)
    assert_near(found, torch.func.grad(attend)(*maps), torch.float32)
    torch.func.vmap(torch.func.grad(attend))(*(x[:, None] for x in single))
    assert launches == []


def test_a_whole_network_agrees_in_evaluation(launches):
    model = randomise(small_network("paper")).eval()
    images = torch.randn(1, 3, 64, 48)
    with torch.no_grad():
        found = model(images)
        assert launches == ["attend_in_windows with LIM"] * 5
        with use_triton(False):
            torch.testing.assert_close(found, model(images), rtol=1e-4, atol=1e-4)
