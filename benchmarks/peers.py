"""ScalableViT-S beside the models of its accuracy, in every way of running them; figures, a table and pictures.

    python benchmarks/peers.py --out benchmarks/results/peers_cpu                       # two cores take about an hour
    python benchmarks/peers.py --out DIR --device cuda --batch 256 --train-batch 128    # bf16, channels-last

Each way of running (inference or training, precision, eager or compiled) is one benchmark, whose contenders take turns.
The matrix rate is measured in each.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from scalablevit.benchmarking.comparison import benchmark
from scalablevit.benchmarking.plots import plot_benchmark
from scalablevit.benchmarking.workload import Mode, Precision
from scalablevit.display import show_benchmark

OURS = ("scalablevit_small",)
AT_LEAST_83 = (
    "timm:caformer_s18",
    "timm:convnext_small",
    "timm:swin_small_patch4_window7_224",
    "timm:nextvit_base",
    "timm:pvt_v2_b3",
    "timm:gcvit_tiny",
    "timm:maxvit_tiny_tf_224",
    "timm:twins_svt_base",
)
BELOW_83 = ("timm:swin_tiny_patch4_window7_224", "timm:convnext_tiny")


def ways(options: argparse.Namespace) -> Iterator[tuple[Mode, Precision, bool]]:
    """Modes, precisions, and whether models are compiled."""
    for compiled in options.compile:
        for mode in options.modes:
            for precision in options.precisions:
                yield mode, precision, compiled == "compiled"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder for the figures and pictures")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--train-batch", type=int, help="default: as --batch")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--modes", nargs="+", default=["infer", "train"])
    parser.add_argument("--precisions", nargs="+", help="default: fp32 bf16, on a GPU bf16")
    parser.add_argument("--compile", nargs="+", default=["eager", "compiled"], choices=["eager", "compiled"])
    parser.add_argument(
        "--no-memory", action="store_true", help="leave memory out, which takes a process for each model"
    )
    parser.add_argument("--contenders", nargs="+", default=[*OURS, *AT_LEAST_83, *BELOW_83])
    options = parser.parse_args()
    on_gpu = options.device.startswith("cuda")
    options.precisions = options.precisions or (["bf16"] if on_gpu else ["fp32", "bf16"])
    options.out.mkdir(parents=True, exist_ok=True)
    for mode, precision, compiled in ways(options):
        result = benchmark(
            options.contenders,
            mode=mode,
            precision=precision,
            compile=compiled,
            batch=options.train_batch or options.batch if mode == "train" else options.batch,
            channels_last=on_gpu,
            device=options.device,
            threads=options.threads,
            rounds=options.rounds,
            memory=not compiled and not options.no_memory,
        )
        show_benchmark(result)
        name = f"{mode}_{precision}_{'compiled' if compiled else 'eager'}"
        result.write(options.out / f"{name}.json")
        plot_benchmark(result, options.out / f"{name}.png")


if __name__ == "__main__":
    main()
