"""Where drover's time goes while it is measured: py-spy samples it, the functions are summed up.

The sampling disturbs what it looks at: figures of a run with a profile are no figures.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bench.processes import BenchError

RATE = 400
SHOWN = 25


@contextlib.contextmanager
def profile(pid: int, py_spy: Path, core: int, into: Path) -> Iterator[None]:
    """Sample a process until the block ends; lays folded stacks and their summary in `into`."""
    command = ["taskset", "-c", str(core), str(py_spy), "record", "--nonblocking", "--rate", str(RATE)]
    command += ["--format", "raw", "--output", str(into), "--pid", str(pid), "--duration", "600"]
    sampler = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, process_group=0
    )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(sampler.pid, signal.SIGINT)
        try:
            _, words = sampler.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            sampler.kill()
            _, words = sampler.communicate(timeout=5)
    if not into.exists():
        raise BenchError(f"py-spy left no profile: {words.strip()[-300:]}")
    into.with_suffix(".txt").write_text(summary(into.read_text()))


def summary(folded: str) -> str:
    """Return the functions in which most samples ended, and those in which they passed, in per cent."""
    own: Counter[str] = Counter()
    passed: Counter[str] = Counter()
    total = 0
    for line in folded.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [_name(frame) for frame in stack.split(";")]
        total += int(count)
        own[frames[-1]] += int(count)
        for name in set(frames):
            passed[name] += int(count)
    parts = [f"{total} samples"]
    for title, counted in (("itself", own), ("with what it calls", passed)):
        parts.append(f"\n{title}, per cent")
        parts += [f"{count / total * 100:6.1f}  {name}" for name, count in counted.most_common(SHOWN)]
    return "\n".join(parts) + "\n"


def _name(frame: str) -> str:
    """Name a frame by function and file, without the line."""
    function, _, where = frame.partition(" (")
    return f"{function} ({where.partition(':')[0].rstrip(')').rpartition('/')[2]})" if where else function
