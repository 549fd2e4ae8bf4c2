"""Exports side by side with PyTorch: ONNX Runtime and OpenVINO in float32, bfloat16 and int8, on this machine's CPU.

    python benchmarks/exports.py --json figures.json                       # S and nano, with random weights
    python benchmarks/exports.py --runs RUN --rounds 15 --threads 2        # trained models, at the size they are for

All contenders of a model take turns in one process; figures are medians. The rate of large matrix products is measured
before and after, and the better one counts; the share says how much of it the products of a model get to.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import scalablevit
from scalablevit.benchmarking.comparison import machine
from scalablevit.benchmarking.cost import count_macs
from scalablevit.benchmarking.timing import interleaved_seconds, matrix_rate
from scalablevit.exporting import open_export, write_export
from scalablevit.exporting.description import Description
from scalablevit.exporting.quantisation import quantise, rewrite_metadata

PACKAGES = ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf")
MODELS = {"scalablevit_small": 224, "scalablevit_nano": 32}  # with the size of the images


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model, and what it is given."""

    name: str
    model: scalablevit.ScalableViT
    height: int
    width: int

    def images(self, count: int, seed: int) -> Tensor:
        """Noise that is smooth in parts, as photographs are."""
        generator = torch.Generator().manual_seed(seed)
        shape = (count, self.model.in_chans)
        coarse = torch.randn(*shape, 8, 8, generator=generator)
        smooth = F.interpolate(coarse, size=(self.height, self.width), mode="bicubic")
        return smooth + 0.3 * torch.randn(*shape, self.height, self.width, generator=generator)


def cases(options: argparse.Namespace) -> list[Case]:
    """The models: trained ones if runs were named, else those of the package with random weights."""
    found = []
    for run in options.runs:
        model = scalablevit.load_model(run)
        _, height, width = model.pretrained_cfg["input_size"]
        found.append(Case(name=str(Path(run).name), model=model, height=height, width=width))
    for name in [] if found else options.models:
        torch.manual_seed(0)
        model = getattr(scalablevit, name)(num_classes=1000).eval()
        found.append(Case(name=name, model=model, height=MODELS[name], width=MODELS[name]))
    return found


def contenders(case: Case, folder: Path, options: argparse.Namespace) -> dict[str, Callable[[Tensor], Tensor]]:
    """What takes part, by name."""

    def torch_eager(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return case.model(images)

    calibration = [image[None].numpy() for image in case.images(options.calibration, seed=1)]
    found: dict[str, Callable[[Tensor], Tensor]] = {"PyTorch, float32": torch_eager}
    for runtime, name in (("ONNX Runtime", "model.onnx"), ("OpenVINO", "model.xml")):
        path = folder / name
        description = write_export(case.model, path).description
        opened: dict[str, dict[str, Any]] = {"float32": {}}
        if runtime == "OpenVINO":
            opened["bfloat16"] = {"precision": "bf16"}
        for numbers, how in opened.items():
            found[f"{runtime}, {numbers}"] = open_export(path, threads=options.threads, **how)
        quantised = quantised_copy(path, description, calibration)
        for numbers, how in opened.items():
            label = "int8" if numbers == "float32" else f"int8 and {numbers}"
            found[f"{runtime}, {label}"] = open_export(quantised, threads=options.threads, **how)
    return found


def quantised_copy(path: Path, description: Description, calibration: list[Any]) -> Path:
    copy = path.with_stem("int8")
    copy.write_bytes(path.read_bytes())
    if path.suffix == ".xml":
        copy.with_suffix(".bin").write_bytes(path.with_suffix(".bin").read_bytes())
    quantise(copy, calibration)
    rewrite_metadata(copy, description)
    return copy


def nodes_of(path: Path) -> dict[str, int]:
    """How many nodes of each kind an ONNX file has."""
    import onnx

    return dict(Counter(node.op_type for node in onnx.load(path).graph.node).most_common())


def measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """All that is found of a model."""
    cpu, nothing = torch.device("cpu"), lambda: None
    with tempfile.TemporaryDirectory() as folder:
        runs = contenders(case, Path(folder), options)
        images = case.images(options.batch, seed=2)
        expected = runs["PyTorch, float32"](images)
        differences = {name: float((run(images) - expected).norm() / expected.norm()) for name, run in runs.items()}
        before = matrix_rate(cpu, torch.float32, nothing)
        steps = {name: (lambda run=run: run(images)) for name, run in runs.items()}
        seconds = interleaved_seconds(steps, options.rounds, nothing)
        rate = max(before, matrix_rate(cpu, torch.float32, nothing))
        nodes = nodes_of(Path(folder) / "model.onnx")
    macs = count_macs(case.model, case.height, case.width)
    rows = []
    for name, found in seconds.items():
        median = statistics.median(found)
        rows.append(
            {
                "contender": name,
                "seconds": found,
                "images_per_second": options.batch / median,
                "matrix_share": 2 * macs * options.batch / median / rate,
                "speedup_over_float32": statistics.median(seconds[f"{name.partition(',')[0]}, float32"]) / median,
                "relative_difference": differences[name],
            }
        )
    return {
        "model": case.name,
        "height": case.height,
        "width": case.width,
        "batch": options.batch,
        "macs": macs,
        "matrix_flops_per_second": rate,
        "onnx_nodes": nodes,
        "measurements": rows,
    }


def show(result: dict[str, Any]) -> None:
    print(
        f"{result['model']}: {result['batch']} images of {result['height']} x {result['width']} pixels,"
        f" {result['macs'] / 1e9:.2f} GMACs each; products {result['matrix_flops_per_second'] / 1e9:.0f} GFLOP/s;"
        f" ONNX file of {sum(result['onnx_nodes'].values())} nodes"
    )
    print(f"{'':34}{'images/s':>9}{'share':>8}{'to fp32':>9}{'differs':>10}")
    for row in result["measurements"]:
        print(
            f"{row['contender']:34}{row['images_per_second']:9.2f}{100 * row['matrix_share']:7.0f}%"
            f"{row['speedup_over_float32']:8.2f}x{row['relative_difference']:10.1e}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--runs", nargs="+", default=[], help="run folders, in the place of models")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--calibration", type=int, default=16, help="random images to quantise with")
    parser.add_argument("--json", type=Path, help="a file for all that was measured")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = []
    for case in cases(options):
        results.append(measure(case, options))
        show(results[-1])
    if options.json:
        found = {
            "command": " ".join(["python", "benchmarks/exports.py", *sys.argv[1:]]),
            "machine": {**machine(), **{name: version(name) for name in PACKAGES}},
            "results": results,
        }
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
