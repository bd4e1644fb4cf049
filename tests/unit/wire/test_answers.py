"""Answers that mean something for the connections they go over, and last answers that have to arrive."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest
from drover_proxy.wire import Kind, Limits
from drover_proxy.wire.limits import LINGER_SECONDS, PIPELINED_BYTES

from tests.support import eventually_async
from tests.unit.wire.rig import END, FAST, STREAM_HEAD, World, answer, chunk, get, post


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


async def test_an_answer_before_its_request_is_out(world: World):
    """An upstream that takes no more of a body would let the next request wait behind it."""
    client = await world.client(post(b"x" * 30_000_000))
    upstream = await world.origin.request()
    upstream.transport.pause_reading()
    upstream.send(answer(b"early"))
    await client.until(b"early")
    client.send(get(b"/next"))
    (await world.origin.request(1, end=b"/next")).send(answer(b"next"))
    await client.until(b"next")


@pytest.mark.parametrize("behind", [b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r", b"\r\n\r\n"])
@pytest.mark.parametrize("cut", range(5))
async def test_line_ends_behind_an_answer(world: World, behind: bytes, cut: int):
    """They are no part of it, however it was cut: the next answer would seem to begin with them."""
    client = await world.client(post())
    upstream = await world.origin.request(end=b"{}")
    rest = b"0\r\n\r\n"
    pieces = [STREAM_HEAD, b"5;a=b\r\ntoken\r\n" + rest[:cut], rest[cut:] + behind]
    for number, piece in enumerate(pieces):
        upstream.send(piece)
        if number < 2:
            await client.until(piece)
    assert END not in await client.until_closed()
    assert (await world.outcome()).kind is Kind.UPSTREAM_BROKEN


@pytest.mark.parametrize("cut", range(len(b"5;a=b\r\ntoken\r\n0\r\n\r\n")))
async def test_an_end_in_two_pieces(world: World, cut: int):
    """Wherever it is cut, it is the end: the connection is kept."""
    whole = b"5;a=b\r\ntoken\r\n0\r\n\r\n"
    client = await world.client(post())
    upstream = await world.origin.request(end=b"{}")
    upstream.send(STREAM_HEAD + whole[:cut])
    await client.until(STREAM_HEAD + whole[:cut])
    upstream.send(whole[cut:])
    await client.until(STREAM_HEAD + whole)
    assert (await world.outcome()).kind is Kind.COMPLETE
    assert len(world.upstream.pool.idle) == 1


@pytest.mark.parametrize("status", [b"103 Early Hints", b"204 No Content"])
async def test_no_length_where_there_is_no_body(world: World, status: bytes):
    """A client that believes it would wait for a body, or take its next answer for one (RFC 9110, 8.6)."""
    client = await world.client(get())
    upstream = await world.origin.request()
    upstream.send(b"HTTP/1.1 %b\r\nContent-Length: 5\r\nX-A: b\r\n\r\n" % status)
    got = await client.until(b"\r\n\r\n")
    assert b"X-A: b" in got
    assert b"content-length" not in got.lower()
    if status.startswith(b"1"):
        upstream.send(answer())
        await client.until(b"ok")


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


async def slowly(address: str, sent: bytes) -> int:
    """Ask, then go on asking without end while the answer is read slowly; return how much of it came."""

    def read() -> int:
        got = 0
        host, port = address.split(":")
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
            sock.settimeout(20)
            sock.connect((host, int(port)))
            sock.sendall(sent)
            while piece := sock.recv(65_536):
                got += len(piece)
                try:
                    sock.send(get(b"/again"), socket.MSG_DONTWAIT)
                except OSError:
                    continue
        return got

    return await asyncio.to_thread(read)


@pytest.mark.parametrize("why", ["too far ahead", "draining", "broken"])
async def test_an_answer_reaches_a_client_that_asks_on(world: World, why: str):
    """Closing while requests behind it are unread would be a reset, which destroys what is on its way."""
    many = 1 + (PIPELINED_BYTES // len(get(b"/again")) if why == "too far ahead" else 1)
    behind = get(b"/again") * many
    reading = asyncio.create_task(slowly(world.address, get() + behind))
    upstream = await world.origin.request()
    world.server.draining = why == "draining"
    (connection,) = world.server.connections
    await eventually_async(lambda: connection._surplus or len(connection._buffer) >= len(behind))
    said = b"connection: close\r\n" if connection._surplus or world.server.draining else b""
    whole = answer(b"x" * 6_000_000)
    if why == "broken":
        upstream.send(whole[:-1])
        upstream.close()
        assert await reading == len(whole) - 1
    else:
        upstream.send(whole)
        assert await reading == len(whole) + len(said)
    await world.outcome()


async def test_lingering_begins_when_all_is_written(world: World):
    """Who reads an answer slowly isn't cut off in it, and has its moment once it was given all."""
    body = b"x" * 30_000_000
    world.handler.on_ready = lambda ex: ex.respond(200, [], body)
    world.server.draining = True
    client = await world.client()
    client.transport.pause_reading()
    client.send(get() + get(b"/behind"))
    await world.outcome()
    world.server.clock = lambda: time.monotonic() + 2 * LINGER_SECONDS
    await world.passes(0.1)
    client.transport.resume_reading()
    assert (await client.until_closed()).endswith(body)
    assert world.server.connections
    world.server.clock = lambda: time.monotonic() + 4 * LINGER_SECONDS
    await eventually_async(lambda: not world.server.connections)


async def test_lingering_has_an_end():
    """Who neither reads nor goes after its last answer is cut off."""
    async with World(Limits(body_bytes=1000, **FAST)) as world:
        client = await world.client(post(b"x" * 3_000)[:2_000])
        await client.until(b"413")
        await world.passes(0.05)
        assert world.server.connections
        world.server.clock = lambda: time.monotonic() + LINGER_SECONDS
        await eventually_async(lambda: not world.server.connections)
