"""Patch embeddings in one call, against float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scalablevit.convolutions import MapConv2d
from scalablevit.kernels import use_native
from scalablevit.kernels.cpu.calls import BlockCall
from scalablevit.kernels.parts import Layer, Norm
from scalablevit.layers import PatchEmbedding
from scalablevit.patches import embed_natively

# Batch, height, width, channels that come in and go out, side of the kernel, stride, padding: stems, stages, few
# positions, kernels larger than the map, single positions, gaps between kernels, ragged channels.
CASES = [
    (2, 33, 28, 3, 40, 7, 4, 3),
    (1, 30, 29, 16, 32, 3, 2, 1),
    (1, 6, 5, 37, 70, 3, 2, 1),
    (3, 2, 1, 5, 16, 7, 4, 3),
    (1, 1, 1, 64, 33, 3, 2, 1),
    (2, 9, 11, 1, 8, 2, 3, 0),
    (1, 8, 7, 130, 48, 3, 1, 2),
]
DTYPES = {torch.float32: 3e-6, torch.bfloat16: 1e-2}
OPERATOR = "scalablevit.embed_patches.default"


@pytest.fixture
def runs(monkeypatch):
    """The names of the kernels that ran."""
    names, into = [], BlockCall.into
    monkeypatch.setattr(BlockCall, "into", lambda call, *rest: names.append(call.name) or into(call, *rest))
    return names


def layers_of(case, dtype, *, with_bias=True, with_norm=True):
    *_, channels, columns, kernel, _, _ = case
    scale = (channels * kernel * kernel) ** -0.5
    weight = (torch.randn(columns, channels, kernel, kernel) * scale).to(dtype)
    bias = torch.randn(columns).to(dtype) if with_bias else None
    norm = Norm(torch.randn(columns).to(dtype), torch.randn(columns).to(dtype), 1e-3) if with_norm else None
    return Layer(weight, bias), norm


def exactly(x, layer, norm, stride, padding):
    weight, bias = (None if one is None else one.double() for one in layer)
    out = F.conv2d(x.double().permute(0, 3, 1, 2), weight, bias, stride, padding).permute(0, 2, 3, 1)
    if norm is None:
        return out
    return F.layer_norm(out, out.shape[-1:], norm.weight.double(), norm.bias.double(), norm.eps)


@pytest.mark.parametrize(("with_bias", "with_norm"), [(True, True), (False, True), (True, False), (False, False)])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_result_is_that_of_float64(launcher, runs, dtype, case, with_bias, with_norm):
    *size, _, _, stride, padding = case
    x = torch.randn(*size).to(dtype)
    layer, norm = layers_of(case, dtype, with_bias=with_bias, with_norm=with_norm)
    with use_native(True):
        found = embed_natively(x, layer, norm, stride=stride, padding=padding)
    expected = exactly(x, layer, norm, stride, padding)
    assert runs == ["embed_patches"]
    assert found.dtype == dtype
    assert found.shape == expected.shape
    assert float((found - expected).norm()) <= DTYPES[dtype] * float(expected.norm())


@pytest.mark.parametrize("case", CASES[:3], ids=str)
def test_autocast_rounds_a_map_and_leaves_weights_in_float32(launcher, runs, case):
    *size, _, _, stride, padding = case
    x, (layer, norm) = torch.randn(*size), layers_of(case, torch.float32)
    with use_native(True), torch.autocast("cpu", torch.bfloat16):
        found = embed_natively(x, layer, norm, stride=stride, padding=padding)
    expected = exactly(x, layer, norm, stride, padding)
    assert runs == ["embed_patches"]
    assert found.dtype == torch.bfloat16
    assert float((found - expected).norm()) <= 1e-2 * float(expected.norm())


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_any_number_of_threads_gives_the_same_bits(launcher, threads):
    x, (layer, norm) = torch.randn(*CASES[0][:4]), layers_of(CASES[0], torch.float32)
    settings = {"stride": 4, "padding": 3}
    before = torch.get_num_threads()
    with use_native(True):
        expected = embed_natively(x, layer, norm, **settings)
        torch.set_num_threads(threads)
        try:
            found = embed_natively(x, layer, norm, **settings)
        finally:
            torch.set_num_threads(before)
    assert torch.equal(found, expected)


def embedding(**options):
    return PatchEmbedding(5, 12, **{"stride": 2, "norm": nn.LayerNorm(12), **options})


def changed(change):
    module = embedding()
    change(module)
    return module


ONLY_LAYERS = {
    "hook": lambda module: module.conv.register_forward_hook(lambda *_: None),
    "norm's hook": lambda module: module.norm.register_forward_pre_hook(lambda *_: None),
    "other norm": lambda module: setattr(module, "norm", nn.Sequential(nn.LayerNorm(12))),
    "dilation": lambda module: setattr(module.conv, "dilation", (2, 2)),
    "border": lambda module: setattr(module.conv, "padding_mode", "reflect"),
    "two strides": lambda module: setattr(module.conv, "stride", (2, 1)),
    "dropout": lambda module: setattr(module.dropout, "p", 0.5),
    "half a weight": lambda module: module.norm.double(),
    "cropped": lambda module: setattr(module.conv, "padding", (-1, -1)),
    "turned memory": lambda module: module.conv.to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("change", ONLY_LAYERS)
def test_what_is_not_as_it_was_made_is_left_to_the_layers(runs, change):
    module, x = changed(ONLY_LAYERS[change]), torch.randn(1, 9, 8, 5)
    with torch.no_grad(), use_native(True):
        assert module._embed_at_once(x) is None
    assert runs == []


@pytest.mark.parametrize("norm", [nn.LayerNorm(12), nn.Identity()], ids=["norm", "none"])
def test_a_module_is_embedded_at_once_where_nothing_is_recorded(runs, norm):
    module, x = embedding(norm=norm), torch.randn(2, 9, 8, 5)
    with use_native(True):
        expected = module(x)  # recorded
        assert "embed_patches" not in runs
        with torch.no_grad():
            found = module(x)
    assert runs.count("embed_patches") == 1
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5)


def test_wrong_channels_and_types_are_the_layers_to_tell_of():
    module = embedding()
    with torch.no_grad(), use_native(True):
        with pytest.raises(RuntimeError, match="channels"):
            module(torch.randn(1, 9, 8, 6))
        with pytest.raises(RuntimeError, match="type"):
            module(torch.randn(1, 9, 8, 5).double())
        assert module(torch.randn(0, 9, 8, 5)).shape == (0, 5, 4, 12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.uint8], ids=str)
def test_what_autocast_does_not_cast_is_not_cast(dtype):
    module, x = embedding(), torch.ones(1, 9, 8, 5, dtype=dtype)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with use_native(False), pytest.raises(RuntimeError) as expected:
            module(x)
        with use_native(True), pytest.raises(RuntimeError) as found:
            module(x)
    assert str(found.value) == str(expected.value)


@pytest.fixture
def operator_arguments():
    """Of the operator of compiled graphs, for one of the cases and a product in a type."""

    def of(case, dtype, **options):
        *size, _, _, stride, padding = case
        layer, norm = layers_of(case, torch.float32, **options)
        of_norm = (None, None, 0.0) if norm is None else norm
        return torch.randn(*size), *layer, *of_norm, stride, padding, dtype

    return of


@pytest.mark.parametrize("options", [{}, {"with_norm": False}, {"with_bias": False}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_operator_is_right_with_and_without_a_kernel(launcher, runs, operator_arguments, dtype, options):
    arguments = operator_arguments(CASES[1], dtype, **options)
    x, weight, bias, *of_norm, stride, padding, _ = arguments
    norm = None if of_norm[0] is None else Norm(*of_norm)
    expected = exactly(x, Layer(weight, bias), norm, stride, padding)
    for choice in (True, False):
        with use_native(choice):
            found = torch.ops.scalablevit.embed_patches(*arguments)
        assert found.dtype == dtype
        assert float((found - expected).norm()) <= DTYPES[dtype] * float(expected.norm())
    assert runs == ["embed_patches"]


def test_the_operator_passes_the_checks_of_torch_library(launcher, operator_arguments):
    with use_native(True):
        for case in CASES[:3]:
            arguments = operator_arguments(case, torch.float32)
            torch.library.opcheck(torch.ops.scalablevit.embed_patches.default, arguments)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_compiled_graph_holds_it_where_nothing_is_recorded(runs, autocast):
    targets = []

    def backend(graph, _):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    module, x = embedding(), torch.randn(1, 9, 8, 5)
    with use_native(True), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        torch._dynamo.reset()
        recorded = torch.compile(module, backend=backend)(x)
        assert OPERATOR not in targets
        with torch.no_grad():
            expected = module(x)
            found = torch.compile(module, backend=backend)(x)
    assert OPERATOR in targets
    assert recorded.requires_grad
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
    assert runs == ["embed_patches"] * 3  # recorded, the convolution alone


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("half", ["weight", "bias", "all"])
def test_mixed_types_are_pytorchs_to_tell_of(half, compiled):
    """In a compiled graph, too, whose operator would otherwise give another type than it says."""
    conv, x = MapConv2d(5, 12, 3, 2, 1), torch.randn(1, 9, 8, 5)
    for name in ("weight", "bias") if half == "all" else (half,):
        getattr(conv, name).data = getattr(conv, name).data.bfloat16()
    torch._dynamo.reset()
    run = torch.compile(conv, backend="eager") if compiled else conv
    with torch.no_grad(), use_native(True), pytest.raises(Exception, match=r"type|dtype"):
        run(x)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_a_map_without_channels_is_pytorchs():
    conv, x = MapConv2d(0, 4, 3, 1, 1), torch.zeros(1, 5, 5, 0)
    with torch.no_grad():
        with use_native(True):
            found = conv(x)
        with use_native(False):
            assert torch.equal(found, conv(x))
