"""One measurement at a time: the load runs, and /proc says what the contestant used."""

from __future__ import annotations

import contextlib
import json
import select
import time
from dataclasses import dataclass
from pathlib import Path

from bench import traffic
from bench.contestants import Running
from bench.processes import BenchError, Child, start, used
from bench.provide import Tools

SAMPLE_SECONDS = 0.05
"""Between two looks at the resident memory."""
PATIENCE_SECONDS = 240.0
SPREAD_SECONDS = 1.0
"""Streams are opened evenly over this time. Each lasts two seconds: who keeps up has all open after it."""
REST_SECONDS = 4.0
STALL_STREAMS, STALL_BODY_BYTES, STALL_PAUSE_SECONDS = 50, 5_000_000, 0.15

Row = dict[str, float]


@dataclass(frozen=True)
class Bench:
    """What all measurements share."""

    tools: Tools
    folder: Path
    load_core: int
    chunks: int
    gap_seconds: float
    small: Path
    streamed: Path
    native: Path
    large: Path


def prepare(tools: Tools, folder: Path, load_core: int, *, chunks: int, gap_seconds: float) -> Bench:
    """Lay the requests."""
    return Bench(
        tools,
        folder,
        load_core,
        chunks,
        gap_seconds,
        traffic.write_requests(folder / "small", traffic.small(stream=False)),
        traffic.write_requests(folder / "streamed", traffic.small(stream=True)),
        traffic.write_requests(folder / "native", traffic.native()),
        traffic.write_requests(folder / "large", [traffic.large(STALL_BODY_BYTES)]),
    )


class Load:
    """The load generator, once: made ready, let go, and heard."""

    def __init__(
        self, bench: Bench, mode: str, port: int, count: int, milliseconds: int, number: int, texts: Path
    ) -> None:
        command = [str(bench.tools.load), mode, *map(str, (port, count, milliseconds, number)), str(texts)]
        self.child: Child = start("load", command, bench.load_core, bench.folder, talk=True)
        self.peak_bytes = 0
        try:
            self._line()
        except BaseException:
            self.child.stop()
            raise

    def _line(self, watched: Child | None = None) -> str:
        """Wait for its next line, and look at a process's memory meanwhile."""
        stdout = self.child.process.stdout
        assert stdout is not None
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not select.select([stdout], [], [], SAMPLE_SECONDS)[0]:
            if watched is not None:
                self.peak_bytes = max(self.peak_bytes, watched.rss_bytes())
            if time.monotonic() > deadline:
                raise BenchError("the load didn't end")
        line = stdout.readline().decode()
        if not line:
            raise BenchError(f"the load ended early: {self.child.last_words()}")
        return line

    def go(self) -> None:
        """Let it begin."""
        assert self.child.process.stdin is not None
        self.child.process.stdin.write(b"go\n")
        self.child.process.stdin.flush()

    def result(self, watched: Child | None = None) -> Row:
        """Wait for what it found."""
        found: Row = json.loads(self._line(watched))
        return found

    def close(self) -> None:
        """Let it leave, which takes its connections away."""
        with contextlib.suppress(OSError):
            if self.child.process.stdin is not None:
                self.child.process.stdin.close()
        self.child.stop()


