"""What a server counts, in the form that Prometheus reads."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class ServerMetrics:
    """The numbers of one server; each server has a registry of its own.

    Attributes:
        requests: Of ``/predict``, by the status of the answer; 499 where the client had gone.
        seconds: How long they took.
        batch_sizes: Images that the network was given at once.
        in_flight: Requests in the making, of ``/predict`` and of the web page.
        queue: Images that wait for the network.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "scalablevit_requests", "Requests of /predict by status.", ["status"], registry=self._registry
        )
        self.seconds = Histogram(
            "scalablevit_request_seconds", "Seconds per request.", buckets=SECONDS, registry=self._registry
        )
        self.batch_sizes = Histogram(
            "scalablevit_batch_size", "Images per batch.", buckets=SIZES, registry=self._registry
        )
        self.in_flight = Gauge("scalablevit_in_flight", "Requests in the making.", registry=self._registry)
        self.queue = Gauge("scalablevit_queue", "Images that wait for the network.", registry=self._registry)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self._registry)
