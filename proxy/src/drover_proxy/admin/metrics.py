"""Counters as plain integers, so that counting costs next to nothing."""

from __future__ import annotations

import time
from collections import Counter
from typing import NamedTuple

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
        index = 0
        for bound in self.bounds:  # most are among the first
            if seconds <= bound:
                break
            index += 1
        self.counts[index] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Return the cumulative buckets as Prometheus wants them."""
        running = 0
        rows: list[tuple[str, float]] = []
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            running += count
            rows.append((bound, running))
        return rows


class Ended(NamedTuple):
    """By what the requests that have ended are told apart."""

    dialect: str
    route: str
    model: str
    status: int
    kind: str


class Tally:
    """A count that whoever counts holds on to: no look-up, and no hash, for every request."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Metrics:
    """Everything that is counted."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.served: dict[Ended, Tally] = {}
        """Requests that have ended."""
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

    def tally(self, ended: Ended) -> Tally:
        """Return where requests of this kind are counted."""
        return self.served.setdefault(ended, Tally())
