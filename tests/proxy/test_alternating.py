"""Models that by turns fit together and don't, hundreds of loads long: Ollama itself never has to evict.

Over the simulated Ollama, and over a real one of 0.30 or later where OLLAMA_BIN names it: its own scheduler
then decides over the stand-in runner and two invented GPUs. ALTERNATING_LOADS says how many loads are made.
"""

from __future__ import annotations

import asyncio
import collections
import os
import random
import re
import time

import httpx
import pytest

from tests.proxy.rig import EMBED, GIB, KEYS, MIDDLE, OTHER, SMALL
from tests.support import eventually

TINY, GEMMA, LARGE, MISTRAL = "qwen2.5:0.5b", "gemma3:4b", "phi4:14b", "mistral:7b"
GENERATING = (TINY, SMALL, GEMMA, MISTRAL, OTHER, MIDDLE, LARGE)
LOADS = int(os.environ.get("ALTERNATING_LOADS", "60" if "OLLAMA_BIN" in os.environ else "120"))
CLIENTS = 6
PATIENCE_SECONDS = 60.0
"""Nobody waits longer than this: each load takes a second or two, and there are two GPUs."""
FORBIDDEN = (
    "runner_vanished",
    "load_spilled",
    "runner_spilled",
    "load_failed",
    "unload_failed",
    "core_error",
)
EVICTED = re.compile(r"predicted to exceed|max runners achieved|evicting all other|evict_all=true")


async def ask(client, dice, waits):
    """Send one request to some model, most often to one of two that are in favour just now."""
    now = int(time.monotonic() / 5)
    favoured = [GENERATING[now % len(GENERATING)], GENERATING[(3 * now + 1) % len(GENERATING)]]
    model = dice.choice([*favoured, *favoured, *GENERATING, EMBED])
    body = (
        {"model": model, "input": "a"} if model == EMBED else {"model": model, "prompt": "a", "stream": False}
    )
    began = time.monotonic()
    answer = await client.post("/api/embed" if model == EMBED else "/api/generate", json=body)
    waits.append(time.monotonic() - began)
    return answer.status_code


async def alternate(rig, seed):
    """Let clients ask until there have been enough loads; returns how they were answered, and the waits."""
    ended, waits = collections.Counter(), []
    headers = {"authorization": f"Bearer {KEYS['use']}"}

    async def behave(number):
        dice = random.Random(seed * 100 + number)
        async with httpx.AsyncClient(
            base_url=rig.url, headers=headers, timeout=120, trust_env=False
        ) as client:
            while len(rig.lines("load_finished")) < LOADS:
                ended[await ask(client, dice, waits)] += 1

    await asyncio.gather(*(behave(number) for number in range(CLIENTS)))
    return ended, waits


@pytest.mark.timeout(180 + 4 * LOADS)
@pytest.mark.parametrize("seed", [1])
def test_ollama_never_evicts(make_rig, seed):
    """Many loads of eight models on two GPUs: nothing vanishes, nothing spills, nobody waits for long."""
    rig = make_rig(
        gpu_bytes=(11 * GIB, 14 * GIB),
        models=(*GENERATING, EMBED),
        slots=2,
        knobs={"load_seconds_min": 0.05, "disk_bytes_per_second": 1e11, "answer_tokens": 4},
    ).start()
    ended, waits = asyncio.run(alternate(rig, seed))
    loads, unloads = rig.lines("load_finished"), rig.lines("unload_started")
    logs = "".join((rig.folder / f"ollama{index}.log").read_text(errors="replace") for index in range(2))
    beside = logs.count("fits alongside existing models")
    print(
        f"{len(loads)} loads, {beside} of them beside others, {len(unloads)} unloads, longest wait "
        f"{max(waits):.1f} s, {len(waits)} requests"
    )

    assert ended.keys() == {200}, ended
    assert {event: rig.lines(event)[:3] for event in FORBIDDEN if rig.lines(event)} == {}
    assert max(waits) < PATIENCE_SECONDS
    assert not EVICTED.search(logs), EVICTED.search(logs)
    assert beside > LOADS / 10
    assert all(load["size_bytes"] == load["size_vram_bytes"] for load in loads)
    assert len(unloads) > LOADS / 2
    eventually(rig.idle, timeout=20)
    assert rig.admin("/drover/v1/state").json()["contradictions"] == ""
