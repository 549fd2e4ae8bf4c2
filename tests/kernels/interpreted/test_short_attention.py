import pytest
import torch

from scalablevit.attention import ScalableSelfAttention
from scalablevit.design import PAPER
from scalablevit.dot_product import attend
from scalablevit.kernels import short_attention as launcher
from scalablevit.kernels import use_triton
from scalablevit.kernels.selection import takes_lists
from tests.kernels.interpreted.maps import TOLERANCES, assert_near
from tests.networks import attend_in_loops

# Queries, keys, widths of keys and values: more than a block, one of each, a block to the brim.
CASES = [(70, 49, 40, 32), (1, 1, 3, 2), (64, 64, 16, 17), (5, 9, 8, 8)]


def lists(queries, keys, key_width, value_width, dtype=torch.float32, b=2, heads=2):
    """Queries, keys and values as a projection gives them, with heads inside, and a gradient of the result."""
    torch.manual_seed(0)
    sizes = [(queries, key_width), (keys, key_width), (keys, value_width), (queries, value_width)]
    return [torch.randn(b, n, heads, width).to(dtype).transpose(1, 2) for n, width in sizes]


def expected_of(query, key, value, grad, scale):
    """Result and gradients, by PyTorch's autograd in float64."""
    inputs = [x.double().requires_grad_() for x in (query, key, value)]
    out = torch.softmax(inputs[0] @ inputs[1].mT * scale, -1) @ inputs[2]
    return [out.detach(), *torch.autograd.grad(out, inputs, grad.double())]


@pytest.mark.parametrize("sizes", CASES, ids=str)
def test_attention_is_what_plain_loops_give(sizes):
    query, key, value, _ = lists(*sizes, b=1)
    out = launcher.attend_to_few(query, key, value, 0.4)
    for n in range(2):
        assert_near(out[0, n], attend_in_loops(*(x[0, n].double() for x in (query, key, value)), 0.4), torch.float32)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("sizes", CASES, ids=str)
def test_results_and_gradients_are_those_of_float64(sizes, dtype):
    query, key, value, grad = lists(*sizes, dtype)
    out = launcher.attend_to_few(query, key, value, 0.3)
    found = out, *launcher.attend_to_few_backward(grad, query, key, value, 0.3)
    for one, expected in zip(found, expected_of(query, key, value, grad, 0.3), strict=True):
        assert_near(one, expected, dtype)
        assert one.transpose(1, 2).is_contiguous()


def test_lists_are_read_where_they_lie_and_nothing_beside_them():
    def amid_poison(x):
        b, n, length, width = x.shape
        storage = torch.full((2 * b, n + 1, length + 5, width + 3), float("nan"))
        return storage[::2, 1:, 2 : length + 2, 1 : width + 1].copy_(x)

    tensors = lists(70, 5, 8, 6)
    query, key, value, grad = map(amid_poison, tensors)
    assert torch.equal(launcher.attend_to_few(query, key, value, 0.3), launcher.attend_to_few(*tensors[:3], 0.3))
    found = launcher.attend_to_few_backward(grad, query, key, value, 0.3)
    clean = launcher.attend_to_few_backward(tensors[3], *tensors[:3], 0.3)
    assert all(torch.equal(*pair) for pair in zip(found, clean, strict=True))


def test_a_gradient_of_stride_zero_is_read_rightly():
    query, key, value, grad = lists(9, 5, 8, 6)
    grad = torch.ones(()).expand(grad.shape)
    found = launcher.attend_to_few_backward(grad, query, key, value, 0.3)
    for one, expected in zip(found, expected_of(query, key, value, grad, 0.3)[1:], strict=True):
        assert_near(one, expected, torch.float32)


def test_every_element_of_a_result_is_written_and_none_beside_it(monkeypatch):
    query, key, value, grad = lists(70, 5, 3, 2)
    margin, storages = 256, []

    def empty_amid_poison(shape, dtype, device):
        storages.append(torch.full((torch.Size(shape).numel() + 2 * margin,), float("nan"), dtype=dtype))
        return storages[-1][margin:-margin].view(shape)

    monkeypatch.setattr(torch, "empty", empty_amid_poison)
    launcher.attend_to_few(query, key, value, 0.3)
    launcher.attend_to_few_backward(grad, query, key, value, 0.3)
    assert len(storages) == 4
    for storage in storages:
        assert bool(storage[margin:-margin].isfinite().all())
        assert bool(storage[:margin].isnan().all())
        assert bool(storage[-margin:].isnan().all())


@pytest.mark.parametrize(
    ("sizes", "dtype", "takes"),
    [
        ((9, 64, 64, 32), torch.bfloat16, True),
        ((9, 65, 64, 32), torch.bfloat16, False),
        ((9, 64, 65, 32), torch.float16, False),
        ((9, 9, 8, 65), torch.float16, False),
        ((9, 9, 8, 8), torch.float32, False),
    ],
)
def test_what_is_taken_and_what_falls_back(sizes, dtype, takes, monkeypatch):
    query, key, value, grad = lists(*sizes, dtype)
    assert takes_lists(query, key, value) is takes
    calls, launch = [], launcher.attend_to_few
    monkeypatch.setattr(launcher, "attend_to_few", lambda *arguments: calls.append(1) or launch(*arguments))
    assert_near(attend(query, key, value, 0.3), expected_of(query, key, value, grad, 0.3)[0], dtype)
    assert len(calls) == takes
    attend(query, key, value, 0.3, dropout=0.5)
    attend(query, key, value, 0.3, mask=torch.zeros(1, dtype=dtype).expand(1, 1, 1, sizes[1]))
    assert len(calls) == takes


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of the check itself
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["kernel", "PyTorch"])
def test_the_operator_passes_the_checks_of_torch_library(dtype):
    inputs = [x.contiguous().requires_grad_() for x in lists(9, 5, 8, 6, dtype)[:3]]
    checks = ["test_schema", "test_faketensor", "test_autograd_registration"]
    checks += ["test_aot_dispatch_dynamic"] if dtype == torch.float32 else []
    torch.library.opcheck(torch.ops.scalablevit.short_attention.default, (*inputs, 0.3), test_utils=checks)


def test_ssa_agrees_with_itself_without_kernels(monkeypatch):
    calls = []
    for name in ("attend_to_few", "attend_to_few_backward"):
        launch = getattr(launcher, name)
        monkeypatch.setattr(
            launcher, name, lambda *arguments, launch=launch: calls.append(launch.__name__) or launch(*arguments)
        )
    torch.manual_seed(0)
    widths = {"heads": 2, "dim_key": 5, "dim_value": 4, "reduction_factor": 2}
    module = ScalableSelfAttention(6, **widths, dropout=0.0, attention_dropout=0.0, design=PAPER).bfloat16()
    x = torch.randn(2, 6, 8, 6).bfloat16().requires_grad_()

    def gradients():
        out = module(x)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), [x, *module.parameters()])]

    found = gradients()
    assert calls == ["attend_to_few", "attend_to_few_backward"]
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), found[0])
    assert len(calls) == 3
    with use_triton(False):
        for one, other in zip(found, gradients(), strict=True):
            assert float((one - other).abs().max()) < 0.03 * float(other.abs().max())
    assert len(calls) == 3
