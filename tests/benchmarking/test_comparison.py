import json
import re
import statistics

import pytest
import torch
from torch import nn

from scalablevit.benchmarking import timing
from scalablevit.benchmarking.comparison import benchmark, parse_size
from scalablevit.benchmarking.contenders import PRESETS, parse_contender
from scalablevit.benchmarking.plots import plot_benchmark
from scalablevit.benchmarking.timing import interleaved_seconds, matrix_rate
from scalablevit.benchmarking.workload import Workload
from scalablevit.cli import main
from scalablevit.kernels.cpu.compilation import library
from scalablevit.kernels.cpu.kept_weights import kept_weight

FACTORY = '''
import time
import torch
from torch import nn

class Sleeper(nn.Module):
    """Sleeps for each image, and multiplies a little."""
    seconds = 0.01
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 5)
    def forward(self, images):
        time.sleep(self.seconds * len(images))
        return self.linear(images.mean((2, 3)))

class Slower(Sleeper):
    seconds = 0.03

class Hungry(Sleeper):
    def forward(self, images):
        return self.linear(torch.zeros(25_000_000).add(1)[:3] + images.mean((2, 3)))

class Broken(Sleeper):
    def forward(self, images):
        raise RuntimeError("no more\\nlines than one")
'''


@pytest.fixture
def factories(tmp_path):
    file = tmp_path / "models.py"
    file.write_text(FACTORY)
    return f"path:{file}"


def test_figures_are_those_of_what_was_run(factories):
    fast, slow = f"{factories}:Sleeper", f"{factories}:Slower"
    result = benchmark([fast, slow], sizes=[(8, 8), (4, 6)], batch=2, rounds=3, memory=False)
    assert [(m.contender, m.height, m.width) for m in result.measurements] == [
        (fast, 8, 8), (slow, 8, 8), (fast, 4, 6), (slow, 4, 6)
    ]  # fmt: skip
    for first, second in (result.measurements[:2], result.measurements[2:]):
        assert first.ratio == 1.0
        assert second.ratio == pytest.approx(1 / 3, rel=0.3)
        assert first.images_per_second == pytest.approx(2 / statistics.median(first.seconds))
        assert first.images_per_second == pytest.approx(100, rel=0.3)
        assert len(first.seconds) == 3
        assert first.parameters == 20
        assert first.macs == 15
        assert first.matrix_share == pytest.approx(
            2 * 15 * 2 / statistics.median(first.seconds) / result.matrix_flops, rel=1e-6
        )


def test_training_runs_backward_and_counts_it(factories):
    result = benchmark([f"{factories}:Sleeper"], mode="train", sizes=[(4, 4)], batch=1, rounds=2, memory=False)
    [measurement] = result.measurements
    median = statistics.median(measurement.seconds)
    assert measurement.matrix_share == pytest.approx(3 * 2 * 15 / median / result.matrix_flops, rel=1e-6)
    model = nn.Linear(3, 2)
    seen = []
    model.weight.register_hook(seen.append)
    Workload(mode="train", batch=4).step(model, torch.randn(4, 3))()
    assert len(seen) == 1
    assert all(parameter.grad is None for parameter in model.parameters())


def test_memory_is_what_a_step_takes(factories):
    [measurement] = benchmark([f"{factories}:Hungry"], sizes=[(4, 4)], batch=1, rounds=1).measurements
    assert 200e6 <= measurement.peak_memory_bytes < 230e6  # two tensors of 100 MB


def test_a_contender_that_fails_says_why_and_the_others_go_on(factories):
    names = [f"{factories}:Broken", f"{factories}:Sleeper"]
    broken, fine = benchmark(names, sizes=[(4, 4)], batch=1, rounds=1, memory=False).measurements
    assert broken.error == "RuntimeError: no more"
    assert broken.images_per_second is None
    assert fine.ratio == 1.0


def test_contenders_run_in_turn():
    order = []
    steps = {name: (lambda name=name: (order.append(name), torch.randn(300, 300).inverse())) for name in "AB"}
    seconds = interleaved_seconds(steps, rounds=3, synchronise=lambda: None)
    turns = [name for index, name in enumerate(order) if index == 0 or order[index - 1] != name]
    assert turns == ["A", "B"] * 4  # once to find how often a step fits a turn
    assert all(len(found) == 3 and min(found) > 0 for found in seconds.values())


def test_the_matrix_rate_is_a_rate():
    rate = matrix_rate(torch.device("cpu"), torch.float32, lambda: None, attempts=1)
    assert 1e9 < rate < 1e14


@pytest.mark.parametrize(("longest_s", "size"), [(1e-9, 512), (1e9, 3072)])
def test_the_matrix_rate_of_what_would_take_minutes_is_that_of_small_matrices(longest_s, size, monkeypatch):
    monkeypatch.setattr(timing, "LONGEST_PRODUCT_S", longest_s)
    monkeypatch.setattr(timing, "_seconds", lambda step, repeats, synchronise: 1.0)
    assert matrix_rate(torch.device("cpu"), torch.float32, lambda: None) == 2 * size**3


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "bf16-true", "fp16-true"])
def test_precisions(precision):
    seen = []

    class Probe(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 2))

        def forward(self, images):
            product = images.mean((2, 3)) @ self.weight
            seen.append(product.dtype)
            is_stored_so = precision.endswith("-true")
            assert (self.weight.dtype == images.dtype == product.dtype) or not is_stored_so
            assert self.weight.dtype == torch.float32 or is_stored_so
            return product

    workload = Workload(precision=precision, channels_last=True)
    workload.step(workload.place(Probe()), workload.images(4, 4))()
    assert seen == [workload.dtype]
    assert workload.images(4, 4).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("wanted", [True, False])
