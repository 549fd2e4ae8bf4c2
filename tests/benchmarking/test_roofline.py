"""Counted bytes and operations against hand arithmetic."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scalablevit import scalablevit_nano
from scalablevit.benchmarking.cost import count_macs
from scalablevit.benchmarking.operations import KINDS, kind_of
from scalablevit.benchmarking.plots import plot_floors
from scalablevit.benchmarking.profiling import profile_step
from scalablevit.benchmarking.roofline import Operation, count_operations, floors_by_kind, floors_by_name
from scalablevit.benchmarking.workload import Workload


def counted(function, *inputs, mode=torch.no_grad):
    with mode():
        return count_operations(lambda: function(*inputs))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_linear_layer_by_hand(mode):
    [product] = counted(nn.Linear(3, 5), torch.randn(2, 4, 3), mode=mode)
    assert product.kind == "linear"
    assert product.flops == 2 * 8 * 3 * 5
    assert product.read_bytes == 4 * (8 * 3 + 3 * 5 + 5)
    assert product.written_bytes == 4 * 8 * 5


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_convolution_by_hand(mode):
    [convolution] = counted(nn.Conv2d(4, 6, 3, groups=2, bias=False), torch.randn(2, 4, 7, 5), mode=mode)
    assert convolution.kind == "convolution"
    assert convolution.flops == 2 * (2 * 5 * 3 * 6) * (2 * 9)
    assert convolution.read_bytes == 4 * (2 * 4 * 7 * 5 + 6 * 2 * 9)
    assert convolution.written_bytes == 4 * 2 * 6 * 5 * 3


def test_the_backward_pass_of_a_convolution_in_groups_is_twice_its_forward():
    layer = nn.Conv2d(4, 6, 3, groups=2, bias=False)
    images = torch.randn(2, 4, 7, 5, requires_grad=True)
    forward, backward = (one for one in count_operations(lambda: layer(images).sum().backward()) if one.flops)
    assert backward.flops == 2 * forward.flops
    [frozen] = [one for one in count_operations(lambda: layer(images.detach()).sum().backward()) if one.flops][1:]
    assert frozen.flops == forward.flops
    layer = nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False)
    forward, backward = (one for one in count_operations(lambda: layer(images).sum().backward()) if one.flops)
    assert forward.flops == 2 * images.numel() * 3 * 9
    assert backward.flops == 2 * forward.flops


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_attention_by_hand(mode):
    query, key = torch.randn(2, 3, 10, 8), torch.randn(2, 3, 6, 8)
    [attention] = counted(lambda: F.scaled_dot_product_attention(query, key, key), mode=mode)
    assert attention.kind == "attention"
    assert attention.flops == 2 * (2 * 3 * 10 * 6) * (8 + 8)
    assert attention.read_bytes == 4 * (2 * 3 * 10 * 8 + 2 * 2 * 3 * 6 * 8)
    assert attention.written_bytes == 4 * 2 * 3 * 10 * (8 + 1)  # and the logarithm of each sum


def test_bytes_of_what_writes_in_place_overwrites_expands_or_only_looks():
    x, y = torch.randn(10, 4), torch.randn(10, 4)
    moved = {
        "in place": (lambda: x.add_(y), (320, 160)),
        "overwritten": (lambda: x.copy_(y), (160, 160)),
        "filled": (lambda: x.zero_(), (0, 160)),
        "given": (lambda: torch.mm(x.t(), y, out=torch.empty(4, 4)), (320, 64)),
        "expanded": (lambda: x + y[:1].expand(10, 4), (160 + 16, 160)),
        "part": (lambda: x[:, :1].clone(), (40, 40)),
        "flattened with a copy": (lambda: x.t().flatten(), (160, 160)),
        "half": (lambda: x.to(torch.bfloat16), (160, 80)),
    }
    for name, (function, expected) in moved.items():
        [one] = counted(function)
        assert (one.read_bytes, one.written_bytes) == expected, name
    assert counted(lambda: torch.empty(5).view(5, 1).t().unsqueeze(0)[:, :, 3:].detach()) == []


def test_floors_are_the_longer_of_two_times():
    operations = [
        Operation(name="aten.mm.default", read_bytes=30, written_bytes=10, flops=1000),
        Operation(name="aten.mm.default", read_bytes=60, written_bytes=20, flops=100),
        Operation(name="aten.clone.default", read_bytes=10, written_bytes=10, flops=0),
    ]
    linear, copy = floors_by_kind(operations, flops_per_second=100.0, bytes_per_second=10.0)
    assert (linear.name, linear.operations, linear.moved_bytes, linear.flops) == ("linear", 2, 120, 1100)
    assert (linear.flop_seconds, linear.byte_seconds) == (11.0, 12.0)
    assert linear.floor_seconds == 10.0 + 8.0
    assert (copy.name, copy.floor_seconds) == ("copy", 2.0)
    named = floors_by_name(operations, flops_per_second=100.0, bytes_per_second=10.0)
    assert [(one.name, one.floor_seconds) for one in named] == [("aten.mm.default", 18.0), ("aten.clone.default", 2.0)]


def test_a_network_has_the_products_that_its_macs_say():
    workload = Workload(batch=2, channels_last=True)
    model = scalablevit_nano()
    operations = count_operations(workload.step(workload.place(model), workload.images(32, 32)))
    assert sum(one.flops for one in operations) == 2 * 2 * count_macs(model, 32, 32)
    assert {one.kind for one in operations if one.flops} == {"attention", "convolution", "linear"}
    assert "other" not in {one.kind for one in operations}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::_flash_attention_forward", "attention"),
        ("aten._scaled_dot_product_efficient_attention_backward.default", "attention"),
        ("scalablevit::interactive_window_attention", "attention"),
        ("aten::_softmax", "attention"),
        ("aten::_log_softmax", "other"),
        ("aten::cudnn_convolution", "convolution"),
        ("aten::_conv_depthwise2d", "convolution"),
        ("aten.addmm.out", "linear"),
        ("aten::native_layer_norm_backward", "norm"),
        ("aten.gelu_.default", "GELU"),
        ("aten::add_", "elementwise"),
        ("aten._to_copy.default", "copy"),
        ("aten::constant_pad_nd", "copy"),
        ("aten::sum", "sum"),
        ("aten::view", "other"),
        ("autograd::engine::evaluate_function: AddmmBackward0", "other"),
    ],
)
def test_kinds(name, kind):
    assert kind_of(name) == kind
    assert kind in KINDS


def test_a_profile_finds_where_the_time_goes():
    matrix = torch.randn(600, 600)
    profile = profile_step(lambda: (matrix @ matrix).add_(1), device="cpu", synchronise=lambda: None, steps=3)
    times = {row.name: row for row in profile.kinds}
    assert profile.clock == "cpu"
    assert times["linear"].seconds > times["elementwise"].seconds > 0
    assert profile.operations[0].name == "aten::mm"
    assert profile.operations[0].calls == 1
    assert times["linear"].seconds == pytest.approx(profile.operations[0].seconds)
    assert profile.seconds == pytest.approx(sum(row.seconds for row in profile.operations))
    assert profile.kernels == ()
    assert profile.kernel_seconds == 0


def test_floors_are_drawn_beside_what_was_measured(tmp_path):
    operations = counted(nn.Sequential(nn.Linear(3, 5), nn.GELU()), torch.randn(2, 3))
    floors = floors_by_kind(operations, flops_per_second=1e9, bytes_per_second=1e9)
    plot_floors(floors, {"linear": 1e-6, "other": 2e-6}, tmp_path / "out.png", title="two layers", clock="measured")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
