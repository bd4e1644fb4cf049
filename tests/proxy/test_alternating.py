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
from typing import NamedTuple

import httpx
import pytest

from tests.proxy.rig import EMBED, GIB, KEYS, MIDDLE, OTHER, SMALL, real_ollama
from tests.support import eventually, free_port

TINY, GEMMA, LARGE, MISTRAL = "qwen2.5:0.5b", "gemma3:4b", "phi4:14b", "mistral:7b"
WIDE = "qwen2.5:32b"
GENERATING = (TINY, SMALL, GEMMA, MISTRAL, OTHER, MIDDLE, LARGE)
LOADS = int(os.environ.get("ALTERNATING_LOADS", "60" if real_ollama() else "120"))
CLIENTS = 6
QUEUE = {"queue": {"starve_seconds": 5}}
QUICK = {"load_seconds_min": 0.05, "disk_bytes_per_second": 1e11, "answer_tokens": 4}
PATIENCE_LOADS = 25
"""Nobody waits while so many loads are made: on a busy machine each takes longer, and so does a wait."""
FORBIDDEN = (
    *("runner_vanished", "load_spilled", "runner_spilled", "load_failed", "unload_failed", "memory_late"),
    "core_error",
)
EVICTED = re.compile(r"predicted to exceed|max runners achieved|evicting all other|evict_all=true")


class Wait(NamedTuple):
    """How long a client waited for its answer."""

    loads: int
    seconds: float


async def ask(client, dice, models):
    """Send one request to some model, most often to one of two that are in favour just now."""
    now = int(time.monotonic() / 5)
    favoured = [models[now % len(models)], models[(3 * now + 1) % len(models)]]
    model = dice.choice([*favoured, *favoured, *models, EMBED])
    body = (
        {"model": model, "input": "a"} if model == EMBED else {"model": model, "prompt": "a", "stream": False}
    )
    answer = await client.post("/api/embed" if model == EMBED else "/api/generate", json=body)
    return answer.status_code


async def alternate(rig, models, loads):
    """Let clients ask until there have been enough loads; returns how they were answered, and the waits."""
    ended, waits = collections.Counter(), []
    headers = {"authorization": f"Bearer {KEYS['use']}"}

    async def behave(number):
        dice = random.Random(number)
        async with httpx.AsyncClient(
            base_url=rig.url, headers=headers, timeout=120, trust_env=False
        ) as client:
            made = len(rig.lines("load_finished"))
            while made < loads and ended.keys() <= {200}:
                before, began = made, time.monotonic()
                ended[await ask(client, dice, models)] += 1
                seconds = time.monotonic() - began
                made = len(rig.lines("load_finished"))
                waits.append(Wait(made - before, seconds))

    await asyncio.gather(*(behave(number) for number in range(CLIENTS)))
    return ended, waits


def judge(rig, ended, waits, *, beside_at_least):
    """Nothing has vanished or spilled, Ollama evicted nobody, all were answered in time."""
    loads, unloads = rig.lines("load_finished"), rig.lines("unload_started")
    logs = "".join(path.read_text(errors="replace") for path in rig.folder.glob("ollama*.log"))
    beside = logs.count("fits alongside existing models")
    longest, patience = max(wait.seconds for wait in waits), max(wait.loads for wait in waits)
    print(
        f"{len(loads)} loads, {beside} of them beside others, {len(unloads)} unloads, longest wait "
        f"{longest:.1f} s and {patience} loads, {len(waits)} requests"
    )
    assert ended.keys() == {200}, ended
    assert {event: rig.lines(event)[:3] for event in FORBIDDEN if rig.lines(event)} == {}
    assert patience < PATIENCE_LOADS
    assert not EVICTED.search(logs), EVICTED.search(logs)
    assert beside >= beside_at_least
    assert all(load["size_bytes"] == load["size_vram_bytes"] for load in loads)
    assert len(unloads) > len(loads) / 2
    eventually(rig.idle, timeout=60)
    assert rig.admin("/drover/v1/state").json()["contradictions"] == ""


@pytest.mark.timeout(180 + 4 * LOADS)
def test_ollama_never_evicts(make_rig):
    """Many loads of eight models on two GPUs: nothing vanishes, nothing spills, nobody waits for long."""
    rig = make_rig(
        gpu_bytes=(11 * GIB, 14 * GIB), models=(*GENERATING, EMBED), slots=2, knobs=QUICK, extra=QUEUE
    ).start()
    judge(rig, *asyncio.run(alternate(rig, GENERATING, LOADS)), beside_at_least=LOADS / 10)


@pytest.mark.timeout(180 + 2 * LOADS)
def test_with_an_instance_over_both_gpus(make_rig):
    """A model that needs both GPUs takes turns with those that need one: room is made on both."""
    models = (TINY, SMALL, MIDDLE, WIDE)
    rig = make_rig(gpu_bytes=(14 * GIB, 14 * GIB), models=(*models, EMBED), slots=2, knobs=QUICK, extra=QUEUE)
    rig.instance_ports.append(free_port())
    names = (("gpu0", ["GPU-0"]), ("gpu1", ["GPU-1"]), ("both", ["GPU-0", "GPU-1"]))
    rig.write_config(
        instances=[
            {"name": name, "url": f"http://127.0.0.1:{port}", "gpus": gpus, "slots": 2, "context": 4096}
            for (name, gpus), port in zip(names, rig.instance_ports, strict=True)
        ]
    )
    rig.environment |= {"OLLAMA_CONTEXT_LENGTH": "4096", "CUDA_VISIBLE_DEVICES": "GPU-0,GPU-1"}
    rig.start_instance(2)
    del rig.environment["CUDA_VISIBLE_DEVICES"]
    rig.start()
    judge(rig, *asyncio.run(alternate(rig, models, LOADS // 3)), beside_at_least=0)
    assert {load["instance"] for load in rig.lines("load_finished")} == {"gpu0", "gpu1", "both"}
