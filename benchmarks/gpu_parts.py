"""The parts of gpu.py: each yields what it has found so far, whenever there is more of it, and prints it."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import gpu_kernels
import torch
from peers import AT_LEAST_83, BELOW_83, OURS

from scalablevit.benchmarking.comparison import BenchmarkResult, benchmark, machine
from scalablevit.benchmarking.contenders import PRESETS, Contender, parse_contender
from scalablevit.benchmarking.plots import plot_benchmark, plot_floors
from scalablevit.benchmarking.profiling import Profile, profile_step
from scalablevit.benchmarking.published import published_top1
from scalablevit.benchmarking.roofline import Floor, count_operations, floors_by_kind, floors_by_name
from scalablevit.benchmarking.timing import copy_rate, interleaved_seconds, launch_seconds, matrix_rate
from scalablevit.benchmarking.workload import Mode, Workload
from scalablevit.display import show_benchmark
from scalablevit.extras import require_extra
from scalablevit.kernels import use_triton
from scalablevit.scalable_vit import ScalableViT
from scalablevit.weights.conversion import convert_state_dict

MODES: tuple[Mode, ...] = ("infer", "train")
Found = dict[str, Any]
Part = Callable[["Settings"], Iterator[Found]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured, how large, until when, and where to.

    Nothing is begun after `end`, a time of `time.monotonic`; pictures go to the folder `out`.
    """

    out: Path
    end: float
    device: str = "cuda"
    contenders: tuple[str, ...] = (*OURS, *AT_LEAST_83, *BELOW_83, "scalablevit_base", "scalablevit_large")
    model: str = "scalablevit_small"  # of the parts on one network
    size: int = 224  # pixels, square
    batches: dict[Mode, int] = field(default_factory=lambda: {"infer": 256, "train": 128})
    rounds: int = 7
    reference: dict[str, Any] = field(default_factory=lambda: PRESETS["readme"])  # arguments of vit-pytorch's class
    reference_size: int = 256
    reference_batch: int = 32
    copied_bytes: int = 2**32
    matrix_sizes: tuple[int, ...] = (3072, 4096, 6144, 8192)
    profiled_steps: int = 5

    @property
    def on_gpu(self) -> bool:
        return torch.device(self.device).type == "cuda"

    def workload(self, mode: Mode, **changes: Any) -> Workload:
        """Of the networks in this mode."""
        batch = self.batches[mode]
        usual = Workload(mode=mode, precision="bf16", batch=batch, channels_last=True, device=self.device)
        return replace(usual, **changes)

    def is_over(self) -> bool:
        """Whether nothing more is to be begun."""
        return time.monotonic() > self.end


QUICK: dict[str, Any] = {
    "contenders": ("scalablevit_nano", "timm:test_vit", "timm:test_convnext"),
    "model": "scalablevit_nano",
    "size": 32,
    "batches": {"infer": 2, "train": 2},
    "rounds": 2,
    "reference": {**PRESETS["readme"], "dim": 16, "depth": (1, 1, 1, 1), "window_size": (8, 4, None, None)},
    "reference_size": 32,
    "reference_batch": 2,
    "copied_bytes": 2**23,
    "matrix_sizes": (256, 512),
    "profiled_steps": 2,
}


def ceilings(settings: Settings) -> Iterator[Found]:
    """The machine's rates."""
    yield measure_ceilings(settings)


def measure_ceilings(settings: Settings) -> Found:
    device, synchronise = torch.device(settings.device), settings.workload("infer").synchronise
    flops = {
        size: matrix_rate(device, torch.bfloat16, synchronise, size=size, attempts=5) for size in settings.matrix_sizes
    }
    # Where nothing multiplies bfloat16, as on some CPUs, kernels do so in float32.
    in_float32 = matrix_rate(device, torch.float32, synchronise, size=min(settings.matrix_sizes), attempts=5)
    found = {
        "copied_bytes_per_second": copy_rate(device, settings.copied_bytes, synchronise),
        "bf16_flops_per_second": flops,
        "float32_flops_per_second": in_float32,
        "best_flops_per_second": max(in_float32, *flops.values()),
        "launch_seconds": launch_seconds(device, synchronise),
    }
    print(
        f"copy {found['copied_bytes_per_second'] / 1e12:.3f} TB/s read and written, products"
        f" {found['best_flops_per_second'] / 1e12:.2f} TFLOP/s, a launch {found['launch_seconds'] * 1e6:.1f} us"
    )
    return found


