"""Every moment at which a client can leave, every way to do so, every dialect: at random, and nothing leaks.

MATRIX_REPEAT says how many cases are run (`make matrix REPEAT=2000`); without it each combination runs once.
The real proxy, over an Ollama whose every byte is scripted.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.proxy import probed
from tests.proxy.desk import Desk, opened
from tests.proxy.matrix import Case, combinations, in_the_answer, run_all
from tests.proxy.rig import Rig

SLOTS = 2
AT_ONCE_SECONDS = 0.05
"""The promise. It is held against the median, since this machine may be busy with other things."""
LATE_SECONDS = 1.0
REPEAT = int(os.environ.get("MATRIX_REPEAT", "0")) or len(combinations())
SEED = int(os.environ.get("MATRIX_SEED", "1"))
SECONDS = 120 + REPEAT // 4


@pytest.fixture
async def desk(tmp_path: Path, nvml: Path) -> AsyncIterator[Desk]:
    """The proxy over a scripted Ollama."""
    async with opened(tmp_path, nvml, slots=SLOTS) as made:
        yield made


def metric(page: str, name: str) -> float:
    """Add up a metric's samples."""
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in page.splitlines()
        if line.startswith((name + "{", name + " "))
    )


def sockets(rig: Rig) -> int:
    """Count the proxy's descriptors."""
    assert rig.proxy is not None
    return len(list(Path(f"/proc/{rig.proxy.pid}/fd").iterdir()))


class Books:
    """What the proxy holds at a moment when no client is there."""

    def __init__(self, desk: Desk) -> None:
        rig = desk.rig
        self.objects = probed.ask(rig.window)
        self.descriptors = sockets(rig)
        page = rig.admin("/metrics").text
        self.requests = metric(page, "drover_requests_total")
        self.outcomes = metric(page, "drover_outcomes_total")
        self.connections = metric(page, "drover_connections")
        self.state = rig.admin("/drover/v1/state").json()
        self.sent = desk.requests
        self.upstream = len(desk.ollama.talks)


def differences(before: Books, now: Books) -> list[str]:
    """Say what is there now that wasn't before."""
    core = now.state["core"]
    grown = {
        name: (before.objects[name], now.objects[name])
        for name in now.objects
        if name not in {"UpstreamConnection", "held_bytes"} and now.objects[name] > before.objects[name]
    }
    idle = now.objects["UpstreamConnection"]
    checks = {
        f"objects {grown}": not grown,
        f"{idle} upstream connections, {now.upstream} at Ollama's end": idle <= now.upstream,
        f"descriptors {before.descriptors} {now.descriptors}": now.descriptors - idle
        <= before.descriptors - before.objects["UpstreamConnection"] + 1,
        f"{now.connections} client connections": now.connections <= before.connections,
        f"requests {now.requests - before.requests} of {now.sent - before.sent}": now.requests
        - before.requests
        == now.sent - before.sent,
        f"outcomes {now.outcomes} of {now.requests}": now.outcomes == now.requests,
        f"waiting {core['waiting']}, in flight {core['in_flight']}": not core["waiting"]
        and not core["in_flight"],
        f"active {[r for r in core['runners'] if r['active']]}": not any(
            r["active"] for r in core["runners"]
        ),
        f"contradictions {now.state['contradictions']}": now.state["contradictions"] == "",
    }
    return [what for what, good in checks.items() if not good]


async def warm(desk: Desk) -> None:
    """Have every lane's model loaded."""
    for number, lane in enumerate(desk.lanes):
        _, dialect, way = combinations()[0]
        await Case(desk, -1 - number, in_the_answer, dialect, way, lane).served(f"w{number}")


@pytest.mark.timeout(SECONDS)
async def test_whoever_leaves_leaves_nothing(desk: Desk) -> None:
    """Ollama's end is closed at once, loads go on, slots are free again, and the books are as before."""
    await warm(desk)
    before = await asyncio.to_thread(Books, desk)
    began = time.monotonic()

    await asyncio.wait_for(run_all(desk, REPEAT, SEED), SECONDS - 60)

    seconds = time.monotonic() - began
    now = await asyncio.to_thread(Books, desk)
    for _ in range(40):
        if not differences(before, now):
            break
        await asyncio.sleep(0.25)
        now = await asyncio.to_thread(Books, desk)
    assert differences(before, now) == []
    report(desk, seconds)
    assert desk.ollama.most_active == SLOTS, "a request was sent before the one in its slot had stopped"
    for moment, latencies in desk.latencies.items():
        assert statistics.median(latencies) <= AT_ONCE_SECONDS, moment
        assert max(latencies) <= LATE_SECONDS, moment
    log = desk.rig.log.read_text()
    assert not [line for line in log.splitlines() if '"level":"error"' in line.replace(" ", "")]


def report(desk: Desk, seconds: float) -> None:
    """Print what was measured; one line of JSON."""
    shown = {"left": desk.left, "requests": desk.requests, "seconds": round(seconds, 1), "seed": SEED}
    for moment, latencies in sorted(desk.latencies.items()):
        ordered = sorted(latencies)
        figures = [ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100], ordered[-1]]
        shown[moment] = {"cases": len(ordered), "p50_p99_max_ms": [round(1000 * x, 2) for x in figures]}
    print(json.dumps(shown))
