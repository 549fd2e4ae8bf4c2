"""What the native kernels take, and that all else sees what it saw before."""

import statistics
from pathlib import Path

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from scalablevit.dot_product import attend
from scalablevit.kernels import selection, use_native
from scalablevit.kernels.cpu import attention, compilation
from scalablevit.windows import window_attention
from tests.kernels.list_contract import lists
from tests.networks import randomise, small_network

MAPS = torch.randn(1, 5, 6, 16), torch.randn(1, 5, 6, 8)


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """The names of the kernels of attention that ran, alone or in a whole one."""
    if compilation.library() is None:
        pytest.skip("no compiler")
    names, call = [], attention.call

    def recorded(name, *rest):
        names.append(name.removesuffix("_block"))
        call(name, *rest)

    monkeypatch.setattr(attention, "call", recorded)
    monkeypatch.setattr("scalablevit.kernels.cpu.calls.call", recorded)
    return names


def gradients(model, images, dtype=None):
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        out = model(images)
    return [out.detach(), *torch.autograd.grad(out.float().square().sum(), [images, *model.parameters()])]


@pytest.mark.parametrize(
    ("sizes", "dtype", "takes"),
    [
        ((9, 256, 8, 8), torch.float32, True),
        ((9, 257, 8, 8), torch.float32, True),
        ((9, 257, 8, 8), torch.bfloat16, False),
        ((2, 65537, 8, 8), torch.float32, False),
        ((9, 256, 300, 8), torch.bfloat16, True),
        ((9, 5, 8, 8), torch.float16, False),
        ((9, 5, 8, 8), torch.float64, False),
    ],
)
def test_lists_that_are_taken(sizes, dtype, takes, calls):
    *tensors, _ = lists(*sizes, dtype)
    attend(*tensors, 0.3)
    assert calls == (["attend_to_list"] if takes else [])


@pytest.mark.parametrize(("side", "window", "takes"), [(16, 16, True), (17, 17, False), (16, 100, True)])
def test_windows_that_are_taken(side, window, takes, calls):
    window_attention(torch.randn(1, side, side, 8), torch.randn(1, side, side, 4), 2, window, 0.5)
    assert calls == (["attend_in_windows"] if takes else ["attend_to_list"])


def test_tensors_of_other_kinds_fall_back():
    class Own(torch.Tensor):
        pass

    query_key, value = MAPS
    takes = lambda *maps: selection.windows_kernel(*maps, 2, 3) is not None  # noqa: E731
    assert takes(query_key, value)
    assert takes(query_key, torch.nn.Parameter(value))
    assert not takes(query_key, value.bfloat16())
    assert not takes(query_key, value.to("meta"))
    assert not takes(query_key.to("meta"), value.to("meta"))
    assert not takes(query_key, value.as_subclass(Own))
    assert not takes(query_key[:, :0], value[:, :0])


def test_the_switch(monkeypatch, calls):
    for choice, count in [(True, 1), ("auto", 2), (False, 2)]:
        with use_native(choice):
            window_attention(*MAPS, 2, 3, 0.5)
        assert len(calls) == count
    with pytest.raises(ValueError, match='must be True, False or "auto"'):
        use_native("on")
    monkeypatch.setattr(selection, "_has_library", lambda: False)
    with pytest.raises(RuntimeError, match=r"install g\+\+"):
        use_native(True)
    window_attention(*MAPS, 2, 3, 0.5)
    assert len(calls) == 2


def test_modes_that_count_see_what_pytorch_computes(calls):
    # PyTorch before 2.15 has no formula of its own for the operator that runs on a CPU.
    fused = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *_, **__: 1}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=fused) as counter:
        window_attention(*MAPS, 2, 3, 0.5)
        attend(*lists(9, 5, 8, 8)[:3], 0.3)
    assert counter.get_total_flops() > 0
    assert calls == []


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of forward_ad itself, which uses TorchScript
def test_derivatives_forwards_and_transforms_are_not_lost(calls):
    tangent = torch.randn_like(MAPS[1])

    def derivative(value):
        return torch.func.jvp(lambda x: window_attention(MAPS[0], x, 2, 3, 0.5), (value,), (tangent,))[1]

    expected = window_attention(MAPS[0], tangent, 2, 3, 0.5)  # it is linear in values
    calls.clear()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        torch.testing.assert_close(derivative(MAPS[1]), expected)
        with forward_ad.dual_level():
            out = window_attention(MAPS[0], forward_ad.make_dual(MAPS[1], tangent), 2, 3, 0.5)
            found = forward_ad.unpack_dual(out).tangent
    torch.testing.assert_close(found, expected)
    assert calls == []


