import pytest
import torch
import torch.nn.functional as F

from scalablevit.attention import InteractiveWindowedSelfAttention, ScalableSelfAttention
from scalablevit.design import PAPER, VIT_PYTORCH
from tests.networks import attend_in_loops

DIM, HEADS, KEY_WIDTH, VALUE_WIDTH = 6, 2, 3, 2


def ssa(design, reduction_factor):
    torch.manual_seed(0)
    return ScalableSelfAttention(
        DIM,
        heads=HEADS,
        dim_key=KEY_WIDTH,
        dim_value=VALUE_WIDTH,
        reduction_factor=reduction_factor,
        dropout=0.0,
        attention_dropout=0.0,
        design=design,
        dtype=torch.float64,
    )


def iwsa(design, window_size):
    torch.manual_seed(0)
    return InteractiveWindowedSelfAttention(
        DIM,
        heads=HEADS,
        dim_key=KEY_WIDTH,
        dim_value=VALUE_WIDTH,
        window_size=window_size,
        dropout=0.0,
        attention_dropout=0.0,
        design=design,
        dtype=torch.float64,
    )


def cells(x, r):
    """The whole r x r cells of a map (h, w, c); one that does not fit in is dropped, unless there is no other."""
    x = F.pad(x, (0, 0, 0, max(r - x.shape[1], 0), 0, max(r - x.shape[0], 0)))
    return [
        x[top : top + r, left : left + r]
        for top in range(0, x.shape[0] - r + 1, r)
        for left in range(0, x.shape[1] - r + 1, r)
    ]


def keys_values_in_words(module, x, r):
    """One row of keys and values for each cell of one map (h, w, c), from the definition of either form."""
    rows = []
    for cell in cells(x, r):
        if hasattr(module, "reduce"):  # the paper's
            row = torch.stack([(cell[..., c] * module.reduce.weight[c, 0]).sum() for c in range(DIM)])
            row = module.scale_channels.weight @ (row + module.reduce.bias) + module.scale_channels.bias
            row = (row - row.mean()) / (row.var(unbiased=False) + 1e-5).sqrt()
            row = row * module.norm.weight + module.norm.bias
            row = row * 0.5 * (1 + torch.erf(row / 2**0.5))
            rows.append(module.to_kv.weight @ row + module.to_kv.bias)
        else:
            row = module.to_kv.weight @ cell.reshape(-1)
            rows.append(row if module.to_kv.bias is None else row + module.to_kv.bias)
    return torch.stack(rows)


@pytest.mark.parametrize("design", [VIT_PYTORCH, PAPER], ids=lambda design: design.name)
@pytest.mark.parametrize(("size", "r"), [((4, 6), 2), ((5, 3), 2), ((3, 3), 1), ((2, 5), 3), ((1, 1), 4)])
def test_ssa_is_what_the_definition_gives(design, size, r):
    module = ssa(design, r)
    x = torch.randn(2, *size, DIM, dtype=torch.float64)
    out = module(x)
    for b in range(2):
        query = F.linear(x[b].reshape(-1, DIM), module.to_q.weight, module.to_q.bias)
        key, value = keys_values_in_words(module.keys_values, x[b], r).split(
            [HEADS * KEY_WIDTH, HEADS * VALUE_WIDTH], 1
        )
        heads = []
        for n in range(HEADS):
            k, v = slice(n * KEY_WIDTH, (n + 1) * KEY_WIDTH), slice(n * VALUE_WIDTH, (n + 1) * VALUE_WIDTH)
            heads.append(attend_in_loops(query[:, k], key[:, k], value[:, v], KEY_WIDTH**-0.5))
        expected = torch.cat(heads, 1) @ module.to_out.weight.T + module.to_out.bias
        torch.testing.assert_close(out[b].reshape(-1, DIM), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("design", [VIT_PYTORCH, PAPER], ids=lambda design: design.name)
@pytest.mark.parametrize("window_size", [3, None])
def test_lim_is_a_convolution_over_the_whole_value_map(design, window_size):
    module = iwsa(design, window_size)
    x = torch.randn(1, 5, 4, DIM, dtype=torch.float64)
    value = (x @ module.to_qkv.weight.T + (0 if module.to_qkv.bias is None else module.to_qkv.bias))[0, ..., -4:]
    padded = F.pad(value, (0, 0, 1, 1, 1, 1))
    local = torch.zeros_like(value)
    for i in range(5):
        for j in range(4):
            for out in range(4):
                group = slice(out, out + 1) if design.lim == "depthwise" else slice(0, 4)
                patch = padded[i : i + 3, j : j + 3, group].permute(2, 0, 1)
                local[i, j, out] = (patch * module.lim.weight[out]).sum() + module.lim.bias[out]
    without = module.attention(*module.to_qkv(x).split([2 * HEADS * KEY_WIDTH, HEADS * VALUE_WIDTH], dim=-1))
    expected = (without[0] + local) @ module.to_out.weight.T + module.to_out.bias
    torch.testing.assert_close(module(x)[0], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("design", [VIT_PYTORCH, PAPER], ids=lambda design: design.name)
def test_windows_are_local_without_lim_and_leak_with_it(design):
    module = iwsa(design, 2)
    x = torch.randn(1, 6, 6, DIM, dtype=torch.float64, requires_grad=True)

    def reached():
        (gradient,) = torch.autograd.grad(module(x)[0, 2, 2].sum(), x)
        return gradient[0].abs().sum(-1) > 0

    window = torch.zeros(6, 6, dtype=torch.bool)
    window[2:4, 2:4] = True
    around = window.clone()
    around[1:4, 1:4] = True
    assert torch.equal(reached(), around)
    torch.nn.init.zeros_(module.lim.weight)
    assert torch.equal(reached(), window)


def test_a_window_over_the_whole_map_is_the_same_as_none():
    windowed, whole = iwsa(PAPER, 6), iwsa(PAPER, None)
    whole.load_state_dict(windowed.state_dict())
    for size in [(6, 6), (4, 6), (1, 1)]:
        x = torch.randn(2, *size, DIM, dtype=torch.float64)
        torch.testing.assert_close(windowed(x), whole(x), rtol=1e-12, atol=1e-12)
