"""Speed and memory side by side with the published implementations of ScalableViT, in one process.

    python benchmarks/against_references.py                          # against the package vit-pytorch
    python benchmarks/against_references.py --authors PATH           # and against a checkout of the authors' repository

Ratios are of images per second, ours over the reference's; see `scalablevit.benchmark` for how they are measured. Saved
activations are the bytes of the distinct storages that autograd keeps for the backward pass, parameters left out.

Results are kept in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import sys
import types
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scalablevit.benchmarking.comparison import BenchmarkResult, benchmark
from scalablevit.benchmarking.contenders import Contender, parse_contender
from scalablevit.benchmarking.cost import count_saved_bytes
from scalablevit.display import show_benchmark


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two networks with the same work to do, the reference first, and the images and precisions for it."""

    name: str
    reference: str | Contender
    ours: str
    size: int  # pixels, square
    batch: int
    precisions: tuple[str, ...] = ("fp32",)


VIT_PYTORCH = (
    Comparison(
        name="vit-pytorch, its README's configuration, 256 px, batch 2",
        reference="vit-pytorch:readme",
        ours="scalablevit:readme",
        size=256,
        batch=2,
    ),
    Comparison(
        name="vit-pytorch, the same without dropout",
        reference="vit-pytorch:readme-without-dropout",
        ours="scalablevit:readme-without-dropout",
        size=256,
        batch=2,
    ),
    Comparison(
        name="vit-pytorch, S widths at the paper's depth, windows of 7, 224 px, batch 8",
        reference="vit-pytorch:paper-depth",
        ours="scalablevit:paper-depth",
        size=224,
        batch=8,
    ),
)


def authors_comparison(checkout: Path) -> Comparison:
    """With the authors' S."""
    small = load_authors_module(checkout).scalable_vit_small

    def build(height: int, width: int) -> nn.Module:
        with contextlib.redirect_stdout(io.StringIO()):  # its constructors print
            return small()

    return Comparison(
        name="the authors' code, S, 224 px, batch 8",
        reference=Contender(name="authors:small", build=build),
        ours="scalablevit_small",
        size=224,
        batch=8,
        precisions=("fp32", "bf16"),
    )


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


def saved_bytes(contender: str | Contender, comparison: Comparison) -> int:
    """Bytes that a forward pass keeps for the backward pass."""
    parsed = parse_contender(contender) if isinstance(contender, str) else contender
    model = parsed.build(comparison.size, comparison.size).train()
    return count_saved_bytes(model, torch.randn(comparison.batch, 3, comparison.size, comparison.size))


def measure(comparison: Comparison, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one comparison, as a dictionary fit for JSON; printed as they come."""
    print(f"\n{comparison.name}")
    row: dict[str, Any] = {"comparison": comparison.name}
    for mode in options.modes:
        for precision in (one for one in comparison.precisions if one in options.precisions):
            for compiled in (False, True) if options.compile else (False,):
                result: BenchmarkResult = benchmark(
                    [comparison.reference, comparison.ours],
                    mode=mode,  # type: ignore[arg-type]
                    precision=precision,  # type: ignore[arg-type]
                    sizes=[(comparison.size, comparison.size)],
                    batch=comparison.batch,
                    compile=compiled,
                    threads=options.threads,
                    rounds=options.rounds,
                    memory=not compiled,
                )
                show_benchmark(result)
                row[f"{mode} {precision} {'compiled' if compiled else 'eager'}"] = asdict(result)
    saved = {
        "reference": saved_bytes(comparison.reference, comparison),
        "ours": saved_bytes(comparison.ours, comparison),
    }
    row["saved activations"] = {**saved, "ratio": saved["ours"] / saved["reference"]}
    print(f"saved activations: {saved['ours'] / 1e6:.0f} of {saved['reference'] / 1e6:.0f} MB")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--authors", type=Path, help="a checkout of the authors' repository")
    parser.add_argument("--rounds", type=int, default=9, help="rounds per figure")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--compile", action="store_true", help="compiled against compiled as well")
    parser.add_argument(
        "--modes", nargs="+", choices=("infer", "train"), default=["infer", "train"], help="all if not said"
    )
    parser.add_argument(
        "--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"], help="bf16: beside the authors'"
    )
    parser.add_argument("--json", type=Path, help="where to write all figures")
    options = parser.parse_args()
    found = [*VIT_PYTORCH, *([authors_comparison(options.authors)] if options.authors else [])]
    rows = [measure(comparison, options) for comparison in found]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