@pytest.mark.parametrize("operator", ["window_attention", "interactive_window_attention", "short_attention"])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of the check itself
def test_operators_pass_the_checks_of_torch_library(operator):
    arguments = {
        "window_attention": (*MAPS, 2, 3, 0.5),
        "interactive_window_attention": (*MAPS, torch.randn(8, 1, 3, 3), torch.randn(8), 2, 3, 0.5),
        "short_attention": (*(x.contiguous() for x in lists(9, 5, 8, 6)[:3]), 0.3),
    }[operator]
    arguments = tuple(x.clone().requires_grad_() if isinstance(x, torch.Tensor) else x for x in arguments)
    torch.library.opcheck(getattr(torch.ops.scalablevit, operator).default, arguments)


@pytest.mark.parametrize("design", ["paper", "vit-pytorch"])
def test_a_network_and_its_gradients_agree(design, calls):
    model = randomise(small_network(design)).eval()
    images = torch.randn(2, 3, 64, 96, requires_grad=True)
    found = gradients(model, images)
    assert {"attend_in_windows", "differentiate_in_windows", "attend_to_list", "differentiate_list"} <= set(calls)
    calls.clear()
    with use_native(False):
        expected = gradients(model, images)
    assert calls == []
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert float((one - other).norm()) <= 1e-4 * float(other.norm()) + 1e-4


def test_autocast_is_as_near_to_float32_as_without_kernels(calls):
    ratios = []  # of many draws, as errors differ by a third from one to the next
    for seed in range(32):
        torch.manual_seed(seed)
        model = randomise(small_network()).eval()
        images = torch.randn(2, 3, 64, 96, requires_grad=True)
        found = gradients(model, images, torch.bfloat16)
        with use_native(False):
            exact, usual = gradients(model, images), gradients(model, images, torch.bfloat16)
        assert [x.dtype for x in found] == [x.dtype for x in usual]
        ours, theirs = (
            sum(float((x - y).norm() / y.norm()) for x, y in zip(results, exact, strict=True) if y.norm() > 1e-3)
            for results in (found, usual)
        )
        ratios.append(ours / theirs)
    assert {"attend_in_windows", "differentiate_in_windows", "attend_to_list", "differentiate_list"} <= set(calls)
    assert statistics.geometric_mean(ratios) <= 1.2


def test_checkpointing_gives_the_same_gradients(calls):
    model, images = randomise(small_network()).eval(), torch.randn(1, 3, 64, 64, requires_grad=True)
    expected = gradients(model, images)
    forward = model.forward
    model.forward = lambda x: checkpoint(forward, x, use_reentrant=False)
    assert all(torch.equal(*pair) for pair in zip(gradients(model, images), expected, strict=True))


def test_a_graph_is_made_anew_when_the_choice_changes(calls):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append({str(node.target) for node in graph.graph.nodes})
        return graph

    compiled = torch.compile(lambda *x: attend(*x, 0.3), backend=backend, fullgraph=True)
    tensors = lists(9, 5, 8, 8)[:3]
    compiled(*tensors)
    with use_native(False):
        compiled(*tensors)
    compiled(*tensors)
    torch._dynamo.reset()
    assert ["scalablevit.short_attention" in graph for graph in graphs] == [True, False]
    assert calls == ["attend_to_list"] * 2


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_traced_modules_hold_none_of_it(calls):
    model, images = randomise(small_network()).eval(), torch.randn(1, 3, 64, 64)
    expected = model(images)
    calls.clear()
    with torch.no_grad():
        traced = torch.jit.trace(model, images, check_trace=False)
    assert "scalablevit::" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(images), expected, rtol=1e-4, atol=1e-4)
    assert calls == []


def test_where_gradients_of_feed_forwards_come_in_one_call(monkeypatch):
    monkeypatch.setattr(selection, "_has_tiles", lambda: True)
    monkeypatch.setattr(selection, "_has_wide_vectors", lambda: True)
    monkeypatch.setattr(selection, "_has_undivided_vectors", lambda: False)
    monkeypatch.setattr(selection, "products_kernel", lambda *_: "kernel")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)

    def kernel(rows, hidden, dtype=torch.float32):
        return selection.feed_forward_gradients_kernel(torch.zeros(rows, 64, dtype=dtype), hidden=hidden)

    assert kernel(128, 256) == "kernel"
    assert kernel(128, 256, torch.bfloat16) == "kernel"
    assert kernel(127, 256) is None
    assert kernel(128, 255) is None
    with use_native(True):
        assert kernel(1, 256) == "kernel"
    monkeypatch.setattr(selection, "_has_tiles", lambda: False)
    assert kernel(128, 256) == "kernel"
    assert kernel(128, 256, torch.bfloat16) is None
    with use_native(True):
        assert kernel(128, 256, torch.bfloat16) == "kernel"
    monkeypatch.setattr(selection, "_has_undivided_vectors", lambda: True)
    assert kernel(128, 256, torch.bfloat16) == "kernel"
    monkeypatch.setattr(selection, "_has_undivided_vectors", lambda: False)
    monkeypatch.setattr(selection, "_has_wide_vectors", lambda: False)
    assert kernel(128, 256) == "kernel"
    assert kernel(128, 256, torch.bfloat16) == "kernel"


