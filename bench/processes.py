"""Processes of the benchmark: pinned to a core, watched in /proc, and ended, only those that it started."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
ALL, SYSTEM = (11, 12, 13, 14), (12, 14)
"""Fields behind the name in /proc/PID/stat: utime, stime, and both of ended children."""
COME_UP_SECONDS = 30.0


class BenchError(Exception):
    """The benchmark can't go on, or a contestant can't take part; the message says why."""


def cores() -> tuple[int, int]:
    """Return a core for the load and one for the contestant: no two threads of one where that can be."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise BenchError(
            "the comparison needs two cores, one for the load and one for the contestant; "
            f"this machine lets it use {len(allowed)}"
        )
    siblings = Path(f"/sys/devices/system/cpu/cpu{allowed[0]}/topology/thread_siblings_list")
    shared = listed(siblings.read_text()) if siblings.exists() else {allowed[0]}
    return allowed[0], other_core(allowed, shared)


def other_core(allowed: list[int], shared: set[int]) -> int:
    """Return the first allowed core besides the first that is none of its threads, else the second."""
    return next((core for core in allowed[1:] if core not in shared), allowed[1])


def listed(text: str) -> set[int]:
    """Read a list of CPUs as the kernel writes it: "0-1,4"."""
    found: set[int] = set()
    for part in text.strip().split(","):
        low, _, high = part.partition("-")
        if low:
            found.update(range(int(low), int(high or low) + 1))
    return found


def free_ports(count: int) -> list[int]:
    """Find ports on loopback that nothing listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@dataclass
class Child:
    """One process and its descendants."""

    process: subprocess.Popen[bytes]
    name: str
    log: Path

    @property
    def pid(self) -> int:
        """The process that was started."""
        return self.process.pid

    def pids(self) -> list[int]:
        """Return it and its descendants."""
        found, todo = [], [self.pid]
        while todo:
            pid = todo.pop()
            found.append(pid)
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    todo += map(int, (task / "children").read_text().split())
        return found

    def cpu_seconds(self) -> float:
        """Return user and system time of all its threads and descendants, those that have ended included."""
        return sum(cpu_of(stat) for pid in self.pids() if (stat := _read(f"/proc/{pid}/stat")))

    def kernel_seconds(self) -> float:
        """Return the part of `cpu_seconds` that was spent in the kernel."""
        return sum(cpu_of(stat, SYSTEM) for pid in self.pids() if (stat := _read(f"/proc/{pid}/stat")))

    def cpu_exact(self) -> dict[str, int]:
        """Return nanoseconds on the CPU by living thread: more exact than the ticks above."""
        found = {}
        for pid in self.pids():
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    if text := _read(str(task / "schedstat")):
                        found[task.name] = int(text.split()[0])
        return found

    def rss_bytes(self) -> int:
        """Return the resident memory of it and its descendants."""
        total = 0
        for pid in self.pids():
            if text := _read(f"/proc/{pid}/statm"):
                total += int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return total

    def resident_bytes(self) -> int:
        """Return the same where pages that several of them share count once: slower to tell."""
        found = [_rollup(_read(f"/proc/{pid}/smaps_rollup")) for pid in self.pids()]
        return sum(own for own, _ in found) + max((shared for _, shared in found), default=0)

    def cores(self) -> set[int]:
        """Return the cores on which any of its threads may run."""
        found: set[int] = set()
        for pid in self.pids():
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    found |= os.sched_getaffinity(int(task.name))
        return found

    def stop(self) -> None:
        """End it, politely first."""
        family = self.pids()[1:]
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
        deadline = time.monotonic() + 2
        while not all(map(gone, family)) and time.monotonic() < deadline:
            time.sleep(0.02)
        # What outlived it is in a process group of its own, which only its family is in.
        if not all(map(gone, family)):
            os.killpg(self.pid, signal.SIGKILL)
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                stream.close()

    def last_words(self) -> str:
        """Return the end of what it said on stderr."""
        return self.log.read_text(errors="replace")[-1500:] if self.log.exists() else ""


def gone(pid: int) -> bool:
    """Whether a process has ended; one that waits to be reaped by somebody has."""
    stat = _read(f"/proc/{pid}/stat")
    return not stat or stat.rpartition(")")[2].split()[0] == "Z"


def cpu_of(stat: str, which: tuple[int, ...] = ALL) -> float:
    """Return user and system time in seconds of a line of /proc/PID/stat, with those of ended children."""
    fields = stat.rpartition(")")[2].split()
    return sum(int(fields[i]) for i in which) / TICK


def _rollup(text: str) -> tuple[int, int]:
    """Return the bytes in /proc/PID/smaps_rollup that are a process's own, and those that it shares."""
    sizes = {"Private": 0, "Shared": 0}
    for line in text.splitlines():
        kind, _, rest = line.partition("_")
        if kind in sizes and rest.startswith(("Clean", "Dirty")):
            sizes[kind] += int(rest.split()[1]) * 1024
    return sizes["Private"], sizes["Shared"]


def used(before: tuple[float, Mapping[str, int]], after: tuple[float, Mapping[str, int]]) -> float:
    """Return the CPU seconds between two readings: the exact figure unless a thread has ended meanwhile."""
    if set(before[1]) <= set(after[1]) and after[1]:
        return (sum(after[1].values()) - sum(before[1].values())) / 1e9
    return after[0] - before[0]


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def start(
    name: str,
    command: list[str],
    core: int,
    folder: Path,
    *,
    environment: Mapping[str, str] | None = None,
    talk: bool = False,
    keep: tuple[int, ...] = (),
) -> Child:
    """Start a command on one core; `talk` keeps its input and output for us, `keep` files open for it."""
    log = folder / f"{name}.log"
    pipe = subprocess.PIPE if talk else subprocess.DEVNULL
    with log.open("wb") as err:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            stdin=pipe,
            stdout=pipe if talk else err,
            stderr=err,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            process_group=0,
            pass_fds=keep,
        )
    return Child(process, name, log)


def wait_for(child: Child, ready: Callable[[], bool], seconds: float = COME_UP_SECONDS) -> None:
    """Wait until it serves; when it doesn't, end it and raise BenchError with its last words."""
    deadline = time.monotonic() + seconds
    try:
        while not _is(ready):
            if child.process.poll() is not None or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        else:
            return
    except BaseException:
        child.stop()
        raise
    child.stop()
    raise BenchError(f"{child.name} didn't come up\n{child.last_words()}")


def _is(ready: Callable[[], bool]) -> bool:
    """Ask; whoever doesn't answer isn't ready."""
    with contextlib.suppress(OSError):
        return ready()
    return False
