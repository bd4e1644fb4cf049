"""Answers before the answer: every 1xx, in odd orders, numbers and company."""

from __future__ import annotations

from drover_proxy.wire import Kind
from drover_proxy.wire.limits import INTERIM_ANSWERS

from tests.support import eventually_async
from tests.unit.wire.rig import World, answer, get


async def test_stale_connection_after_an_interim_answer_is_not_retried(world: World):
    """A 1xx shows that the upstream has the request: it isn't sent a second time."""
    client, upstream = await world.again()
    upstream.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")
    await client.until(b"103")
    upstream.close()
    await client.until(b"502")
    assert len(world.origin.peers) == 1
    assert ("failed", 2, "closed", False) in world.handler.story


async def test_http10_knows_none_of_them(world: World):
    """A client of HTTP/1.0 would take a 1xx for its answer."""
    client = await world.client(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    await eventually_async(lambda: bool(world.handler.exchanges))
    client.send(b"{}")
    upstream = await world.origin.request(end=b"{}")
    upstream.send(b"HTTP/1.1 103 Early Hints\r\n\r\n" + answer())
    assert (await client.until_closed()).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_as_many_as_may_come_at_once(world: World):
    """They all go on, and so does the answer."""
    client = await world.client(get())
    upstream = await world.origin.request()
    upstream.send(b"HTTP/1.1 102 Processing\r\n\r\n" * INTERIM_ANSWERS + answer())
    assert (await client.until(b"ok")).count(b" 102 ") == INTERIM_ANSWERS
    assert (await world.outcome()).kind is Kind.COMPLETE


async def test_a_flood_of_them(world: World):
    """It is no answer, however it was cut: one read can bring ten thousand, and they could go on for ever."""
    client = await world.client(get())
    upstream = await world.origin.request()
    one = b"HTTP/1.1 102 Processing\r\n\r\n"
    upstream.send(one * 3)
    await client.until(one * 3)
    upstream.send(one * (INTERIM_ANSWERS - 2) + answer())
    got = await client.until(b"upstream_bad_answer")
    assert got.count(one) == INTERIM_ANSWERS
    assert b"HTTP/1.1 502 " in got
    await upstream.until_closed()