def peers(settings: Settings, *, part: str, modes: tuple[Mode, ...], compile: bool) -> Iterator[Found]:
    """All contenders, in turn."""
    found: Found = {}
    for mode in modes:
        result = benchmark(
            [while_there_is_time(name, settings) for name in settings.contenders],
            mode=mode,
            precision="bf16",
            sizes=[(settings.size, settings.size)],
            batch=settings.batches[mode],
            compile=compile,
            channels_last=True,
            device=settings.device,
            rounds=settings.rounds,
            memory=not compile,
        )
        show_benchmark(result)
        found[mode] = asdict(result)
        yield found
        if sum(m.top1 is not None and m.error is None for m in result.measurements) > 1:
            plot_benchmark(result, settings.out / f"{part}_{mode}.png")


def while_there_is_time(name: str, settings: Settings) -> Contender:
    """The contender, which is not begun when the time is over. One that does not exist says so when it is built."""
    begun = False

    def build(height: int, width: int) -> torch.nn.Module:
        nonlocal begun
        if settings.is_over() and not begun:
            raise TimeoutError("left out: --seconds were over")
        begun = True
        print(f"  {name}", flush=True)
        return parse_contender(name).build(height, width)

    return Contender(name=name, build=build, top1=published_top1(name))


def peers_eager(settings: Settings) -> Iterator[Found]:
    """As they are."""
    return peers(settings, part="peers-eager", modes=MODES, compile=False)


def peers_compiled_infer(settings: Settings) -> Iterator[Found]:
    """Compiled, inference."""
    return peers(settings, part="peers-compiled-infer", modes=("infer",), compile=True)


def peers_compiled_train(settings: Settings) -> Iterator[Found]:
    """Compiled, training."""
    return peers(settings, part="peers-compiled-train", modes=("train",), compile=True)


def vit_pytorch(settings: Settings) -> Iterator[Found]:
    """The same network in both packages, in both memory formats, whichever suits which."""
    theirs, ours = same_networks(settings.reference)
    found: Found = {"logits": logits_difference(theirs, ours, settings)}
    for precision in ("bf16", "fp32"):
        for channels_last in (True, False):
            for mode in MODES:
                result: BenchmarkResult = benchmark(
                    [theirs, ours],
                    mode=mode,
                    precision=precision,  # type: ignore[arg-type]
                    sizes=[(settings.reference_size,) * 2],
                    batch=settings.reference_batch,
                    channels_last=channels_last,
                    device=settings.device,
                    rounds=settings.rounds,
                )
                show_benchmark(result)
                layout = "channels-last" if channels_last else "channels-first"
                found[f"{mode} {precision} {layout}"] = asdict(result)
                yield found


def same_networks(arguments: dict[str, Any]) -> tuple[Contender, Contender]:
    """vit-pytorch's and ours, with one set of weights."""
    require_extra("benchmark", "vit_pytorch")
    from vit_pytorch.scalable_vit import ScalableViT as Reference

    def build_theirs(height: int, width: int) -> torch.nn.Module:
        torch.manual_seed(0)
        return Reference(**arguments)

    def build_ours(height: int, width: int) -> torch.nn.Module:
        model = ScalableViT(**arguments)
        model.load_state_dict(convert_state_dict(build_theirs(height, width).state_dict(), model))
        return model

    return Contender(name="vit-pytorch", build=build_theirs), Contender(name="scalablevit", build=build_ours)


def logits_difference(theirs: Contender, ours: Contender, settings: Settings) -> Found:
    """In float32, for two images: the largest difference over the largest logit."""
    size = settings.reference_size
    workload = Workload(batch=2, device=settings.device)
    images = workload.images(size, size)
    expected, found = (workload.step(workload.place(one.build(size, size)), images)() for one in (theirs, ours))
    return {"relative difference": relative_difference(found, expected)}


