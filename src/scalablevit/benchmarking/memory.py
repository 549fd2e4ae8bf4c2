"""How much memory a step takes at most, over what was held before it.

On a GPU PyTorch counts. On a CPU it is the resident memory of a fresh process, since one that has run other things
keeps memory that it might use again; ``python -m scalablevit.benchmarking.memory JSON`` is that process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from scalablevit.benchmarking.contenders import Contender, parse_contender
from scalablevit.benchmarking.workload import Workload

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory_bytes(contender: Contender, workload: Workload, height: int, width: int) -> int | None:
    """Bytes that a step takes at most; None where that cannot be told: compiled on a CPU, or without Linux's /proc.

    Args:
        contender: The model; on a CPU a fresh process makes it by its name, see `parse_contender`.
        workload: What it does.
        height: Of the images.
        width: Of the images.
    """
    if torch.device(workload.device).type == "cuda":
        return _peak_on_gpu(contender, workload, height, width)
    if workload.compile or not _CLEAR.exists():
        return None
    task = {
        "contender": contender.name,
        "workload": asdict(workload),
        "size": [height, width],
        "threads": torch.get_num_threads(),
    }
    command = [sys.executable, "-m", "scalablevit.benchmarking.memory", json.dumps(task)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return int(done.stdout.split()[-1]) if done.returncode == 0 else None


def _peak_on_gpu(contender: Contender, workload: Workload, height: int, width: int) -> int:
    model = workload.place(contender.build(height, width))
    step = workload.step(model, workload.images(height, width))
    step()  # compiles, and chooses algorithms
    workload.synchronise()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    workload.synchronise()
    return int(torch.cuda.max_memory_allocated() - before)


def _peak_on_cpu(task: dict[str, Any]) -> int:
    torch.set_num_threads(task["threads"])
    workload = Workload(**task["workload"])
    height, width = task["size"]
    model = workload.place(parse_contender(task["contender"]).build(height, width))
    step = workload.step(model, workload.images(height, width))
    _CLEAR.write_text("5", encoding="ascii")  # the peak starts anew
    before = _kilobytes("VmRSS")
    step()
    return 1024 * (_kilobytes("VmHWM") - before)


def _kilobytes(field: str) -> int:
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


if __name__ == "__main__":
    sys.stdout.write(f"{_peak_on_cpu(json.loads(sys.argv[1]))}\n")
