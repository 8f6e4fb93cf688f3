"""What a server counts, as Prometheus reads it."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Bounds of the histogram of latencies."""
INPUTS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Bounds of the histogram of batches."""


class Metrics:
    """The counts of one server, in a registry of their own, so that one process may have several servers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "glocal_requests", "Requests answered", ["route", "model", "status"], registry=self.registry
        )
        self.latency = Histogram(
            "glocal_request_seconds",
            "From a request's arrival to the end of its response",
            ["route", "model"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.batch_size = Histogram(
            "glocal_batch_size", "Inputs computed together", ["model"], buckets=INPUTS, registry=self.registry
        )
        self.queue_length = Gauge("glocal_queue_length", "Requests that wait", ["model"], registry=self.registry)

    def text(self) -> bytes:
        """Return all counts in Prometheus's text format."""
        return generate_latest(self.registry)
