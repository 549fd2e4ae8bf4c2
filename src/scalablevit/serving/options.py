"""What a server may be told: where it listens, how it gathers batches, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from scalablevit.configuration import check_count


class _Range(NamedTuple):
    low: float
    high: float
    meaning: str


_RANGES = {
    "port": _Range(0, 65535, "a port from 0 (any that is free) to 65535"),
    "batch_wait_ms": _Range(0, 10_000, "milliseconds from 0 to 10000"),
    "timeout_s": _Range(0.001, 3600, "seconds from 0.001 to 3600"),
}


@dataclass(frozen=True, kw_only=True)
class ServingOptions:
    """How a model is served.

    Args:
        host: The address to listen at. 127.0.0.1 is reached from this machine alone, 0.0.0.0 from every network.
        port: The port to listen at; 0: one that is free.
        batch_size: Images that the network is given at once, at most; 1: no batches.
        batch_wait_ms: How long the first image of a batch waits for others, in milliseconds.
        max_bytes: The largest body of a request, in bytes.
        max_pixels: The largest image, in pixels, by its header and after the resize.
        max_in_flight: Requests in the making at once; more are refused.
        timeout_s: How long a request may take, in seconds.
        token: What requests must show as ``Authorization: Bearer ...``; None: nothing.
        page: Whether there is a web page, which needs Gradio.

    Raises:
        ValueError: If a value is not possible.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    batch_size: int = 16
    batch_wait_ms: float = 2.0
    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    max_in_flight: int = 256
    timeout_s: float = 30.0
    token: str | None = field(default=None, repr=False)
    page: bool = True

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_bytes", "max_pixels", "max_in_flight"):
            check_count(name, getattr(self, name))
        for name, (low, high, meaning) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}; it must be {meaning}")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise ValueError("token is empty or has signs that a header cannot hold; give letters, digits and signs")
        if self.token is not None and self.token != self.token.strip():
            raise ValueError("token begins or ends with a space, which headers lose: take it away")
