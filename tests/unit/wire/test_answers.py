"""Answers that mean something for the connections they go over, and last answers that have to arrive."""

from __future__ import annotations

import time

import pytest
from drover_proxy.wire import Kind, Limits
from drover_proxy.wire.limits import LINGER_SECONDS

from tests.support import eventually_async
from tests.unit.wire.rig import FAST, STREAM_HEAD, World, answer, chunk, get, post


@pytest.mark.parametrize(
    ("request_", "reply"),
    [
        (get(), answer(extra=b"Connection: close\r\n")),
        (get(), answer(extra=b"Connection: x, Close\r\nX: y\r\n")),
        (get(), answer(extra=b"Connection: x\r\nConnection: close\r\n")),
        (get(), b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"),
        (get(), b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok"),
        (get(), b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"),
        (b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", answer()),
        (b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", STREAM_HEAD + chunk(b"ok")),
        (get(), b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok"),
        (get(), b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\nok"),
        (get(), answer() + answer(b"another")),
    ],
)
async def test_a_connection_that_is_not_to_be_used_again(world: World, request_: bytes, reply: bytes):
    """Because the upstream says so, or since more came than its answer: the next request goes over another.

    The client's own connection stays, and it is told nothing of the other's end.
    """
    client = await world.client(request_)
    upstream = await world.origin.request()
    upstream.send(reply)
    await world.outcome()
    await upstream.until_closed()
    got = await client.until(b"\r\n\r\n")
    assert b"close" not in got.lower()
    client.take()
    client.send(get(b"/next"))
    fresh = await world.origin.request(1, end=b"/next")
    fresh.send(answer(b"next"))
    assert await client.until(b"next") == answer(b"next")


async def test_a_connection_that_was_paused_for_one_client_serves_another(world: World):
    """Where the end of an answer fills a slow client's buffers, the connection it came over is read on."""
    slow = await world.client()
    slow.transport.pause_reading()
    for number in range(1000):
        slow.send(get())
        upstream = await world.origin.request()
        upstream.take()
        upstream.send(answer(b"x" * 60_000))
        await world.outcome(number + 1)
        if world.handler.exchanges[0].connection.write_paused:
            break
    assert world.handler.exchanges[0].connection.write_paused
    other = await world.client(get(b"/other"))
    await upstream.until(b"/other")
    upstream.send(answer(b"other"))
    await other.until(b"other")
    assert len(world.origin.peers) == 1


@pytest.mark.parametrize("said", [b"", b"date: Sat, 21 Nov 2026 12:00:00 GMT\r\n", b"Date: yesterday\r\n"])
async def test_an_answer_has_a_date(world: World, said: bytes):
    """Its upstream's own, or else that of its arrival; never two."""
    client = await world.client(get())
    (await world.origin.request()).send(b"HTTP/1.1 200 OK\r\n%bContent-Length: 0\r\n\r\n" % said)
    got = await client.until(b"\r\n\r\n")
    assert got.lower().count(b"\r\ndate: ") == 1
    assert said in got


async def test_no_chunks_for_http10(world: World):
    """A client of HTTP/1.0 would take chunks for the content: it gets an error in their place."""
    client = await world.client(b"GET / HTTP/1.0\r\n\r\n")
    upstream = await world.origin.request()
    upstream.send(STREAM_HEAD + chunk(b"token"))
    got = await client.until_closed()
    assert got.startswith(b"HTTP/1.1 502 ")
    assert b"token" not in got
    await upstream.until_closed()
    assert (await world.outcome()).kind is Kind.UPSTREAM_FAILED


async def test_a_last_answer_reaches_a_client_that_still_sends():
    """A body that is refused is read on for a while: closing at once would destroy the answer on its way."""
    async with World(Limits(body_bytes=1000, **FAST)) as world:
        client = await world.client(post(b"x" * 3_000_000))
        got = await client.until_closed()
        assert got.startswith(b"HTTP/1.1 413 ")
        assert got.endswith(b"}")
        assert client.error is None
        client.close()


async def test_lingering_has_an_end():
    """Who neither reads nor goes after its last answer is cut off."""
    async with World(Limits(body_bytes=1000, **FAST)) as world:
        client = await world.client(post(b"x" * 3_000)[:2_000])
        await client.until(b"413")
        await world.passes(0.05)
        assert world.server.connections
        world.server.clock = lambda: time.monotonic() + LINGER_SECONDS
        await eventually_async(lambda: not world.server.connections)