@pytest.mark.parametrize("wide_vectors", [False, True])
def test_float32_in_backward_passes_is_pytorchs_where_it_is_not_known_to_be_slower(wide_vectors, monkeypatch):
    monkeypatch.setattr(selection, "_has_tiles", lambda: False)
    monkeypatch.setattr(selection, "_has_wide_vectors", lambda: wide_vectors)
    monkeypatch.setattr(selection, "_fewest_rows", lambda dtype: 2**31 - 1)  # as on others than AMD's
    rows = torch.zeros(4096, 64)

    def kernels():
        product = selection.matrices_kernel(rows, torch.zeros(64, 64), in_float32=True)
        return product, selection.feed_forward_gradients_kernel(rows, hidden=64 * torch.get_num_threads())

    assert kernels() == (None, None)
    with use_native(True):
        assert None not in kernels()


@pytest.mark.parametrize(
    ("shape", "dtype", "wide_vectors", "takes"),
    [
        ((256, 3, 300), torch.float32, True, True),
        ((255, 3, 300), torch.float32, True, False),
        ((4095, 3, 300), torch.float32, False, False),
        ((4096, 3, 300), torch.float32, False, True),
        ((48, 1024, 300), torch.float32, False, False),
        ((256, 3, 300), torch.bfloat16, True, False),
        ((2, 3, 300), torch.bfloat16, False, True),
        ((48, 1024, 300), torch.float32, True, True),
        ((48, 1023, 300), torch.float32, True, False),
        ((47, 1024, 300), torch.float32, True, False),
        ((48, 1024, 47), torch.float32, True, False),
        ((48, 1024, 513), torch.float32, True, False),  # not long for so many columns
    ],
)
def test_products_of_backward_passes_on_vectors(shape, dtype, wide_vectors, takes, monkeypatch):
    monkeypatch.setattr(selection, "_has_tiles", lambda: False)
    monkeypatch.setattr(selection, "_has_wide_vectors", lambda: wide_vectors)
    monkeypatch.setattr(selection, "_fewest_rows", lambda dtype: 1)
    sides = torch.zeros(shape[:2], dtype=dtype), torch.zeros(shape[1:], dtype=dtype)
    assert (selection.matrices_kernel(*sides, in_float32=False) is not None) == takes
    with use_native(True):
        assert selection.matrices_kernel(*sides, in_float32=False) is not None


@pytest.mark.parametrize(
    ("recorded", "tiles", "undivided", "fewest", "takes"),
    [
        (True, False, False, 1, True),
        (False, False, False, 1, False),
        (False, True, False, 1, True),
        (False, False, True, 1, True),
        (True, True, True, 256, False),  # products are PyTorch's
    ],
)
def test_where_compiled_graphs_call_layer_by_layer(recorded, tiles, undivided, fewest, takes, monkeypatch):
    monkeypatch.setattr(selection, "_fewest_rows", lambda dtype: fewest)
    monkeypatch.setattr(selection, "_has_tiles", lambda: tiles)
    monkeypatch.setattr(selection, "_has_undivided_vectors", lambda: undivided)
    device = torch.device("cpu")
    assert selection.multiplies_in_graphs(device, torch.float32, recorded=recorded) == takes
    assert not selection.multiplies_in_graphs(device, torch.float64, recorded=recorded)
    with use_native(True):
        assert selection.multiplies_in_graphs(device, torch.float32, recorded=recorded)
    with use_native(False):
        assert not selection.multiplies_in_graphs(device, torch.float32, recorded=recorded)


def test_undivided_vectors_are_those_of_amd_from_family_26_on():
    path = Path("/proc/cpuinfo")
    if not selection._has_library() or not path.exists() or "vendor_id" not in path.read_text():
        pytest.skip("no library, or a processor that Linux describes otherwise")
    lines = (line.partition(":") for line in path.read_text().splitlines() if ":" in line)
    about = {name.strip(): value.strip() for name, _, value in lines}
    expected = about["vendor_id"] == "AuthenticAMD" and int(about["cpu family"]) >= 26 and "avx512f" in about["flags"]
    assert selection._has_undivided_vectors() == expected


@pytest.mark.parametrize(
    ("shape", "takes"),
    [
        ((96, 1023, 300), True),
        ((95, 1023, 300), False),
        ((300, 1023, 95), False),
        ((64, 1024, 300), True),
        ((63, 1024, 300), False),
        ((64, 1024, 513), False),  # not long for so many columns
    ],
)
def test_products_of_float32_on_tiles(shape, takes, monkeypatch):
    monkeypatch.setattr(selection, "_has_tiles", lambda: True)
    monkeypatch.setattr(selection, "_fewest_rows", lambda dtype: 1)
    rows, length, columns = shape
    sides = torch.zeros(rows, length), torch.zeros(length, columns)
    assert (selection.matrices_kernel(*sides, in_float32=False) is not None) == takes
