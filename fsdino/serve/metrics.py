"""Numbers for Prometheus: what was asked, how long it took, who waits, how much is kept."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector


class Metrics:
    """The counters of one service; a registry of their own lets a process have several services."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # Resident memory, open files and processor time of the process, where the kernel tells.
        ProcessCollector(registry=self.registry)
        labels = ("method", "route")
        self.requests = Counter("fsdino_requests", "Requests answered", (*labels, "status"), registry=self.registry)
        self.seconds = Histogram("fsdino_request_seconds", "Time of a request", labels, registry=self.registry)
        self.images = Counter("fsdino_images", "Images segmented", ("model",), registry=self.registry)
        self.remembered = Counter("fsdino_remembered", "Memories made", ("model",), registry=self.registry)
        # Set by functions, which are asked whenever the numbers are read.
        self.waiting = Gauge("fsdino_waiting", "Requests that wait for a model", ("model",), registry=self.registry)
        self.loaded = Gauge("fsdino_loaded", "Memories held ready", ("model",), registry=self.registry)
        self.memories = Gauge("fsdino_memories", "Memories in the folder", registry=self.registry)
