"""Processes of a lab: recorded by id and start time, checked to be ours before anything is done to them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class ProcessRecord:
    """A process that can't be mistaken for another one that got the same id later."""

    pid: int
    start_ticks: int

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        return start_ticks(self.pid) == self.start_ticks

    def save(self, path: Path) -> None:
        """Write the record to a file."""
        path.write_text(json.dumps({"pid": self.pid, "start_ticks": self.start_ticks}) + "\n")


def record(pid: int) -> ProcessRecord | None:
    """Return the record of a running process."""
    ticks = start_ticks(pid)
    return None if ticks is None else ProcessRecord(pid, ticks)


def read_record(path: Path) -> ProcessRecord | None:
    """Return the record in a file if its process still runs."""
    try:
        found = ProcessRecord(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return found if found.alive else None


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None when it is gone or a zombie."""
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def command_line(pid: int) -> list[str]:
    """Return the command line of a process; empty when it is gone."""
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def children(pid: int) -> list[int]:
    """Return the ids of a process's children."""
    try:
        return [
            int(child) for child in (PROC / str(pid) / "task" / str(pid) / "children").read_text().split()
        ]
    except OSError:
        return []


def find(*words: str) -> list[ProcessRecord]:
    """Return the running processes whose command line has every one of these words as an argument."""
    found = []
    for entry in PROC.iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            there = command_line(int(entry.name))
            if all(word in there for word in words) and (process := record(int(entry.name))):
                found.append(process)
    return found


def kill(process: ProcessRecord, number: signal.Signals = signal.SIGKILL) -> None:
    """Signal a process if it is still the one that was recorded."""
    if process.alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def gone(processes: list[ProcessRecord], within_seconds: float) -> bool:
    """Wait until none of the processes runs any more; whether that came in time."""
    deadline = time.monotonic() + within_seconds
    while any(process.alive for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
