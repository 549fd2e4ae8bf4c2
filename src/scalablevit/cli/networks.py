"""The verbs that need no trained model: benchmark and models."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from scalablevit.cli.arguments import Verb


def _add_benchmark_arguments(parser: ArgumentParser) -> None:
    from scalablevit.benchmarking.contenders import KINDS

    parser.add_argument("contenders", nargs="+", help=f"What to measure, the first being what ratios are to: {KINDS}.")
    parser.add_argument("--mode", default="infer", help="infer, or train: forward, loss and backward.")
    parser.add_argument(
        "--precision", default="fp32", help="fp32; autocast to bf16 or fp16; bf16-true or fp16-true: weights, too."
    )
    parser.add_argument("--size", nargs="+", default=["224"], help="Sizes of images, in pixels: 224, or 800x1344.")
    parser.add_argument("--batch", type=int, default=8, help="Images at once.")
    parser.add_argument("--compile", action="store_true", help="Compile the models.")
    parser.add_argument("--channels_last", action="store_true", help="Channels-last images and convolution weights.")
    parser.add_argument("--prepack", action="store_true", help="Our networks keep their weights packed, for inference.")
    parser.add_argument("--threads", type=int, help="Of PyTorch, on a CPU; default: as many as there are cores.")
    parser.add_argument("--rounds", type=int, default=9, help="How many turns each contender has.")
    parser.add_argument("--no_memory", action="store_true", help="Leave memory out, which takes a process for each.")
    parser.add_argument("--json", metavar="FILE", help="Write all that was measured, with versions and the command.")
    parser.add_argument("--plot", metavar="FILE", help="Draw throughput against accuracy, or growth with the size.")
    parser.add_argument("--device", default="cpu", help="Where: cpu, or cuda.")


def _benchmark(arguments: Namespace) -> int:
    from scalablevit.benchmarking.comparison import benchmark, parse_size
    from scalablevit.display import show_benchmark

    for name in ("json", "plot"):  # before minutes of measuring rather than after
        if arguments[name] and not Path(arguments[name]).resolve().parent.is_dir():
            raise ValueError(f"--{name} {arguments[name]}: there is no folder {Path(arguments[name]).parent}: make it")
    if arguments.plot:
        from scalablevit.benchmarking.plots import plot_benchmark
        from scalablevit.extras import require_extra

        require_extra("benchmark", "matplotlib")
    names = ("mode", "precision", "batch", "compile", "channels_last", "prepack", "device", "threads", "rounds")
    result = benchmark(
        arguments.contenders,
        sizes=[parse_size(size) for size in arguments.size],
        memory=not arguments.no_memory,
        **{name: arguments[name] for name in names},
    )
    show_benchmark(result)
    if arguments.json:
        result.write(arguments.json)
    if arguments.plot:
        plot_benchmark(result, arguments.plot)
    return 1 if any(measurement.error for measurement in result.measurements) else 0


def _models(arguments: Namespace) -> None:
    from scalablevit.display import show_models

    show_models()


BENCHMARK = Verb(
    summary="Measure the speed and memory of models side by side.",
    add_arguments=_add_benchmark_arguments,
    run=_benchmark,
)
MODELS = Verb(summary="List the models.", add_arguments=lambda parser: None, run=_models)
