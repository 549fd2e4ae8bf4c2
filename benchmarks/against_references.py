"""Speed and memory side by side with the published implementations of ScalableViT, in one process.

The contenders run in turn (A B A B ...), so that what else the machine does hits all of them. Figures are medians, a
ratio the reference's time over ours. Saved activations are the bytes of the distinct storages that autograd keeps for
the backward pass, parameters left out; peak RSS is that of a fresh process over what it held before the step.

    python benchmarks/against_references.py                          # against the package vit-pytorch
    python benchmarks/against_references.py --authors PATH           # and against a checkout of the authors' repository

Results are kept in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import platform
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import scalablevit
from scalablevit.benchmarking.cost import count_saved_bytes

README: dict[str, Any] = {
    "num_classes": 1000,
    "dim": 64,
    "heads": (2, 4, 8, 16),
    "depth": (2, 2, 20, 2),
    "ssa_dim_key": (40, 40, 40, 32),
    "reduction_factor": (8, 4, 2, 1),
    "window_size": (64, 32, None, None),
}
PAPER_DEPTH: dict[str, Any] = {**README, "depth": (1, 1, 10, 1), "window_size": 7}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two networks with the same work to do, and the images for it."""

    name: str
    ours: Callable[[], nn.Module]
    reference: Callable[[], nn.Module]
    size: int  # pixels, square
    batch: int
    memory: bool  # whether memory is compared too

    def models(self) -> dict[str, nn.Module]:
        """The two models, ours first."""
        with contextlib.redirect_stdout(io.StringIO()):  # the authors' constructors print
            return {"ours": self.ours(), "reference": self.reference()}

    def images(self) -> torch.Tensor:
        """(batch, 3, size, size), random."""
        return torch.randn(self.batch, 3, self.size, self.size)


def comparisons(authors: Path | None) -> list[Comparison]:
    """What is compared; with the authors' code if its place is given."""
    from vit_pytorch.scalable_vit import ScalableViT as Reference

    found = [
        Comparison(
            name="vit-pytorch, its README's configuration, 256 px, batch 2",
            ours=lambda: scalablevit.ScalableViT(**README),
            reference=lambda: Reference(**README),
            size=256,
            batch=2,
            memory=True,
        ),
        Comparison(
            name="vit-pytorch, S widths at the paper's depth, windows of 7, 224 px, batch 8",
            ours=lambda: scalablevit.ScalableViT(**PAPER_DEPTH),
            reference=lambda: Reference(**PAPER_DEPTH),
            size=224,
            batch=8,
            memory=False,
        ),
    ]
    if authors is not None:
        small = load_authors_module(authors).scalable_vit_small
        found.append(
            Comparison(
                name="the authors' code, S, 224 px, batch 8",
                ours=scalablevit.scalablevit_small,
                reference=small,
                size=224,
                batch=8,
                memory=True,
            )
        )
    return found


def load_authors_module(path: Path) -> types.ModuleType:
    """The authors' model file, below `path`, with the names it imports from a timm of long ago."""
    import timm.layers
    import timm.models
    import timm.models.vision_transformer as vision_transformer

    files = sorted(path.rglob("scalablevit.py"))
    if not files:
        raise FileNotFoundError(f"no scalablevit.py below {path}: name a checkout of the authors' repository")
    old_registry = types.ModuleType("timm.models.registry")
    old_registry.register_model = lambda function: function  # type: ignore[attr-defined]
    sys.modules["timm.models.layers"] = timm.layers
    sys.modules["timm.models.registry"] = old_registry
    if not hasattr(vision_transformer, "_cfg"):
        vision_transformer._cfg = dict  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location("authors_scalablevit", files[0])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def forward(model: nn.Module, images: torch.Tensor) -> None:
    with torch.no_grad():
        model(images)


def forward_backward(model: nn.Module, images: torch.Tensor) -> None:
    model(images).sum().backward()
    model.zero_grad()


def interleaved_seconds(comparison: Comparison, step: Callable[..., None], rounds: int) -> dict[str, list[float]]:
    """Seconds of each round of each model, the models in turn, after one round of warm-up."""
    models, images = comparison.models(), comparison.images()
    for model in models.values():
        model.train(step is forward_backward)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds + 1):
        for name, model in models.items():
            start = time.perf_counter()
            step(model, images)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_rss_bytes(index: int, which: str, authors: Path | None) -> int:
    """Peak RSS of one forward and backward pass in a fresh process, over its RSS before the step."""
    command = [sys.executable, __file__, "--peak-rss", str(index), which]
    if authors is not None:
        command += ["--authors", str(authors)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_peak_rss(comparison: Comparison, which: str) -> None:
    model, images = comparison.models()[which].train(), comparison.images()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # what both need alike
    status = Path("/proc/self/status")

    def kilobytes(field: str) -> int:
        return int(next(line for line in status.read_text().splitlines() if line.startswith(field)).split()[1])

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = kilobytes("VmRSS")
    model(images).sum().backward()
    print((kilobytes("VmHWM") - before) * 1024)


def measure(comparison: Comparison, index: int, rounds: int, authors: Path | None) -> dict[str, Any]:
    """All figures of one comparison, as a dictionary fit for JSON; printed as they come."""
    print(f"\n{comparison.name}")
    row: dict[str, Any] = {"comparison": comparison.name}
    for name, step in (("forward", forward), ("forward + backward", forward_backward)):
        seconds = interleaved_seconds(comparison, step, rounds)
        ours, reference = (statistics.median(seconds[which]) for which in ("ours", "reference"))
        row[name] = {"seconds": seconds, "ratio": reference / ours}
        print(f"  {name:20} {ours * 1e3:8.0f} ms against {reference * 1e3:8.0f} ms   {reference / ours:.2f} x as fast")
    if comparison.memory:
        models, images = comparison.models(), comparison.images()
        figures = {
            "saved activations": {which: count_saved_bytes(model, images) for which, model in models.items()},
            "peak RSS": {which: peak_rss_bytes(index, which, authors) for which in models},
        }
        del models
        for name, figure in figures.items():
            ratio = figure["ours"] / figure["reference"]
            row[name] = {**figure, "ratio": ratio}
            print(
                f"  {name:20} {figure['ours'] / 1e6:8.0f} MB against {figure['reference'] / 1e6:8.0f} MB   {ratio:.2f}"
            )
    return row


def machine() -> dict[str, Any]:
    """What the figures were measured on and with."""
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "processor": names[0] if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "timm", "vit-pytorch", "scalablevit")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--authors", type=Path, help="a checkout of the authors' repository")
    parser.add_argument("--rounds", type=int, default=9, help="rounds per figure, after one of warm-up")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument("--peak-rss", nargs=2, metavar=("INDEX", "MODEL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    found = comparisons(options.authors)
    if options.peak_rss:
        print_peak_rss(found[int(options.peak_rss[0])], options.peak_rss[1])
        return
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    rows = [measure(comparison, index, options.rounds, options.authors) for index, comparison in enumerate(found)]
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "comparisons": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
