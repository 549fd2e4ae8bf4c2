"""torch.compile in one piece, and within a few graphs over many sizes."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from scalablevit.windows import window_attention
from tests.networks import SIZES, all_designs, randomise, small_network

LARGE, ALL = 6, 9  # how many of SIZES have 64 pixels and more, and how many there are


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("design", "training"),
    [
        pytest.param(design, training, id=f"{kind}-{design}", marks=() if is_quick else pytest.mark.slow)
        for design in all_designs()
        for training, kind in ((False, "inference"), (True, "training"))
        for is_quick in [design == "paper" and not training]
    ],
)
def test_two_graphs_serve_six_sizes_and_five_serve_all(design, training):
    model = randomise(small_network(design, depth=(1, 1, 2 if training else 1, 1))).train(training)
    counter = CompileCounterWithBackend("aot_eager" if training else "eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    graphs = []
    for size in SIZES:
        images = torch.randn(2, 3, *size)
        expected = gradients_and_logits(model, images, training)
        for one, other in zip(gradients_and_logits(compiled, images, training), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-4)
        graphs.append(counter.frame_count)
    assert graphs[LARGE - 1] <= 2
    assert graphs[ALL - 1] <= 5


def gradients_and_logits(model, images, training):
    if not training:
        with torch.no_grad():
            return [model(images)]
    model.zero_grad()
    logits = model(images)
    logits.sum().backward()
    return [logits.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("design", all_designs())
def test_inductor_gives_the_same_outputs_and_gradients(design):
    model = randomise(small_network(design))
    compiled = torch.compile(model, fullgraph=True)
    for size in [(64, 64), (97, 131)]:
        images = torch.randn(2, 3, *size)
        expected = gradients_and_logits(model, images, True)
        for one, other in zip(gradients_and_logits(compiled, images, True), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_compiled_graphs_hold_the_operator():
    seen = []

    def backend(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    attend = torch.compile(window_attention, backend=backend, fullgraph=True)
    maps = torch.randn(1, 5, 6, 16), torch.randn(1, 5, 6, 8)
    torch.testing.assert_close(attend(*maps, 2, 3, 0.5), window_attention(*maps, 2, 3, 0.5))
    assert "scalablevit.window_attention" in seen


def test_dropout_in_compiled_windows_is_dropout():
    attend = torch.compile(window_attention, backend="eager", fullgraph=True)
    maps = torch.randn(1, 5, 6, 16), torch.randn(1, 5, 6, 8)
    assert not torch.equal(attend(*maps, 2, 3, 0.5, 0.5), attend(*maps, 2, 3, 0.5, 0.5))


def test_autocast_and_checkpointing_under_compile():
    model = randomise(small_network("paper"))
    model.set_grad_checkpointing()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        compiled(images).float().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