def test_our_networks_are_prepacked_where_that_is_wanted(wanted):
    if library() is None:
        pytest.skip("no compiler")
    model = Workload(prepack=wanted).place(nn.Sequential(nn.Linear(3, 5)))
    assert (kept_weight(model[0].weight) is not None) == wanted


def test_both_packages_build_the_same_network_from_a_preset():
    for preset in PRESETS:
        ours, theirs = (parse_contender(f"{kind}:{preset}").build(64, 64) for kind in ("scalablevit", "vit-pytorch"))
        assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_models_of_timm_are_built_for_the_size():
    model = parse_contender("timm:swin_tiny_patch4_window7_224").build(64, 96)
    assert model.patch_embed.img_size == (64, 96)
    assert parse_contender("timm:scalablevit_nano").build(32, 32).num_classes == 1000
    assert parse_contender("timm:swin_small_patch4_window7_224").top1 == 83.2
    assert parse_contender("scalablevit_small").top1 == parse_contender("timm:scalablevit_small").top1 == 83.1
    assert parse_contender("scalablevit_nano").top1 is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scalablevit_smal", r"'scalablevit_smal' is not there \(did you mean scalablevit_small\?\)"),
        ("tim:resnet18", r"of no known kind \(did you mean timm\?\); it must be a network of ours, vit-pytorch:PRESET"),
        ("timm:resnet81", r"timm has no model 'resnet81' \(did you mean resnet18\?\)"),
        ("vit-pytorch:redme", r"preset 'redme' is not there \(did you mean readme\?\)"),
        ("path:nowhere.py:Model", "nowhere.py does not exist"),
        ("path:Model", r"Model does not exist.*: give path:FILE\.py:FACTORY"),
    ],
)
def test_contenders_that_are_not_there_are_named(name, message):
    with pytest.raises(ValueError, match=message):
        parse_contender(name)


def test_factories_that_are_not_there_are_named(factories):
    with pytest.raises(ValueError, match=r"has no function or class 'Sleper' \(did you mean Sleeper\?\)"):
        parse_contender(f"{factories}:Sleper")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "inference"}, r"mode is 'inference' \(did you mean infer\?\); it must be one of infer, train"),
        ({"precision": "f32"}, r"precision is 'f32'.*one of fp32, bf16, fp16"),
        ({"mode": "train", "prepack": True}, 'prepack is True with mode "train"'),
        ({"batch": 0}, "batch is 0"),
        ({"device": "cuda:99"}, "device is 'cuda:99', which this machine does not have"),
        ({"device": "gpu"}, "device is 'gpu', which this machine does not have"),
        ({"rounds": 0}, "rounds is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"sizes": [(0, 4)]}, "sizes is 0"),
        ({"sizes": []}, "nothing to measure"),
    ],
)
def test_values_without_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        benchmark(["scalablevit_nano"], **options)


def test_sizes_as_they_are_written():
    assert parse_size("224") == (224, 224)
    assert parse_size("800x1344") == (800, 1344)
    for wrong in ("", "x", "2x3x4", "-3", "a", "0", "3x"):
        with pytest.raises(ValueError, match="size is"):
            parse_size(wrong)


def test_the_command_writes_a_table_a_file_and_a_picture(factories, tmp_path, capsys):
    names = [f"{factories}:Sleeper", "scalablevit_nano", f"{factories}:Broken"]
    out, picture = tmp_path / "out.json", tmp_path / "out.png"
    options = ["--size", "16", "16x24", "--batch", "1", "--rounds", "2", "--json", str(out), "--plot", str(picture)]
    threads = torch.get_num_threads()
    assert main(["benchmark", *names, *options, "--threads", "1"]) == 1  # one of them failed
    printed = capsys.readouterr().out
    assert torch.get_num_threads() == threads
    assert re.search("scalablevit_nano +16x24", printed)
    assert "Broken at 16x16: RuntimeError: no more" in printed
    written = json.loads(out.read_text())
    assert len(written["measurements"]) == 6
    assert written["machine"]["torch"] == torch.__version__.partition("+")[0]
    assert written["workload"]["batch"] == 1
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_a_folder_that_is_not_there_is_told_before_anything_is_measured(option, capsys):
    assert main(["benchmark", "scalablevit_nano", option, "nowhere/out.png"]) == 2
    printed = capsys.readouterr()
    assert f"{option} nowhere/out.png: there is no folder nowhere" in printed.err
    assert not printed.out


def test_a_picture_needs_something_to_show(tmp_path):
    result = benchmark(["scalablevit_nano"], sizes=[(8, 8)], batch=1, rounds=1, memory=False)
    with pytest.raises(ValueError, match="nothing to plot: give several contenders"):
        plot_benchmark(result, tmp_path / "no.png")
