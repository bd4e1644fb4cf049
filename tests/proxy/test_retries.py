"""What is tried again and what never is: two instances, one of which dies at every moment of a request.

The real proxy over Ollamas whose every byte is the test's.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.proxy.scripted import Asked, ScriptedOllama
from tests.proxy.stage import HEAD, TOKEN, Stage, chunk, stage
from tests.support import eventually_async
from tests.unit.wire.rig import Peer

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@pytest.fixture
async def pair(tmp_path: Path, nvml: Path) -> AsyncIterator[Stage]:
    """Two instances; the model is loaded on one of them."""
    async with stage(tmp_path, nvml, instances=2) as made:
        client, asked, ollama = await sent(made)
        asked.finish(OK)
        await client.until(b"{}")
        client.close()
        assert sum(one.loads.total() for one in made.ollamas) == 1
        made.ollama = ollama
        yield made


async def sent(house: Stage) -> tuple[Peer, Asked, ScriptedOllama]:
    """Send a request; wait for whichever instance gets it."""
    tag = house.tag()
    client = await house.connect()
    client.send(house.chat(tag, stream=False))
    return client, *await arrived(house, tag)


async def arrived(house: Stage, tag: str) -> tuple[Asked, ScriptedOllama]:
    """Wait for the instance that gets this request."""
    found: list[ScriptedOllama] = await eventually_async(
        lambda: [one for one in house.ollamas if tag in one.seen], timeout=20
    )
    return found[0].seen[tag], found[0]


def requests(house: Stage) -> int:
    """Count the requests that reached any instance."""
    return sum(len(one.seen) for one in house.ollamas)


async def test_a_dead_instance_costs_nobody_an_answer(pair: Stage):
    """After a dial error, or on a kept connection that is dead already, the other instance serves."""
    first = pair.ollama
    first.stop()
    tags = [pair.tag() for _ in range(6)]
    clients = [await pair.connect() for _ in tags]
    for client, tag in zip(clients, tags, strict=True):
        client.send(pair.chat(tag, stream=False))
    for client, tag in zip(clients, tags, strict=True):
        asked, ollama = await arrived(pair, tag)
        assert ollama is not first
        asked.finish(OK)
        assert (await client.until(b"{}")).startswith(b"HTTP/1.1 200 ")


async def test_a_kept_connection_that_closes_at_once_is_replaced(pair: Stage):
    """A reused connection closed before any byte: the request goes out once more, on a fresh one."""
    client, asked, ollama = await sent(pair)
    del ollama.seen[asked.tag]
    asked.talk.transport.abort()
    again = await ollama.request(asked.tag)
    again.finish(OK)
    assert (await client.until(b"{}")).startswith(b"HTTP/1.1 200 ")


async def test_a_fresh_connection_that_closes_is_not(pair: Stage):
    """The instance may have begun to work: 502 in the dialect's body, and no second try."""
    held, _, ollama = await sent(pair)
    client, asked, _ = await sent(pair)  # while the kept connection is taken: this one is new
    before = requests(pair)
    asked.talk.transport.abort()
    head, _, body = (await client.until(b"}}")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 502 ")
    assert b"x-drover-error: upstream_closed" in head
    assert b"retry-after: " in head
    assert json.loads(body)["error"]["type"] == "api_error"
    await pair.served()
    assert requests(pair) == before + 1
    held.close()
    assert ollama is pair.ollama


@pytest.mark.parametrize("begun", [b"HTTP/1.1 2", HEAD, HEAD + chunk(TOKEN)], ids=["a byte", "head", "token"])
async def test_nothing_is_tried_again_after_a_byte(pair: Stage, begun: bytes):
    """Any byte of an answer, even of its head, ends what can be tried: no instance sees the request again."""
    client, asked, _ = await sent(pair)
    before = requests(pair)
    asked.send(begun)
    if begun.startswith(HEAD):
        await client.until(b"\r\n\r\n")
    asked.talk.transport.close()
    got = await client.until(lambda got: client.eof or b"}}" in got)
    if begun.startswith(HEAD):
        body = (await client.until_closed()).partition(b"\r\n\r\n")[2]
        assert not body.endswith(b"0\r\n\r\n")
    else:
        assert got.startswith(b"HTTP/1.1 502 ")
    await pair.served()
    assert requests(pair) == before + 1
