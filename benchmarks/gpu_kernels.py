"""The Triton kernels on a CUDA GPU: checked against float64, and timed against the same code without them.

The sizes are those of ScalableViT-S, -B and -L at 224 pixels, each once. Window attention comes with LIM, as in IWSA.
Times are medians by triton.testing.do_bench, in milliseconds. Bytes are the least that a pass can move, each input and
output once; over the time of the kernel they make the bytes per second that it reaches. Errors are the largest
differences from float64, relative to the largest number, in the result and in the gradients.

    python benchmarks/gpu_kernels.py --json benchmarks/results/gpu_kernels.json
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scalablevit.dot_product import attend
from scalablevit.interactive_windows import interactive_window_attention
from scalablevit.kernels import use_triton
from scalablevit.kernels.triton_selection import takes_lists, takes_windows
from scalablevit.windows import window_attention

# Heads per stage, and widths of SSA's key heads (values and IWSA are 32 wide); maps are 56, 28, 14 and 7 wide.
VARIANTS = {
    "S": ((2, 4, 8, 16), (40, 40, 40, 32)),
    "B": ((3, 6, 12, 24), (64, 40, 40, 32)),
    "L": ((4, 8, 16, 32), (8, 16, 32, 32)),
}
SIDES, WINDOW_SIZE, WIDTH, KEYS = (56, 28, 14, 7), 7, 32, 49
DEVICE = "cuda"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TOLERANCES = {"bf16": 2e-2, "fp16": 3e-3, "fp32": 1e-5}


@dataclass(frozen=True, kw_only=True)
class Windows:
    """IWSA's attention and LIM at one stage."""

    name: str
    heads: int
    side: int

    def inputs(self, batch: int) -> list[Tensor]:
        channels, shape = self.heads * WIDTH, (batch, self.side, self.side)
        sizes = (*shape, 2 * channels), (*shape, channels), (channels, 1, 3, 3), (channels,)
        return [torch.randn(size, device=DEVICE) for size in sizes]

    def __call__(self, query_key: Tensor, value: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        arguments = self.heads, WINDOW_SIZE, WIDTH**-0.5
        if takes_windows(query_key, value, *arguments[:2]):
            return interactive_window_attention(query_key, value, weight, bias, *arguments)
        lim = F.conv2d(value.permute(0, 3, 1, 2), weight, bias, padding=1, groups=len(bias)).permute(0, 2, 3, 1)
        return window_attention(query_key, value, *arguments) + lim


@dataclass(frozen=True, kw_only=True)
class Lists:
    """SSA's attention at one stage."""

    name: str
    heads: int
    side: int
    key_width: int

    def inputs(self, batch: int) -> list[Tensor]:
        sizes = (self.side**2, self.key_width), (KEYS, self.key_width), (KEYS, WIDTH)
        tensors = [torch.randn(batch, length, self.heads, width, device=DEVICE) for length, width in sizes]
        return [x.transpose(1, 2) for x in tensors]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend(query, key, value, self.key_width**-0.5)


Case = Windows | Lists


def cases() -> Iterator[Case]:
    """Every stage of every variant."""
    for variant, (heads, key_widths) in VARIANTS.items():
        for stage in range(4):
            sizes: dict[str, Any] = {"heads": heads[stage], "side": SIDES[stage]}
            yield Windows(name=f"{variant}{stage + 1} IWSA", **sizes)
            yield Lists(name=f"{variant}{stage + 1} SSA", key_width=key_widths[stage], **sizes)


def is_taken(case: Case, inputs: list[Tensor]) -> bool:
    """Whether a kernel runs at all; otherwise both columns would show PyTorch."""
    with use_triton(True):
        if isinstance(case, Windows):
            return takes_windows(*inputs[:2], case.heads, WINDOW_SIZE)
        return takes_lists(*inputs)


def results(case: Case, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """The result and the gradients of all inputs."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = case(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


def errors(case: Case, dtype: torch.dtype) -> dict[str, float]:
    """Of the kernels and of PyTorch, each against PyTorch in float64, for two images."""
    inputs = [x.to(dtype) for x in case.inputs(2)]
    with use_triton(False):
        grad = torch.randn_like(case(*inputs))
        exact = results(case, [x.double() for x in inputs], grad.double())
        found = {"PyTorch": results(case, inputs, grad)}
    with use_triton(True):
        found["kernel"] = results(case, inputs, grad)
    return {
        which: max(float((x - e).abs().max() / e.abs().max()) for x, e in zip(tensors, exact, strict=True))
        for which, tensors in found.items()
    }


def milliseconds(case: Case, inputs: list[Tensor], backward: bool) -> dict[str, float]:
    """Medians of the kernels and of PyTorch."""
    from triton.testing import do_bench

    found = {}
    for which, choice in (("PyTorch", False), ("kernel", True)):
        with use_triton(choice), torch.set_grad_enabled(backward):
            found[which] = do_bench(step(case, inputs, backward), return_mode="median")
    return found


def step(case: Case, inputs: list[Tensor], backward: bool) -> Callable[[], Any]:
    """What is timed."""
    inputs = [x.detach().requires_grad_(backward) for x in inputs]
    if not backward:
        return lambda: case(*inputs)
    grad = torch.randn_like(case(*inputs))
    return lambda: torch.autograd.grad(case(*inputs), inputs, grad)


def least_bytes(case: Case, inputs: list[Tensor], backward: bool) -> int:
    """Forward: inputs and result; backward: inputs and the result's gradient, and the gradients of the inputs."""
    sizes = [x.numel() * x.element_size() for x in inputs]
    out = sizes[1] if isinstance(case, Windows) else sizes[0] // case.key_width * WIDTH
    forward = sum(sizes) + out
    return forward + (2 * sum(sizes) + out if backward else 0)


def measure(case: Case, batch: int, dtype: str) -> Iterator[dict[str, Any]]:
    """A row for the forward pass and one for both, fit for JSON."""
    inputs = [x.to(DTYPES[dtype]) for x in case.inputs(batch)]
    if not is_taken(case, inputs):
        return
    error = errors(case, DTYPES[dtype])
    for backward in (False, True):
        times = milliseconds(case, inputs, backward)
        moved = least_bytes(case, inputs, backward)
        yield {
            "case": asdict(case),
            "batch": batch,
            "dtype": dtype,
            "pass": "forward + backward" if backward else "forward",
            "milliseconds": times,
            "ratio": times["PyTorch"] / times["kernel"],
            "bytes": moved,
            "kernel bytes per second": moved / times["kernel"] * 1e3,
            "error": error,
            "right": error["kernel"] <= TOLERANCES[dtype],
        }


def machine() -> dict[str, Any]:
    """What the figures were measured on and with."""
    packages = {package: version(package) for package in ("torch", "triton", "scalablevit")}
    return {"gpu": torch.cuda.get_device_name(), "python": platform.python_version(), **packages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 256], help="images")
    parser.add_argument("--dtype", nargs="+", default=["bf16", "fp32"], choices=DTYPES, help="of all tensors")
    parser.add_argument("--only", default="", help='only cases whose name has this in it, such as "S3" or "IWSA"')
    parser.add_argument("--json", type=Path, help="where to write all figures")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu_kernels.py: needs a CUDA GPU, and torch.cuda.is_available() is false")
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32, in LIM too
    torch.manual_seed(0)
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    print(
        f"{'case':10}{'batch':>6} {'dtype':6}{'pass':20}{'PyTorch':>9}{'kernel':>9}{'ratio':>7}{'GB/s':>7}{'error':>9}"
    )
    rows = []
    for dtype in options.dtype:
        for batch in options.batch:
            for case in cases():
                if options.only in case.name:
                    for row in measure(case, batch, dtype):
                        rows.append(row)
                        print_row(row)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    if not all(row["right"] for row in rows):
        sys.exit("gpu_kernels.py: WRONG results, see the rows marked so")


def print_row(row: dict[str, Any]) -> None:
    times, error = row["milliseconds"], row["error"]["kernel"]
    print(
        f"{row['case']['name']:10}{row['batch']:6} {row['dtype']:6}{row['pass']:20}{times['PyTorch']:9.3f}"
        f"{times['kernel']:9.3f}{row['ratio']:7.2f}{row['kernel bytes per second'] / 1e9:7.0f}{error:9.1e}"
        + ("" if row["right"] else "  WRONG")
    )


if __name__ == "__main__":
    main()
