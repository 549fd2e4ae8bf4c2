import pytest
import torch

from scalablevit.attention import ScalableSelfAttention
from scalablevit.design import PAPER
from scalablevit.dot_product import attend
from scalablevit.kernels import short_attention, use_triton
from scalablevit.kernels.triton_selection import takes_lists
from tests.kernels.list_contract import ListContract, expected_of, lists
from tests.kernels.maps import assert_near


@pytest.fixture
def launcher():
    return short_attention


class TestInterpreted(ListContract):
    pass


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
    calls, launch = [], short_attention.attend_to_few
    monkeypatch.setattr(short_attention, "attend_to_few", lambda *arguments: calls.append(1) or launch(*arguments))
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
        launch = getattr(short_attention, name)
        monkeypatch.setattr(
            short_attention, name, lambda *arguments, launch=launch: calls.append(launch.__name__) or launch(*arguments)
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
