"""The proxy beside its peers, in one run and in turns; see docs/explanation/performance.md.

    python -m bench.wire [--quick] [--only drover,nginx] [--connections 64] [--streams 1000] [--ndjson 1000]

Load and upstream share one core, the contestant has another. Prints tables, writes bench/results/wire.json,
and ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

from bench import figures, measure, page
from bench.contestants import STARTERS, Running, start_contestant, start_source
from bench.deployed import INSTANCES, SLOTS
from bench.processes import BenchError, cores
from bench.profiling import profile
from bench.provide import HERE, Tools, describe, provide, versions

CHUNKS, GAP_SECONDS = 100, 0.02
HELD, HELD_CHUNKS, HELD_GAP_SECONDS, HELD_SPREAD_SECONDS = 5000, 36, 0.25, 5.0
"""Streams slow enough for one core, opened slowly enough that all are open for four seconds."""
QUICK_NAMES = ("drover", figures.PURE, "nginx", "go", "vllm-router")
ROUTERS = ("vllm-router", "smg")
"""They know OpenAI's paths and no others."""
JUDGED, MORE_ROUNDS = ("drover", "nginx", "go", "direct"), 6
"""Between whom the bars of a chunk are, and how often more these are measured in a whole run: a chunk's cost
differs by a few per cent among them, and by half from round to round. A quick run has no others' streams."""
STALLED = ("drover", figures.PURE, "nginx", "go", "direct")
FILES = 16_384
"""Open files that 5,000 streams take on both sides, and some."""


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="about a minute: fewer peers, one count each")
    parser.add_argument("--only", type=_names, help=f"contestants, of {', '.join(STARTERS)}")
    parser.add_argument("--connections", type=_numbers, help="counts of connections; 0 for none")
    parser.add_argument("--streams", type=_numbers, help="counts of streams; 0 for none")
    parser.add_argument("--ndjson", type=_numbers, help="counts of streams of Ollama's own; 0 for none")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of each measurement of requests")
    parser.add_argument("--no-stall", action="store_true", help="leave out the bodies of 5 MB")
    parser.add_argument("--held", action=argparse.BooleanOptionalAction, help=f"{HELD} slow streams; idling")
    parser.add_argument("--profile", type=Path, metavar="FOLDER", help="sample drover with py-spy meanwhile")
    parser.add_argument(
        "--record", action="store_true", help="keep it: bench/record.json, and the page's tables"
    )
    parser.add_argument("--output", type=Path, default=HERE / "results" / "wire.json")
    options = parser.parse_args()
    quick = options.quick
    part = quick or options.only or options.connections or options.streams or options.ndjson
    if options.held is None:
        options.held = not part
    options.only = options.only or (list(QUICK_NAMES) if quick else list(STARTERS))
    options.connections = _given(options.connections, [64] if quick else [1, 64, 1000])
    options.streams = _given(options.streams, [1000] if quick else [100, 1000, 5000])
    options.ndjson = _given(options.ndjson, [] if part else [figures.STREAMS])
    options.more = 0 if part or options.rounds else MORE_ROUNDS
    options.rounds = options.rounds or (2 if quick else 3)
    options.seconds = options.seconds or (1.5 if quick else 2.0)
    return options


def _given(chosen: list[int] | None, otherwise: list[int]) -> list[int]:
    return otherwise if chosen is None else [count for count in chosen if count]


def _names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in STARTERS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(STARTERS)}")
    return names


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


