"""Every figure that needs a GPU, part by part; each part writes PART.json, and most a picture, as soon as it is done.

    python benchmarks/gpu.py --out DIR --parts ceilings roofline profile vit-pytorch peers-eager    # about 6 minutes
    python benchmarks/gpu.py --out DIR --parts kernels kernels-compiled                             # about 6 minutes
    python benchmarks/gpu.py --out DIR --parts peers-compiled-infer                                 # about 10 minutes
    python benchmarks/gpu.py --out DIR --parts peers-compiled-train                                 # about 10 minutes

The minutes are guesses for an H200 with 16 processor cores, nearly all of them compilation. The parts:

    ceilings               rates of large copies and of bfloat16 products, the cost of a launch
    roofline               what each kind of operation of S computes and moves, the least time for it, and the measured
    profile                where the time of S goes, by kind, operation and kernel
    vit-pytorch            that package's README configuration against ours with the same weights
    peers-eager            S, B and L beside the models of their accuracy: inference and training
    peers-compiled-infer   the same compiled, inference
    peers-compiled-train   and training
    kernels                the Triton kernels off and on: in S, and one by one against float64 (see gpu_kernels.py)
    kernels-compiled       off and on in S, compiled

After `--seconds` nothing more is begun: what is left out says so, and is measured by another run with `--contenders`, S
first among them. A kernel that fails may take the GPU away from its whole process: give `kernels` a run of its own.
All is bfloat16 by autocast, channels-last, 224 pixels, batches of 256 and in training 128, if a part says nothing else.

    python benchmarks/gpu.py --out DIR --quick --device cpu    # tiny networks: whether everything runs
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from gpu_parts import PARTS, QUICK, Settings

from scalablevit.benchmarking.comparison import machine


def run(name: str, settings: Settings) -> bool:
    """Runs a part and writes what it finds whenever there is more of it; whether nothing failed."""
    print(f"\n== {name}", flush=True)
    if settings.is_over():
        print("left out: --seconds were over")
        return False
    start = time.monotonic()
    about: dict[str, Any] = {
        "part": name,
        "machine": machine(settings.device),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
    error = None
    try:
        for found in PARTS[name](settings):
            about |= found
            write(about | {"seconds": time.monotonic() - start}, settings.out / f"{name}.json")
    except Exception as caught:  # noqa: BLE001  # the other parts go on, and their figures count
        traceback.print_exc()
        error = f"{type(caught).__name__}: {caught}"
    write(about | {"seconds": time.monotonic() - start, "error": error}, settings.out / f"{name}.json")
    print(f"== {name}: {time.monotonic() - start:.0f} s", flush=True)
    return error is None


def write(found: dict[str, Any], path: Path) -> None:
    """As JSON; whoever stops the process finds the old or the new."""
    fresh = path.with_suffix(".part")
    fresh.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder for the figures and pictures")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), metavar="PART", help="which")
    parser.add_argument("--seconds", type=float, default=480.0, help="after which nothing more is begun (480)")
    parser.add_argument("--contenders", nargs="+", help="of the parts that compare, S first")
    parser.add_argument("--rounds", type=int, help="turns of each contender (7)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny networks and images")
    options = parser.parse_args()
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu.py: needs a CUDA GPU, and torch.cuda.is_available() is false; --device cpu tries it without")
    options.out.mkdir(parents=True, exist_ok=True)
    changes: dict[str, Any] = dict(QUICK) if options.quick else {}
    changes |= {"contenders": tuple(options.contenders)} if options.contenders else {}
    changes |= {"rounds": options.rounds} if options.rounds else {}
    settings = Settings(out=options.out, end=time.monotonic() + options.seconds, device=options.device, **changes)
    worked = [run(name, settings) for name in options.parts]
    if not all(worked):
        sys.exit("gpu.py: some parts failed or were left out, see above and the field error of their files")


if __name__ == "__main__":
    main()
