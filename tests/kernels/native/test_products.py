"""Products of matrices on vectors and tiles, of the processor and emulated in plain loops, against float64."""

import copy
import ctypes
import subprocess

import pytest
import torch
import torch.nn.functional as F

from scalablevit.feed_forward import FeedForward
from scalablevit.kernels import use_native
from scalablevit.kernels.cpu import attention, compilation, products
from scalablevit.kernels.dropout import NO_DROPOUT, Dropout
from scalablevit.layers import PreNormResidual

# Sides around those of a tile (16, 32) and of what is packed at once, which nothing divides.
SHAPES = [
    (1, 1, 1),
    (2, 130, 33),
    (5, 40, 7),
    (16, 32, 32),
    (33, 31, 65),
    (70, 80, 33),
    (49, 96, 160),
    (300, 64, 48),
    (90, 31, 40),
]
TYPES = [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16)]


FLAGS = {
    "processor": (),  # what it has: tiles, or vectors
    "vectors": ("-march=native", "-DSCALABLEVIT_NO_TILES"),
    "four lanes": ("-DSCALABLEVIT_FOUR_LANES",),
    "emulated tiles": ("-DSCALABLEVIT_EMULATED_TILES", "-Wno-psabi"),
}


@pytest.fixture(scope="module", params=FLAGS)
def library(request, tmp_path_factory):
    compiler = compilation.find_compiler()
    if compiler is None:
        pytest.skip("no compiler")
    kernels = compilation.library()
    if kernels is None or (request.param == "vectors" and not kernels.has_tiles()):
        pytest.skip("the processor's own are these")
    if request.param != "processor":
        path = tmp_path_factory.mktemp("library") / "kernels.so"
        flags = [flag if flag != "-O3" else "-O1" for flag in compilation.FLAGS]
        source = str(compilation.SOURCES / "kernels.cpp")
        command = [compiler, *flags, *FLAGS[request.param], source, "-o", str(path)]
        subprocess.run(command, capture_output=True, check=True)
        kernels = ctypes.CDLL(str(path))
    kernels.is_emulated = request.param == "emulated tiles"
    return kernels


@pytest.fixture(autouse=True)
def kernels(library, monkeypatch):
    monkeypatch.setattr(attention, "library", lambda: library)


@pytest.fixture(params=TYPES, ids=lambda types: "-".join(str(one).removeprefix("torch.") for one in types))
def types(request, library):
    torch.manual_seed(0)
    return request.param


@pytest.fixture(params=SHAPES, ids=str)
def shape(request):
    return request.param


@pytest.fixture
def often(library):
    """How much more often vectors round, which add products one by one, where tiles add 32 of them first."""
    return 1 if library.has_tiles() else 2


def error_of(found, expected):
    """The largest, in units of what sums of so many such numbers are rounded by."""
    unit = 2**-8 if found.dtype == torch.bfloat16 else 2**-23
    return float((found.double() - expected).abs().max() / expected.abs().max().clamp_min(1.0) / unit)


def test_a_linear_layer(types, shape, often):
    rows, width, columns = shape
    x, weight = torch.randn(rows, width).to(types[0]), torch.randn(columns, width).div(width**0.5).to(types[1])
    norm_weight, norm_bias, bias = torch.rand(width) + 0.5, torch.randn(width), torch.randn(columns)
    residual = torch.randn(rows, columns).to(types[0])
    read_weight = weight.to(types[0]).double()
    plain = x.double() @ read_weight.t()
    assert error_of(products.linear(x, weight, None)[0], plain) <= 2 * often
    assert error_of(products.linear(x, weight, bias)[0], plain + bias.double()) <= 2 * often
    found = products.linear(x, weight, bias, residual=residual)[0]
    assert error_of(found, plain + bias.double() + residual.double()) <= 2 * often
    normed = F.layer_norm(x.double(), (width,), norm_weight.double(), norm_bias.double(), 1e-5)
    found = products.linear(x, weight, bias, norm=(norm_weight, norm_bias, 1e-5))[0]
    assert error_of(found, normed @ read_weight.t() + bias.double()) <= 4 * often  # what the norm gives is rounded, too