class Meter:
    """The CPU time that a contestant uses from now on."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._kernel = child.kernel_seconds()
        self._all = child.cpu_seconds()
        self._exact = child.cpu_exact()

    def read(self) -> tuple[float, float]:
        """Return the seconds, and the share of them that was spent in the kernel."""
        child = self._child
        ticked = child.cpu_seconds()
        seconds = used((self._all, self._exact), (ticked, child.cpu_exact()))
        kernel = child.kernel_seconds() - self._kernel
        return seconds, min(1.0, kernel / (ticked - self._all)) if ticked > self._all else 0.0


def requests(bench: Bench, running: Running, connections: int, seconds: float) -> Row:
    """Ask on kept connections for a while."""
    load = Load(bench, "requests", running.port, connections, round(seconds * 1000), 0, bench.small)
    try:
        meter = Meter(running.child)
        load.go()
        found = load.result()
        cpu, kernel = meter.read()
    finally:
        load.close()
    if not found["whole"]:
        raise BenchError(f"{running.name} answered nothing")
    return {
        "rps": found["whole"] / found["seconds"],
        "cpu_us": cpu / found["whole"] * 1e6,
        "kernel": kernel,
        "busy": cpu / found["seconds"],
        "p50_ms": found["first_p50_us"] / 1000,
        "p99_ms": found["first_p99_us"] / 1000,
        "failed": found["broken"] + found["broken_warm"],
        "rss_mib": running.child.rss_bytes() / 2**20,
    }


def streams(
    bench: Bench,
    running: Running,
    count: int,
    *,
    spread_seconds: float = SPREAD_SECONDS,
    native: bool = False,
) -> Row:
    """Hold many slow streams at once: of server-sent events, or of Ollama's own lines."""
    at_rest, before = running.child.resident_bytes(), running.child.rss_bytes()
    texts = bench.native if native else bench.streamed
    load = Load(bench, "streams", running.port, count, round(spread_seconds * 1000), bench.chunks, texts)
    try:
        meter = Meter(running.child)
        load.go()
        found = load.result(running.child)
        cpu, kernel = meter.read()
        peak = max(load.peak_bytes, running.child.rss_bytes())
    finally:
        load.close()
    if not found["whole"]:
        raise BenchError(f"{running.name} brought no stream to its end")
    return {
        # Of those that arrived: who loses streams shall not look cheap.
        "cpu_us": cpu / found["delivered"] * 1e6,
        "chunks_per_second": found["delivered"] / found["seconds"],
        "kernel": kernel,
        "busy": cpu / found["seconds"],
        "seconds": found["seconds"],
        "ttfb_p50_ms": found["first_p50_us"] / 1000,
        "ttfb_p99_ms": found["first_p99_us"] / 1000,
        "gap_p50_ms": found["gap_p50_us"] / 1000,
        "gap_p99_ms": found["gap_p99_us"] / 1000,
        "gap_max_ms": found["gap_max_us"] / 1000,
        "failed": found["broken"],
        "rest_bytes": at_rest,
        # An upper bound where the contestant fell behind: who hasn't had a first byte takes memory too.
        "open_peak": found["open_peak"],
        "stream_bytes": max(0, peak - before) / max(found["open_peak"], 1),
    }


def rest(bench: Bench, running: Running) -> Row:  # noqa: ARG001 - as the other measurements
    """Watch it while nobody asks for anything."""
    meter, began = Meter(running.child), time.monotonic()
    time.sleep(REST_SECONDS)
    cpu, _ = meter.read()
    return {
        "rest_bytes": running.child.resident_bytes(),
        "idle_ms_per_second": cpu * 1000 / (time.monotonic() - began),
        "failed": 0,
    }


def stall(bench: Bench, running: Running) -> Row:
    """Compare the longest gap of some streams while bodies of 5 MB are posted with that without."""
    alone = streams(bench, running, STALL_STREAMS, spread_seconds=bench.gap_seconds)
    pause = round(STALL_PAUSE_SECONDS * 1000)
    duration = bench.chunks * bench.gap_seconds
    poster = Load(bench, "requests", running.port, 1, round(duration * 1000), pause, bench.large)
    try:
        poster.go()
        with_bodies = streams(bench, running, STALL_STREAMS, spread_seconds=bench.gap_seconds)
        posted = poster.result()
    finally:
        poster.close()
    return {
        "alone_ms": alone["gap_max_ms"],
        "with_bodies_ms": with_bodies["gap_max_ms"],
        "bodies": posted["whole"],
        "failed": posted["broken"] + posted["broken_warm"] + alone["failed"] + with_bodies["failed"],
    }
