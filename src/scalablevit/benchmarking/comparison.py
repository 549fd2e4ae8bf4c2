"""Contenders side by side: how fast, at what cost, and how far from what the machine can do."""

from __future__ import annotations

import json
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scalablevit.benchmarking.contenders import Contender, parse_contender
from scalablevit.benchmarking.cost import count_macs, count_parameters
from scalablevit.benchmarking.memory import peak_memory_bytes
from scalablevit.benchmarking.timing import interleaved_seconds, matrix_rate
from scalablevit.benchmarking.workload import Mode, Precision, Workload
from scalablevit.configuration import check_count

PACKAGES = ("torch", "torchvision", "timm", "vit-pytorch", "triton", "scalablevit")
BACKWARD_FACTOR = 3  # forward and backward together are about three times the products of forward


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What was found of one contender at one size.

    Args:
        contender: Its name.
        height: Of the images, in pixels.
        width: Of the images, in pixels.
        batch: Images at once.
        seconds: Of a step, in each round.
        images_per_second: By the median of the rounds.
        spread: Of the middle half of the rounds, as a fraction of the median.
        ratio: Images per second over those of the first contender that ran at this size.
        peak_memory_bytes: At most held during a step, over what was held before it; None if unknown.
        parameters: How many.
        macs: Multiply-accumulates of one image's forward pass; None if they cannot be counted.
        matrix_share: The rate of a step's products over that of large square matrices; None if `macs` is.
        top1: Published ImageNet-1k accuracy in per cent, if known; not measured.
        error: Why nothing was measured; None if it was.
    """

    contender: str
    height: int
    width: int
    batch: int
    seconds: tuple[float, ...] = ()
    images_per_second: float | None = None
    spread: float | None = None
    ratio: float | None = None
    peak_memory_bytes: int | None = None
    parameters: int | None = None
    macs: int | None = None
    matrix_share: float | None = None
    top1: float | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """Measurements, in the order of sizes and within a size of contenders, and what they were made on and with.

    Args:
        workload: What each contender did.
        measurements: One for each contender at each size.
        matrix_flops: The machine's rate in large square matrices, in operations per second, in the same precision.
        machine: Processor or GPU, threads, versions.
        command: That made it.
    """

    workload: Workload
    measurements: tuple[Measurement, ...]
    matrix_flops: float
    machine: dict[str, Any]
    command: str

    def write(self, path: str | Path) -> None:
        """Writes everything as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def benchmark(
    contenders: Sequence[str | Contender],
    *,
    mode: Mode = "infer",
    precision: Precision = "fp32",
    sizes: Sequence[tuple[int, int]] = ((224, 224),),
    batch: int = 8,
    compile: bool = False,
    channels_last: bool = False,
    prepack: bool = False,
    device: str = "cpu",
    threads: int | None = None,
    rounds: int = 9,
    memory: bool = True,
    report: Callable[[Measurement], object] = lambda measurement: None,
) -> BenchmarkResult:
    """Measures models side by side, in turn, in this process.

    Args:
        contenders: Their names, see `scalablevit.benchmarking.contenders.parse_contender`, or contenders themselves (of
            which no memory is measured on a CPU, since a fresh process could not make them).
        mode: ``"infer"``, or ``"train"`` (forward, loss and backward).
        precision: ``"fp32"``; autocast to ``"bf16"`` or ``"fp16"``; ``"bf16-true"`` or ``"fp16-true"``: weights and
            images of that type.
        sizes: Height and width of the images, in pixels; one or several.
        batch: Images at once.
        compile: Whether models are compiled.
        channels_last: Whether images and convolution weights have the channels-last memory format.
        prepack: Whether our networks keep their weights packed (`scalablevit.prepack`).
        device: Where.
        threads: Of PyTorch, on a CPU; None: as they are.
        rounds: How many turns each contender has.
        memory: Whether memory is measured too; on a CPU in a fresh process for each contender.
        report: Is told each measurement when its size is done.

    Raises:
        ValueError: If a contender does not exist, or a value makes no sense. A contender that fails while it runs is
            none: its measurement says why, and the others go on.
    """
    workload = Workload(
        mode=mode,
        precision=precision,
        batch=batch,
        compile=compile,
        channels_last=channels_last,
        prepack=prepack,
        device=device,
    )
    check_count("rounds", rounds)
    for size in sizes:
        for side in size:
            check_count("sizes", side)
    parsed = [parse_contender(one) if isinstance(one, str) else one for one in dict.fromkeys(contenders)]
    if not parsed or not sizes:
        raise ValueError("there is nothing to measure: name at least one contender and one size")
    threads_before = torch.get_num_threads()
    torch.set_num_threads(check_count("threads", threads) if threads is not None else threads_before)
    try:
        limit = matrix_rate(torch.device(device), workload.dtype, workload.synchronise)
        # On a CPU only what has a name: a fresh process makes it.
        on_cpu = torch.device(device).type == "cpu"
        named = frozenset(one.name for one in parsed if memory and (one.name in contenders or not on_cpu))
        measurements: list[Measurement] = []
        for height, width in sizes:
            found = _measure(parsed, workload, height, width, rounds=rounds, limit=limit, measure_memory_of=named)
            measurements += found
            for measurement in found:
                report(measurement)
        return BenchmarkResult(
            workload=workload,
            measurements=tuple(measurements),
            matrix_flops=limit,
            machine=machine(device),
            command=" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        )
    finally:
        torch.set_num_threads(threads_before)


def parse_size(text: str) -> tuple[int, int]:
    """Height and width, in pixels, of ``224`` or ``800x1344``.

    Raises:
        ValueError: If it is neither.
    """
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise ValueError(f"size is {text!r}; it must be a side in pixels, such as 224, or height x width, as 800x1344")
    return int(sides[0]), int(sides[-1])


def machine(device: str = "cpu") -> dict[str, Any]:
    """What figures are measured on and with."""
    return {
        "device": _device_name(torch.device(device)),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        **{package: _version(package) for package in PACKAGES},
    }


def _measure(
    contenders: Sequence[Contender],
    workload: Workload,
    height: int,
    width: int,
    *,
    rounds: int,
    limit: float,
    measure_memory_of: frozenset[str],
) -> list[Measurement]:
    torch.compiler.reset()
    images = workload.images(height, width)
    steps: dict[str, Callable[[], object]] = {}
    costs: dict[str, tuple[int, int | None]] = {}
    errors: dict[str, str] = {}
    for contender in contenders:
        try:
            torch.manual_seed(0)
            model = contender.build(height, width)
            costs[contender.name] = count_parameters(model), _macs(model, height, width)
            step = workload.step(workload.place(model), images)
            step()
            step()
            steps[contender.name] = step
        except Exception as error:  # noqa: BLE001  # whatever other people's models raise, the others go on
            errors[contender.name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    seconds = interleaved_seconds(steps, rounds, workload.synchronise)
    steps.clear()
    first = next((statistics.median(seconds[c.name]) for c in contenders if c.name in seconds), None)

    def memory_of(contender: Contender) -> int | None:
        return peak_memory_bytes(contender, workload, height, width) if contender.name in measure_memory_of else None

    measurements = []
    for contender in contenders:
        name = contender.name
        about: dict[str, Any] = {"contender": name, "height": height, "width": width, "top1": contender.top1}
        about["batch"] = workload.batch
        if name in errors:
            measurements.append(Measurement(**about, error=errors[name]))
            continue
        assert first is not None
        parameters, macs = costs[name]
        median = statistics.median(seconds[name])
        quartiles = statistics.quantiles(seconds[name], n=4) if rounds > 1 else [median] * 3
        products = None if macs is None else 2 * macs * workload.batch
        if products is not None and workload.mode == "train":
            products *= BACKWARD_FACTOR
        measurements.append(
            Measurement(
                **about,
                seconds=tuple(seconds[name]),
                images_per_second=workload.batch / median,
                spread=(quartiles[2] - quartiles[0]) / median,
                ratio=first / median,
                peak_memory_bytes=memory_of(contender),
                parameters=parameters,
                macs=macs,
                matrix_share=None if products is None else products / median / limit,
            )
        )
    return measurements


def _macs(model: nn.Module, height: int, width: int) -> int | None:
    try:
        return count_macs(model, height, width)
    except Exception:  # noqa: BLE001  # some models of others cannot run without values
        return None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
