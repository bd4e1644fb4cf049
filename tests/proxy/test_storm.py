"""A storm: many clients that come and go at random, over models that don't fit together."""

from __future__ import annotations

import asyncio
import collections
import random

import httpx
import pytest

from tests.proxy.rig import EMBED, GIB, KEYS, MIDDLE, OTHER, SMALL
from tests.support import eventually

CLIENTS, REQUESTS = 40, 6


async def one(client, dice, ended):
    """Send one request, and leave it at some moment, or hear it to its end."""
    model = dice.choice([SMALL, SMALL, MIDDLE, OTHER])
    messages = [{"role": "user", "content": "a"}]
    path, body = dice.choice(
        [
            ("/api/chat", {"model": model, "messages": messages}),
            ("/api/generate", {"model": model, "prompt": "a", "stream": False}),
            ("/v1/chat/completions", {"model": model, "messages": messages, "stream": True}),
            ("/v1/messages", {"model": model, "messages": messages, "max_tokens": 9, "stream": True}),
            ("/api/embed", {"model": EMBED, "input": "a"}),
        ]
    )
    patience = dice.choice([0.02, 0.3, 30, 30, 30])
    try:
        async with asyncio.timeout(patience):
            answer = await client.post(path, json=body)
            ended[answer.status_code] += 1
    except TimeoutError:
        ended["left"] += 1


async def storm(url, seed):
    """Let the clients loose; returns how the requests ended."""
    ended = collections.Counter()
    headers = {"authorization": f"Bearer {KEYS['use']}"}

    async def behave(number):
        dice = random.Random(seed * 1000 + number)
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
            for _ in range(REQUESTS):
                await one(client, dice, ended)

    await asyncio.gather(*(behave(number) for number in range(CLIENTS)))
    return ended


@pytest.mark.timeout(120)
def test_after_a_storm_all_is_in_order(make_rig):
    """Every request is answered or was left; then nothing waits, nothing is held, and the books agree."""
    rig = make_rig(gpu_bytes=(10 * GIB, 13 * GIB), slots=2, knobs={"answer_tokens": 20}).start()
    ended = asyncio.run(storm(rig.url, seed=1))

    assert sum(ended.values()) == CLIENTS * REQUESTS
    assert ended.keys() <= {200, "left"}, ended
    assert ended[200] > CLIENTS
    eventually(rig.idle, timeout=10)
    shown = rig.admin("/drover/v1/state").json()
    assert shown["contradictions"] == ""
    assert shown["core"]["waiting"] == 0
    assert not rig.lines("core_error")
    assert not rig.lines("task_error")
    assert not rig.lines("internal_error")
    for entries in shown["runners_listed"].values():
        assert all(entry["size"] == entry["size_vram"] for entry in entries)
    eventually(lambda: rig.admin("/metrics").text.count("drover_connections ") and idle_wire(rig), timeout=10)


def idle_wire(rig):
    """Whether no client's connection is left but the one that asks."""
    lines = rig.admin("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("drover_connections ")) <= 1