def test_a_linear_layer_in_two_parts(types):
    x, weight, bias = torch.randn(50, 40).to(types[0]), torch.randn(104, 40).to(types[1]), torch.randn(104)
    first, second = products.linear(x, weight, bias, first_columns=64)
    assert torch.equal(torch.cat([first, second], 1), products.linear(x, weight, bias)[0])


# The last is long and has many rows: there sums are finished beside the next products.
@pytest.mark.parametrize("shape", [*SHAPES, (290, 258, 40)], ids=str)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("with_norm", [False, True])
def test_a_feed_forward(types, shape, residual, with_norm, often):
    rows, width, hidden = shape[0], shape[1], 4 * shape[1] + shape[2]
    x, out = torch.randn(rows, width).to(types[0]), torch.full((rows, width), torch.nan).to(types[0])
    weight1 = torch.randn(hidden, width).div(width**0.5).to(types[1])
    weight2 = torch.randn(width, hidden).div(hidden**0.5).to(types[1])
    bias1, bias2, norm = torch.randn(hidden), torch.randn(width), (torch.rand(width) + 0.5, torch.randn(width), 1e-5)
    layers = weight1, bias1, weight2, bias2
    products.feed_forward(x, norm if with_norm else None, layers, out, residual=residual)
    read = x.double()
    if with_norm:
        read = F.layer_norm(read, (width,), norm[0].double(), norm[1].double(), norm[2])
    weight1, weight2 = (weight.to(types[0]).double() for weight in (weight1, weight2))
    expected = F.gelu(read @ weight1.t() + bias1.double()) @ weight2.t() + bias2.double()
    assert error_of(out, expected + x.double() if residual else expected) <= 4 * often


@pytest.mark.parametrize("probability", [0.0, 0.3])
@pytest.mark.parametrize("is_kept", [False, True])
@pytest.mark.parametrize("shape", [(1, 5, 3), (33, 31, 70), (70, 64, 256), (300, 40, 160), (545, 260, 300)], ids=str)
def test_the_gradients_of_a_feed_forward(library, types, shape, is_kept, probability):
    rows, width, hidden = shape
    if library.is_emulated and rows * width * hidden > 1e7 and (is_kept or probability == 0.0):
        pytest.skip("takes long in plain loops: once is enough")
    dropout = Dropout(probability, 0x1234_5678_9ABC)
    # Once more as large, so that memory behind what comes next holds no numbers.
    stale = [torch.full(size, torch.nan).to(types[0]) for size in ((600, width), (600, width))]
    nans = (
        torch.full((hidden, width), torch.nan),
        torch.full((hidden,), torch.nan),
        torch.full((width, hidden), torch.nan),
    )
    products.differentiate_feed_forward(
        *stale, (nans[0].to(types[1]), nans[1], nans[2].to(types[1])), kept=None, dropout=dropout
    )
    grad, read = torch.randn(rows, width).to(types[0]), torch.randn(rows, width).to(types[0])
    weight1, weight2 = torch.randn(hidden, width).div(width**0.5), torch.randn(width, hidden).div(hidden**0.5)
    weight1, weight2, bias1 = weight1.to(types[1]), weight2.to(types[1]), torch.randn(hidden)
    exact = [read, weight1.to(types[0]), bias1, weight2.to(types[0])]
    exact = [one.double().requires_grad_() for one in exact]
    first = F.linear(exact[0], *exact[1:3])
    kept = first.detach().to(types[0]) if is_kept else None
    activated = F.gelu(first if kept is None else first + (kept.double() - first).detach())
    factors = dropout.factors(rows, hidden).double() if probability else 1.0
    expected = torch.autograd.grad(F.linear(activated * factors, exact[3]), exact, grad.double())
    layers = weight1, bias1, weight2
    found = products.differentiate_feed_forward(grad, read, layers, kept=kept, dropout=dropout)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == (types[0] if one is found[0] else torch.float32)
        unit = 2e-6 if types[0] == torch.float32 else 2**-7
        assert float((one - other).norm()) <= unit * float(other.norm())


