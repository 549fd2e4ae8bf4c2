"""benchmarks/gpu.py as far as it goes without a GPU: every part runs and writes its file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
EAGER = ("ceilings", "roofline", "profile", "vit-pytorch", "peers-eager", "kernels", "kernels-compiled")


def run(out, *options):
    command = [sys.executable, SCRIPT, "--out", out, "--quick", "--device", "cpu", *options]
    return subprocess.run(command, capture_output=True, text=True)


def read(out, part):
    return json.loads((out / f"{part}.json").read_text())


@pytest.mark.slow
def test_every_part_writes_what_it_found(tmp_path):
    done = run(tmp_path, "--parts", *EAGER)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {part: read(tmp_path, part) for part in EAGER}
    for part, result in found.items():
        assert result["part"] == part
        assert result["error"] is None
        assert result["machine"]["torch"] == torch.__version__.partition("+")[0]
        assert result["command"].startswith("gpu.py --out")
    assert found["ceilings"]["copied_bytes_per_second"] > 1e8
    ceilings = found["ceilings"]
    rates = ceilings["float32_flops_per_second"], *ceilings["bf16_flops_per_second"].values()
    assert ceilings["best_flops_per_second"] == max(rates)
    for mode in ("infer", "train"):
        roofline = found["roofline"][mode]
        assert {"linear", "convolution", "attention", "norm", "GELU"} <= {row["name"] for row in roofline["kinds"]}
        for rows in (roofline["kinds"], roofline["operations"]):
            assert sum(row["floor_seconds"] for row in rows) == pytest.approx(roofline["floor_seconds"])
        assert 0 < roofline["floor_seconds"] < min(roofline["measured_seconds"])
        assert (tmp_path / f"roofline_{mode}.png").read_bytes().startswith(b"\x89PNG")
        assert sum(row["seconds"] for row in found["profile"][mode]["kinds"]) > 0
        assert [m["error"] for m in found["peers-eager"][mode]["measurements"]] == [None] * 3
        [theirs, ours] = found["vit-pytorch"][f"{mode} bf16 channels-last"]["measurements"]
        assert (theirs["contender"], ours["contender"]) == ("vit-pytorch", "scalablevit")
        assert theirs["parameters"] == ours["parameters"]
    assert found["vit-pytorch"]["logits"]["relative difference"] < 1e-4
    assert "TRITON_INTERPRET=1" in found["kernels"]["skipped"]
    assert "TRITON_INTERPRET=1" in found["kernels-compiled"]["skipped"]


@pytest.mark.slow
def test_compiled_contenders(tmp_path):
    parts = ("peers-compiled-infer", "peers-compiled-train")
    done = run(tmp_path, "--rounds", "1", "--contenders", "timm:test_vit", "timm:no_such", "--parts", *parts)
    assert done.returncode == 0, done.stdout + done.stderr
    for part, mode in zip(parts, ("infer", "train"), strict=True):
        fine, missing = read(tmp_path, part)[mode]["measurements"]
        assert fine["ratio"] == 1.0
        assert missing["error"].startswith("ValueError: timm has no model 'no_such'")
        assert read(tmp_path, part)[mode]["workload"]["compile"]


def test_nothing_is_begun_after_the_time_is_over(tmp_path):
    done = run(tmp_path, "--parts", "ceilings", "peers-eager", "--seconds", "0")
    assert done.returncode == 1
    assert done.stdout.count("left out: --seconds were over") == 2
    assert list(tmp_path.iterdir()) == []


def test_contenders_are_left_out_when_the_time_is_over(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import gpu_parts

    settings = gpu_parts.Settings(**{**gpu_parts.QUICK, "out": tmp_path, "end": 0.0, "device": "cpu"})
    [found] = list(gpu_parts.peers_compiled_infer(settings))
    errors = {m["error"] for m in found["infer"]["measurements"]}
    assert errors == {"TimeoutError: left out: --seconds were over"}


def test_a_part_that_fails_keeps_what_it_found(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import gpu
    import gpu_parts

    def part(settings):
        yield {"figure": 3}
        raise RuntimeError("no more\nlines")

    monkeypatch.setitem(gpu_parts.PARTS, "ceilings", part)
    settings = gpu_parts.Settings(out=tmp_path, end=float("inf"), device="cpu")
    assert not gpu.run("ceilings", settings)
    assert read(tmp_path, "ceilings")["figure"] == 3
    assert read(tmp_path, "ceilings")["error"].startswith("RuntimeError: no more")


def test_without_a_gpu_one_line_says_so(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run([sys.executable, SCRIPT, "--out", tmp_path], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("gpu.py: needs a CUDA GPU, and torch.cuda.is_available() is false")