def relative_difference(found: Any, expected: Any) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def kernels(settings: Settings) -> Iterator[Found]:
    """Off and on in a network, then one by one."""
    reason = without_kernels(settings)
    if reason:
        yield skipped(reason)
        return
    found: Found = {"kernels": [], "errors": {}}
    try:
        for network in off_and_on(settings, compile=False):
            yield found | {"network": network}
            found["network"] = network
    except Exception as error:  # noqa: BLE001  # each kernel has its turn, whatever they do together
        found["errors"]["network"] = first_line(error)
    if not settings.on_gpu:
        print("kernels one by one: skipped, they are timed on a GPU alone")
        return
    for case in gpu_kernels.cases():
        if settings.is_over():
            found.setdefault("left out", []).append(case.name)
            continue
        try:
            rows = list(gpu_kernels.measure(case, settings.batches["infer"], "bf16"))
        except Exception as error:  # noqa: BLE001  # whatever a kernel does, the others go on
            found["errors"][case.name] = first_line(error)
            print(f"{case.name}: {first_line(error)}")
            rows = []
        for row in rows:
            gpu_kernels.print_row(row)
        found["kernels"] += rows
        yield found
    wrong = sorted({row["case"]["name"] for row in found["kernels"] if not row["right"]})
    if wrong or found["errors"]:
        raise RuntimeError(f"wrong results: {wrong}; failed: {sorted(found['errors'])}")


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def kernels_compiled(settings: Settings) -> Iterator[Found]:
    """Off and on in a compiled network."""
    reason = without_kernels(settings)
    if reason:
        yield skipped(reason)
        return
    for network in off_and_on(settings, compile=True):
        yield {"network": network}


def without_kernels(settings: Settings) -> str | None:
    """Why no kernel can run, if none can."""
    if settings.on_gpu or os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return "on a CPU kernels run only in Triton's interpreter: set TRITON_INTERPRET=1"


def skipped(reason: str) -> Found:
    print(f"skipped: {reason}")
    return {"skipped": reason}


def off_and_on(settings: Settings, *, compile: bool) -> Iterator[Found]:
    """Times of a network without and with the kernels, in turn, and how far its logits differ."""
    found: Found = {}
    for mode in MODES:
        if settings.is_over():
            found[mode] = {"left out": "--seconds were over"}
            yield found
            continue
        torch.compiler.reset()
        # The interpreter multiplies bfloat16 numbers wrongly.
        changes: dict[str, Any] = {"compile": compile, "precision": "bf16" if settings.on_gpu else "fp32"}
        workload = settings.workload(mode, **changes)
        images = workload.images(settings.size, settings.size)
        steps = {name: step_with(choice, workload, images, settings) for name, choice in (("off", False), ("on", True))}
        results = {name: (step(), step())[1] for name, step in steps.items()}
        seconds = interleaved_seconds(steps, settings.rounds, workload.synchronise)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        found[mode] = {"workload": asdict(workload), "seconds": seconds, "ratio": medians["off"] / medians["on"]}
        if mode == "infer":
            found[mode]["relative difference"] = relative_difference(results["on"], results["off"])
        print(f"kernels, {mode}, {'compiled' if compile else 'eager'}: off {1e3 * medians['off']:.2f} ms,", end=" ")
        print(f"on {1e3 * medians['on']:.2f} ms, ratio {found[mode]['ratio']:.3f}", flush=True)
        yield found


def step_with(choice: bool, workload: Workload, images: torch.Tensor, settings: Settings) -> Callable[[], object]:
    """A step, both ways, under this choice, which the process shares."""
    torch.manual_seed(0)
    model = workload.place(parse_contender(settings.model).build(settings.size, settings.size))
    step = workload.step(model, images)

    def run() -> object:
        with use_triton(choice):
            return step()

    return run