def test_the_gradients_of_a_feed_forward_of_one_channel():
    """Whose numbers lie side by side either way."""
    block = PreNormResidual(torch.nn.LayerNorm(1), FeedForward(1, expansion_factor=256))
    exact, x = copy.deepcopy(block).double(), torch.randn(2, 8, 8, 1)
    with use_native(True):
        found = torch.autograd.grad(block(x).square().sum(), list(block.parameters()))
    expected = torch.autograd.grad(exact(x.double()).square().sum(), list(exact.parameters()))
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).norm()) <= 1e-5 * max(float(other.norm()), 1.0)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_gradients_of_a_feed_forward_have_their_own_types_and_memory(default):
    grad, read = torch.randn(40, 32), torch.randn(40, 32)
    layers = torch.randn(64, 32), torch.randn(64), torch.randn(32, 64)
    expected = products.differentiate_feed_forward(grad, read, layers, kept=None, dropout=NO_DROPOUT)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        found = products.differentiate_feed_forward(grad, read, layers, kept=None, dropout=NO_DROPOUT)
    finally:
        torch.set_default_dtype(before)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
        assert one.is_contiguous()
        assert one.untyped_storage().nbytes() == one.numel() * 4


def test_what_was_in_memory_before_is_not_multiplied(types):
    """Hidden channels that fill no group, after more of them, in the same memory, that were no numbers."""
    x, out = torch.randn(20, 40).to(types[0]), torch.empty(20, 40, dtype=types[0])
    for hidden, wrong in ((96, True), (70, False)):
        weight1, weight2 = torch.randn(hidden, 40).to(types[1]), torch.randn(40, hidden).to(types[1])
        layers = weight1, torch.full((hidden,), torch.nan if wrong else 0.0), weight2, torch.zeros(40)
        products.feed_forward(x, None, layers, out, residual=False)
        assert out.isnan().all() if wrong else out.isfinite().all()


@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_product(library, shape, dtype, turned, often):
    torch.manual_seed(1)
    rows, length, columns = shape
    left = torch.randn((length, rows) if turned[0] else (rows, length)).to(dtype)
    right = torch.randn((columns, length) if turned[1] else (length, columns)).to(dtype)
    left, right = left.t() if turned[0] else left, right.t() if turned[1] else right
    expected = left.double() @ right.double()
    assert error_of(products.multiply(left, right), expected) <= 3 * often
    total = torch.randn(rows, columns + 3)[:, :columns]  # float32, rows further apart
    expected = expected + total.double()
    assert products.multiply(left, right, total, adds=True) is total
    assert error_of(total, expected) <= 3 * often


@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape",
    [
        (17, 800, 40),  # in two parts
        (17, 8000, 40),  # in sixteen
        (40, 1600, 260),  # of which each is summed piece by piece on tiles,
        (40, 9000, 260),  # and on vectors
        (290, 1000, 33),  # of more rows than are multiplied at once
        (5, 2500, 1300),  # piece by piece, in one part
    ],
    ids=str,
)
def test_long_sums_are_made_in_parts(library, shape, dtype, turned):
    rows, length, columns = shape
    if library.is_emulated and turned[0] != turned[1]:
        pytest.skip("slow, and the same")
    torch.manual_seed(2)
    left = torch.randn((length, rows) if turned[0] else (rows, length)).to(dtype)
    right = torch.randn((columns, length) if turned[1] else (length, columns)).to(dtype)
    left, right = left.t() if turned[0] else left, right.t() if turned[1] else right
    expected = left.double() @ right.double()
    most = max(4.0, 2 * error_of(left.float() @ right.float(), expected))
    total = torch.full((rows, columns + 3), torch.nan)[:, :columns]  # rows further apart
    assert error_of(products.multiply(left, right, total), expected) <= most
    assert error_of(products.multiply(left, right, total, adds=True), 2 * expected) <= most