class Run:
    """One run of the benchmark."""

    def __init__(self, options: argparse.Namespace, tools: Tools, stack: ExitStack) -> None:
        self.options = options
        self.tools = tools
        self.load_core, self.core = cores()
        # This process looks at memory meanwhile: not on the contestant's core.
        os.sched_setaffinity(0, {self.load_core})
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="drover-bench-")))
        self.bench = measure.prepare(
            tools, self.folder, self.load_core, chunks=CHUNKS, gap_seconds=GAP_SECONDS
        )
        self.source = start_source(tools, self.load_core, self.folder, chunks=CHUNKS, gap_seconds=GAP_SECONDS)
        stack.callback(self.source.child.stop)
        self.stack = stack
        self.rows: dict[str, dict[str, list[measure.Row | None]]] = {}
        self.missing: dict[str, str] = {}
        self.began = time.monotonic()

    def _cell(
        self, name: str, cell: str, work: Callable[[Running], measure.Row], source: Running | None = None
    ) -> None:
        """Measure one contestant once, in a process of its own, so that memory starts from rest."""
        if name in self.missing:
            return
        found: measure.Row | None = None
        source = source or self.source
        running = source
        try:
            if name != "direct":
                running = start_contestant(name, self.tools, source.port, self.core, self.folder)
            with self._profiled(name, cell, running):
                found = work(running)
        except BenchError as error:
            first = name not in self.rows
            print(f"{name} {cell}: {error}", file=sys.stderr)
            if first:
                self.missing[name] = str(error)
                return
        finally:
            if running is not source:
                running.child.stop()
        self.rows.setdefault(name, {}).setdefault(cell, []).append(found)
        words = figures.told(found)
        print(f"{time.monotonic() - self.began:6.1f} s  {name} {cell}: {words}", file=sys.stderr, flush=True)

    def _profiled(self, name: str, cell: str, running: Running) -> AbstractContextManager[None]:
        """Sample drover where that was asked for."""
        folder: Path | None = self.options.profile
        if folder is None or name not in {"drover", figures.PURE}:
            return nullcontext()
        folder.mkdir(parents=True, exist_ok=True)
        into = folder.resolve() / f"{name}-{cell.replace('/', '-')}.folded"
        return profile(running.child.pids()[-1], self.tools.peers / "bin" / "py-spy", self.load_core, into)

    def requests(self) -> None:
        """Measure requests, all contestants in turns, and what the upstream and the load do without any."""
        options = self.options
        names = options.only if options.quick else [*options.only, "direct"]
        for count in options.connections:
            for _ in range(options.rounds):
                for name in names:
                    self._cell(
                        name,
                        f"requests/{count}",
                        partial(measure.requests, self.bench, connections=count, seconds=options.seconds),
                    )

    def streams(self) -> None:
        """Measure streams, all contestants in turns, and what the upstream does without any."""
        options = self.options
        names = [*options.only, "direct"]
        judged = [name for name in names if name in JUDGED]
        if options.quick:
            names = judged
        for count in options.streams:
            # One core can't keep up with the most: that is seen once, and its figures are no headline.
            turns = [names] * (options.rounds if count <= figures.STREAMS else 1)
            if count == figures.STREAMS:
                turns += [judged] * options.more
            for name in chain.from_iterable(turns):
                self._cell(name, f"streams/{count}", partial(measure.streams, self.bench, count=count))

    def ndjson(self) -> None:
        """Measure streams in Ollama's own dialect, where it is known."""
        names = [name for name in [*self.options.only, "direct"] if name not in ROUTERS]
        for count in self.options.ndjson:
            for _ in range(self.options.rounds):
                for name in names:
                    self._cell(
                        name,
                        f"ndjson/{count}",
                        partial(measure.streams, self.bench, count=count, native=True),
                    )

    def held(self) -> None:
        """Hold more streams than a core could feed at 20 ms a chunk: what counts is memory, and failures."""
        chunks, gap = HELD_CHUNKS, HELD_GAP_SECONDS
        folder = self.folder / "held"
        folder.mkdir()
        slow = start_source(self.tools, self.load_core, folder, chunks=chunks, gap_seconds=gap)
        self.stack.callback(slow.child.stop)
        bench = replace(self.bench, chunks=chunks, gap_seconds=gap)
        work = partial(measure.streams, bench, count=HELD, spread_seconds=HELD_SPREAD_SECONDS)
        for name in [*self.options.only, "direct"]:
            self._cell(name, f"held/{HELD}", work, slow)

    def rest(self) -> None:
        """Look at everybody while nothing happens."""
        for name in self.options.only:
            self._cell(name, "rest", partial(measure.rest, self.bench))

    def stall(self) -> None:
        """Measure what large bodies do to others' streams."""
        names = [name for name in STALLED if name in {*self.options.only, "direct"}]
        for _ in range(1 if self.options.quick else self.options.rounds):
            for name in names[:1] if self.options.quick else names:
                self._cell(name, "stall", partial(measure.stall, self.bench))


def main() -> int:
    """Measure, print, write."""
    options = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _raise_files()
    load = os.getloadavg()[0]
    try:
        cores()
        tools = provide(options.only, profile=options.profile is not None)
        with ExitStack() as stack:
            run = Run(options, tools, stack)
            run.requests()
            run.streams()
            run.ndjson()
            if options.held:
                run.held()
                run.rest()
            if not options.no_stall:
                run.stall()
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    python = describe(tools.python)
    rows = figures.compared(run.rows)
    build = tools.drover
    line = figures.final(rows, python, build.kind if build else "", build.why if build else "")
    print(figures.tables(rows, run.missing))
    kind = f"{build.kind}, " if build else ""
    print(f"\ndrover: {kind}{python}; load average before the run: {load:.2f}")
    for bar in figures.missed(line):
        print(bar)
    _write(options, run, tools, line, load)
    if options.record:
        shutil.copyfile(options.output, page.RECORD)
        page.write()
    print(json.dumps(line))
    return 1 if "drover" in run.missing else 0


def _raise_files() -> None:
    """Let this process and its children open as many files as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, FILES)
    if hard != resource.RLIM_INFINITY and hard < wanted and os.geteuid() == 0:
        hard = wanted
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (min(wanted, hard) if hard != resource.RLIM_INFINITY else wanted, hard)
    )


def _write(
    options: argparse.Namespace, run: Run, tools: Tools, line: Mapping[str, object], load: float
) -> None:
    """Lay the record: figures and the class of machine, no names of hosts and no paths."""
    cpu = next(
        (
            row.partition(":")[2].strip()
            for row in Path("/proc/cpuinfo").read_text().splitlines()
            if row.startswith("model name")
        ),
        platform.machine(),
    )
    record = {
        "date": dt.datetime.now(dt.timezone.utc).date().isoformat(),
        "quick": options.quick,
        "machine": {
            "cpu": cpu,
            "cores": os.cpu_count(),
            "kernel": platform.release().split("-")[0],
            "load_before": round(load, 2),
        },
        "setting": {
            "chunks": CHUNKS,
            "gap_seconds": GAP_SECONDS,
            "instances": INSTANCES,
            "slots": SLOTS,
            "rounds": options.rounds,
            "more_rounds": options.more,
            "seconds": options.seconds,
        },
        "versions": versions(tools, [name for name in options.only if name not in run.missing]),
        "missing": {name: reason.splitlines()[0] for name, reason in run.missing.items()},
        "figures": figures.record(figures.compared(run.rows)),
        "final": line,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
