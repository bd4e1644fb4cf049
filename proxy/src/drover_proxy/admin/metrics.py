"""Counters as plain integers, so that counting costs next to nothing."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter

SHORT = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
    120.0,
    300.0,
)
LONG = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Histogram:
    """A histogram of seconds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Return the cumulative buckets as Prometheus wants them."""
        running = 0
        rows: list[tuple[str, float]] = []
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            running += count
            rows.append((bound, running))
        return rows


class Metrics:
    """Everything that is counted."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.served: Counter[tuple[str, str, str, int, str]] = Counter()
        """Requests that have ended, by dialect, route, model, status and kind of end."""
        self.errors: Counter[str] = Counter()
        """Answers that the proxy itself made an error, by X-Drover-Error."""
        self.alerts: Counter[str] = Counter()
        self.loads: Counter[tuple[str, str]] = Counter()
        """By instance and outcome."""
        self.unloads: Counter[tuple[str, str]] = Counter()
        self.bytes_in = 0
        self.bytes_out = 0
        self.queue_wait = Histogram(SHORT)
        self.first_byte = Histogram(SHORT)
        self.duration = Histogram(SHORT)
        self.load_duration = Histogram(LONG)
        self.reload_ok = True
        self.keys_ok = True
        """The keys file as it was last read is in force."""
        self.tls_failures: Counter[str] = Counter()
        """Handshakes, by OpenSSL's reason."""
        self.tls_ok = True
        """As keys_ok, for the files that `tls` names."""
        self.reloaded_at = time.time()