def test_float32_is_as_right_as_sums_one_by_one_over_its_whole_range():
    torch.manual_seed(3)
    for scale in (2.0**-50, 1.0, 2.0**50):
        # Numbers of very different size beside each other, whose small parts count where the large ones cancel.
        left = torch.randn(64, 256) * torch.exp2(torch.randint(-12, 13, (64, 256)).float()) * scale
        right = torch.randn(256, 64) * torch.exp2(torch.randint(-12, 13, (256, 64)).float())
        expected = left.double() @ right.double()
        most = left.double().abs() @ right.double().abs()  # what roundings are relative to
        ours, theirs = (((found - expected).abs() / most) for found in (products.multiply(left, right), left @ right))
        assert ours.max() <= 2**-20
        assert ours.square().mean().sqrt() <= 1.2 * theirs.square().mean().sqrt()


def test_what_is_no_number_stays_none():
    left, right = torch.ones(6, 40), torch.ones(40, 5)
    left[1, 7] = torch.nan
    left[2, 3] = torch.inf
    # What is none has all sorts of bits, some of which rounding would carry over into the sign.
    for row, bits in ((3, 0x7FFFFFFF), (4, -1), (5, 0x7F800001)):
        left.view(torch.int32)[row, 5] = bits
    for one in (left, left.t().contiguous().t()):
        found = products.multiply(one, right)
        assert found[0].isfinite().all()
        assert found[[1, 3, 4, 5]].isnan().all()
        assert not found[2].isfinite().any()
        assert torch.equal(products.multiply(right.t(), one.t()).isfinite(), found.t().isfinite())


def test_numbers_whose_parts_are_too_small_to_be_any():
    torch.manual_seed(4)
    mixed, right = torch.randn(20, 64), torch.randn(64, 33)
    small = mixed * 1e-36  # the third parts of which are below the smallest number that is no denormal
    mixed[:, ::3] *= 1e-36
    mixed[:, 1::3] *= 1e-40
    for left in (mixed, small):
        for one, other in ((left, right), (left.t().contiguous().t(), right), (right.t(), left.t())):
            found, expected = products.multiply(one, other), one.double() @ other.double()
            most = 2**-20 if left is mixed else 2**-7
            assert (found.double() - expected).abs().max() <= most * expected.abs().max()


def test_nothing_times_something():
    assert products.multiply(torch.randn(3, 0), torch.randn(0, 4)).eq(0).all()
    assert products.multiply(torch.randn(0, 3), torch.randn(3, 4)).shape == (0, 4)
    for rows, columns in ((0, 4), (4, 0), (0, 0)):
        assert products.multiply(torch.randn(rows, 2000), torch.randn(2000, columns)).shape == (rows, columns)
    total = torch.randn(3, 4)
    assert torch.equal(products.multiply(torch.randn(3, 0), torch.randn(0, 4), total.clone(), adds=True), total)
    assert products.linear(torch.randn(0, 40), torch.randn(8, 40), None)[0].shape == (0, 8)


def test_no_columns():
    assert products.linear(torch.randn(8, 64), torch.randn(0, 64), None)[0].shape == (8, 0)


def test_threads_give_the_same_bits():
    x, weight = torch.randn(200, 64), torch.randn(96, 64)
    many = torch.randn(2000, 40)
    rows, grad, layers = torch.randn(1100, 40), torch.randn(1100, 40), (torch.randn(160, 40), torch.randn(160))
    layers = *layers, torch.randn(40, 160)
    kept, out = torch.empty(1100, 160), torch.empty(1100, 40)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            products.feed_forward(rows, None, (*layers, torch.ones(40)), out, residual=True, kept=kept)
            gradients = products.differentiate_feed_forward(grad, rows, layers, kept=kept, dropout=NO_DROPOUT)
            long = products.multiply(many.t(), many, torch.empty(40, 40))
            found.append([products.linear(x, weight, None)[0], out.clone(), kept.clone(), *gradients, long])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(one, same) for one, same in zip(found[0], other, strict=True))