def roofline(settings: Settings) -> Iterator[Found]:
    """Floors by kind of operation, against the measured time."""
    limits = measure_ceilings(settings)
    rates = {
        "flops_per_second": limits["best_flops_per_second"],
        "bytes_per_second": limits["copied_bytes_per_second"],
    }
    found: Found = {"ceilings": limits, "model": settings.model}
    for mode in MODES:
        workload, step = ready_step(settings, mode)
        operations = count_operations(step)
        floors = floors_by_kind(operations, **rates)
        times = interleaved_seconds({"step": step}, settings.rounds, workload.synchronise)["step"]
        profile = profile_of(settings, workload, step)
        show_floors(mode, floors, profile, statistics.median(times))
        found[mode] = {
            "workload": asdict(workload),
            "kinds": [asdict(floor) for floor in floors],
            "operations": [asdict(floor) for floor in floors_by_name(operations, **rates)],
            "floor_seconds": sum(floor.floor_seconds for floor in floors),
            "measured_seconds": times,
            "measured_seconds_by_kind": {row.name: row.seconds for row in profile.kinds},
        }
        yield found
        plot_floors(
            floors,
            {row.name: row.seconds for row in profile.kinds},
            settings.out / f"roofline_{mode}.png",
            title=f"{settings.model}, {mode}, bf16, batch {workload.batch}; {machine(settings.device)['device']}",
            clock=f"measured, {profile.clock} time",
        )


def show_floors(mode: str, floors: list[Floor], profile: Profile, measured: float) -> None:
    """A table: counts, floors and times of a step."""
    times = {row.name: row.seconds for row in profile.kinds}
    print(f"{mode:14}{'operations':>11}{'GB':>9}{'GFLOP':>10}{'floor, ms':>11}{profile.clock + ', ms':>11}")
    for floor in floors:
        print(
            f"{floor.name:14}{floor.operations:11}{floor.moved_bytes / 1e9:9.3f}{floor.flops / 1e9:10.2f}"
            f"{1e3 * floor.floor_seconds:11.3f}{1e3 * times.get(floor.name, 0.0):11.3f}"
        )
    total = sum(floor.floor_seconds for floor in floors)
    print(f"floor {1e3 * total:.3f} ms, measured {1e3 * measured:.3f} ms: {total / measured:.0%} of what could be")


def profile(settings: Settings) -> Iterator[Found]:
    """By kind, operation and kernel."""
    found: Found = {"model": settings.model}
    for mode in MODES:
        workload, step = ready_step(settings, mode)
        times = interleaved_seconds({"step": step}, settings.rounds, workload.synchronise)["step"]
        result = profile_of(settings, workload, step)
        found[mode] = {"workload": asdict(workload), "measured_seconds": times, **asdict(result)}
        yield found
        print(f"{mode}: {1e3 * statistics.median(times):.3f} ms, of which {result.clock} {1e3 * result.seconds:.3f} ms")
        for row in (*result.kinds, *(result.kernels or result.operations)[:12]):
            print(f"  {1e3 * row.seconds:9.3f} ms{row.seconds / result.seconds:7.1%}{row.calls:8.0f}  {row.name[:90]}")


def ready_step(settings: Settings, mode: Mode) -> tuple[Workload, Callable[[], object]]:
    """A step of the model, without kernels of ours, that has run before."""
    workload = settings.workload(mode)
    step = step_with(False, workload, workload.images(settings.size, settings.size), settings)
    for _ in range(3):
        step()
    return workload, step


def profile_of(settings: Settings, workload: Workload, step: Callable[[], object]) -> Profile:
    steps = settings.profiled_steps
    return profile_step(step, device=settings.device, synchronise=workload.synchronise, steps=steps)


PARTS: dict[str, Part] = {
    "ceilings": ceilings,
    "roofline": roofline,
    "profile": profile,
    "vit-pytorch": vit_pytorch,
    "peers-eager": peers_eager,
    "kernels": kernels,
    "kernels-compiled": kernels_compiled,
    "peers-compiled-infer": peers_compiled_infer,
    "peers-compiled-train": peers_compiled_train,
}
