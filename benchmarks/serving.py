"""A server under load on this machine: rate, waiting, memory, and whether each answer is that of offline prediction.

    python benchmarks/serving.py RUN --json serving.json

starts ``scalablevit serve`` twice, with batches and without, and sends it images over as many connections as
`--concurrency`. The client speaks HTTP by hand, so that little of the machine goes to it.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from scalablevit import Predictor
from scalablevit.benchmarking.comparison import machine

DIFFERENT_IMAGES = 64
EARLY = 500  # requests after which memory is looked at first
TOLERANCE = 1e-4  # of probabilities: batches of other sizes round otherwise


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a server did under load; times in milliseconds, memory in MiB, resident."""

    batch_size: int
    requests: int
    concurrency: int
    lost: int
    wrong: int
    per_second: float
    p50_ms: float
    p99_ms: float
    memory_early: float
    memory_end: float
    mean_batch: float
    exit_code: int


def make_images(folder: Path, channels: int) -> list[Path]:
    """Images of noise in a folder, as PNG."""
    paths = []
    for index in range(DIFFERENT_IMAGES):
        values = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(values).resize((96, 96)).convert("L" if channels == 1 else "RGB")
        paths.append(folder / f"{index}.png")
        image.save(paths[-1])
    return paths


def resident_mib(pid: int) -> float:
    """The memory of a process that is in use, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, path: str, body: bytes) -> bytes:
    """The body of the answer to one request.

    Raises:
        ConnectionError: If the status is not 200.
    """
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    answer = await reader.readuntil(b"\r\n\r\n")
    length = int(re.findall(rb"content-length: (\d+)", answer.lower())[0])
    content = await reader.readexactly(length)
    if b" 200 " not in answer.split(b"\r\n", 1)[0]:
        raise ConnectionError(content.decode())
    return content


async def load(port: int, pid: int, bodies: list[bytes], requests: int, concurrency: int) -> dict[str, object]:
    """Sends the requests, and returns what came of them."""
    answers: dict[int, bytes] = {}
    took: list[float] = []
    todo = iter(range(requests))
    early = 0.0

    async def client() -> None:
        nonlocal early
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for index in todo:
            begin = time.perf_counter()
            try:
                answers[index] = await ask(reader, writer, "POST", "/predict?top=1", bodies[index % len(bodies)])
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                print(f"request {index}: {error}", file=sys.stderr)
                writer.close()
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                continue
            took.append(time.perf_counter() - begin)
            if len(answers) == min(EARLY, requests):
                early = resident_mib(pid)
        writer.close()

    begin = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    seconds = time.perf_counter() - begin
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    metrics = (await ask(reader, writer, "GET", "/metrics", b"")).decode()
    writer.close()
    count, total = (float(re.findall(rf"scalablevit_batch_size_{name} (\S+)", metrics)[0]) for name in ("count", "sum"))
    return {
        "answers": answers,
        "per_second": len(answers) / seconds,
        "p50_ms": float(np.percentile(took, 50)) * 1000,
        "p99_ms": float(np.percentile(took, 99)) * 1000,
        "memory_early": early,
        "memory_end": resident_mib(pid),
        "mean_batch": total / count,
    }


def measure(
    arguments: argparse.Namespace, batch_size: int, images: list[Path], expected: list[tuple[str, float]]
) -> Load:
    """One server, from its start to its end."""
    command = [sys.executable, "-m", "scalablevit", "serve", arguments.run, "--port", "0", "--device", arguments.device]
    command += ["--no-page", "--batch-size", str(batch_size)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = int(re.findall(r":(\d+)/", server.stdout.readline())[0])
        bodies = [path.read_bytes() for path in images]
        found = asyncio.run(load(port, server.pid, bodies, arguments.requests, arguments.concurrency))
    finally:
        server.send_signal(signal.SIGTERM)
        exit_code = server.wait(60)
    answers = found.pop("answers")
    wrong = 0
    for index, content in answers.items():  # type: ignore[attr-defined]
        answer = json.load(io.BytesIO(content))
        label, probability = expected[index % len(expected)]
        wrong += answer["labels"] != [label] or abs(answer["probabilities"][0] - probability) > TOLERANCE
    return Load(
        batch_size=batch_size,
        requests=arguments.requests,
        concurrency=arguments.concurrency,
        lost=arguments.requests - len(answers),  # type: ignore[arg-type]
        wrong=wrong,
        exit_code=exit_code,
        **found,  # type: ignore[arg-type]
    )


def main() -> int:
    """Measures, and prints a line for each server; 1 if an answer was lost or wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 1])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    predictor = Predictor(arguments.run, device=arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        images = make_images(Path(folder), predictor.preprocessing.channels)
        expected = [(each.label, each.probability) for each in predictor.predict_all(images, 1)]
        loads = [measure(arguments, size, images, expected) for size in arguments.batch_sizes]
    for each in loads:
        growth = 100 * (each.memory_end / each.memory_early - 1)
        print(
            f"batch size {each.batch_size}: {each.per_second:.1f} images/s, p50 {each.p50_ms:.0f} ms, p99"
            f" {each.p99_ms:.0f} ms, {each.lost} lost, {each.wrong} wrong, {each.mean_batch:.1f} images per batch,"
            f" memory {each.memory_early:.0f} -> {each.memory_end:.0f} MiB ({growth:+.1f} %), exit {each.exit_code}"
        )
    if arguments.json:
        found = {
            "command": " ".join(["python", "benchmarks/serving.py", *sys.argv[1:]]),
            "machine": machine(arguments.device),
            "loads": [asdict(each) for each in loads],
        }
        Path(arguments.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 1 if any(each.lost or each.wrong for each in loads) else 0


if __name__ == "__main__":
    sys.exit(main())
