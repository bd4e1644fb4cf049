"""Limits on sizes and times, back-pressure both ways, and the end of the server."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess

import pytest
from drover_proxy.wire import BodyPlan, Kind, Limits
from drover_proxy.wire.limits import HELD_BYTES

from tests.support import eventually_async
from tests.unit.wire.rig import END, FAST, STREAM_HEAD, World, answer, chunk, get, post

SLACK = 64 * 1024


async def test_body_too_long():
    """A held body has its limit, told or counted, a streamed one its own; the upstream sees nothing."""
    async with World(Limits(body_bytes=1000, stream_body_bytes=2000, **FAST)) as world:
        client = await world.client(post(b"x" * 1001))
        assert b"413" in (await client.until_closed())[:20]
        client = await world.client(post(b"x" * 5000)[:200])
        assert b"413" in (await client.until_closed())[:20]
        chunked = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        client = await world.client(chunked + chunk(b"x" * 600) + chunk(b"x" * 600))
        assert b"413" in (await client.until_closed())[:20]
        assert {o.kind for o in world.handler.outcomes} == {Kind.REFUSED}
        assert world.origin.peers == []
        world.handler.plan = BodyPlan.STREAM
        client = await world.client(post(b"x" * 2001))
        assert b"413" in (await client.until_closed())[:20]
        assert world.origin.peers == []
        world.handler.plan = BodyPlan.BUFFER
        client = await world.client(post(b"x" * 1000))
        await world.origin.request(end=b"x" * 1000)
        client = await world.client(chunked + chunk(b"x" * 400) + chunk(b"y" * 600) + END)
        await world.origin.request(1, end=b"y" * 600)
        client = await world.client(chunked + chunk(b"x" * 400) + chunk(b"y" * 601) + END)
        assert b"413" in (await client.until_closed())[:20]


@pytest.mark.parametrize("begun", [b"GET / HT", b"\r", b"GET / HTTP/1.1\r\nHost: a\r\nX:"])
async def test_slow_head(begun: bytes):
    """A head that doesn't end is answered with 408, however steadily its bytes drip."""
    async with World(Limits(head_timeout=0.1, **FAST)) as world:
        client = await world.client(begun)
        while not client.eof:
            if len(client.received) == 0 and begun != b"\r":
                client.send(b"x")
            await asyncio.sleep(0.01)
        assert client.received.startswith(b"HTTP/1.1 408 ")


async def test_silent_connection():
    """A client that says nothing is closed without a word, new or kept."""
    async with World(Limits(head_timeout=0.05, idle_timeout=0.05, **FAST)) as world:
        client = await world.client()
        assert await client.until_closed() == b""
        client = await world.client(get())
        (await world.origin.request()).send(answer())
        assert await client.until_closed() == answer()


async def test_an_empty_line_is_no_head():
    """Some clients send one behind a body: it isn't the beginning of a request that never comes."""
    async with World(Limits(head_timeout=0.1, idle_timeout=0.4, **FAST)) as world:
        client = await world.client(post() + b"\r\n")
        (await world.origin.request(end=b"{}")).send(answer())
        await client.until(b"ok")
        await world.passes(0.15)
        client.send(get(b"/next"))
        upstream = await world.origin.request(end=b"/next")
        await upstream.until(b"\r\n\r\n")
        upstream.send(answer(b"next"))
        assert (await client.until_closed()) == answer() + answer(b"next")


async def test_slow_body():
    """A body that stops coming is a 408; one that comes slowly is not."""
    async with World(Limits(body_timeout=0.15, **FAST)) as world:
        client = await world.client(post(b"x" * 10_000)[:-9000])
        for _ in range(30):
            client.send(b"x" * 100)
            await asyncio.sleep(0.01)
        assert client.received == b""
        got = await client.until_closed()
        assert got.startswith(b"HTTP/1.1 408 ")
        assert (await world.outcome()).kind is Kind.REFUSED


@pytest.mark.parametrize("plan", [BodyPlan.BUFFER, BodyPlan.STREAM])
async def test_a_body_that_drips(plan: BodyPlan):
    """A byte now and then isn't silence, but holds a place for ever: 408, where the body is held whole."""
    async with World(Limits(body_timeout=0.15, **FAST)) as world:
        world.handler.plan = plan
        client = await world.client(post(b"x" * 10_000)[:-9999])
        for _ in range(60):
            if not client.eof:
                client.send(b"x")
            await asyncio.sleep(0.01)
        assert client.received.startswith(b"HTTP/1.1 408 ") is (plan is BodyPlan.BUFFER)


async def test_no_first_byte():
    """An upstream that says nothing in time is given up, and its connection closed."""
    async with World(Limits(first_byte_timeout=0.05, **FAST)) as world:
        client = await world.client(post())
        upstream = await world.origin.request(end=b"{}")
        assert b"first_byte_timeout" in await client.until(b"}")
        assert client.received.startswith(b"HTTP/1.1 504 ")
        await upstream.until_closed()


async def test_silence_in_mid_stream():
    """A stream that falls silent is broken off; one that moves goes on."""
    async with World(Limits(stall_timeout=0.15, **FAST)) as world:
        client = await world.client(post())
        upstream = await world.origin.request(end=b"{}")
        upstream.send(STREAM_HEAD)
        for _ in range(30):
            upstream.send(chunk(b"t"))
            await asyncio.sleep(0.01)
        assert not client.eof
        got = await client.until_closed()
        assert not got.endswith(END)
        await upstream.until_closed()
        assert (await world.outcome()).kind is Kind.UPSTREAM_BROKEN


async def test_waiting_has_no_limit_of_the_wires():
    """A request that the handler holds, and a long prompt, may take longer than any limit of a client."""
    limits = Limits(head_timeout=0.03, body_timeout=0.03, idle_timeout=0.03, stall_timeout=0.03, **FAST)
    async with World(limits) as world:
        world.handler.on_ready = lambda ex: None
        client = await world.client(post())
        await world.passes(0.1)
        world.handler.send_on(world.handler.exchanges[0])
        upstream = await world.origin.request(end=b"{}")
        await world.passes(0.1)
        upstream.send(answer())
        await client.until(b"ok")


async def test_an_answer_before_lends_a_request_no_time_limit():
    """What moved in the last one says nothing of the next, which may wait for its first byte."""
    async with World(Limits(stall_timeout=0.1, **FAST)) as world:
        client = await world.client(post())
        upstream = await world.origin.request(end=b"{}")
        upstream.send(STREAM_HEAD)
        await client.until(b"\r\n\r\n")
        world.server._sweeper.cancel()  # it may come between, but seldom does
        for piece in (chunk(b"token"), END):
            upstream.send(piece)
            await client.until(piece)
        world.server._sweep()
        client.take()
        upstream.take()
        client.send(post())
        await upstream.until(b"{}")
        await world.passes(0.2)
        assert client.received == b""
        upstream.send(answer())
        await client.until(b"ok")


async def test_the_clock_of_all_goes_on():
    """What goes wrong as one connection's time is looked at costs nobody else theirs."""
    async with World(Limits(idle_timeout=0.1, head_timeout=0.1, **FAST)) as world:
        world.server.connections.add(None)  # type: ignore[arg-type] # whatever may raise
        await eventually_async(lambda: bool(world.problems))
        world.server.connections.discard(None)  # type: ignore[arg-type]
        client = await world.client()
        await client.until_closed()
        world.problems.clear()


async def test_too_many_connections():
    """Beyond the cap a client is told so and closed; a place that becomes free is free."""
    async with World(Limits(max_connections=2, **FAST)) as world:
        one, _two = await world.client(), await world.client()
        await eventually_async(lambda: len(world.server.connections) == 2)
        third = await world.client()
        assert (await third.until_closed()).startswith(b"HTTP/1.1 503 ")
        third.close()
        one.close()
        await eventually_async(lambda: len(world.server.connections) == 1)
        fourth = await world.client(get())
        (await world.origin.request()).send(answer())
        await fourth.until(b"ok")
        assert world.server.refusals["too_many_connections"] == 1


async def test_too_many_connections_of_one_client():
    """One address can be kept from taking all places."""
    async with World(Limits(max_connections_per_client=1, **FAST)) as world:
        await world.client()
        await eventually_async(lambda: len(world.server.connections) == 1)
        second = await world.client()
        assert b"from 127.0.0.1" in await second.until_closed()


async def test_slow_reader(world: World):
    """A client that reads nothing stops its upstream; 256 KiB at most wait here, and none is lost."""
    client = await world.client(post())
    upstream = await world.origin.request(end=b"{}")
    client.transport.pause_reading()
    total = 30_000_000
    piece = chunk(b"x" * 10_000)
    upstream.send(STREAM_HEAD)
    sent = 0
    while sent < total:
        upstream.send(piece)
        sent += len(piece)
    upstream.send(END)
    await eventually_async(lambda: world.handler.exchanges and not world.handler.exchanges[0].writable)
    connection = world.handler.exchanges[0].connection
    held = 0
    for _ in range(50):
        held = max(held, connection.transport.get_write_buffer_size())
        await asyncio.sleep(0.002)
    assert 0 < held <= HELD_BYTES
    assert upstream.transport.get_write_buffer_size() > 0
    client.transport.resume_reading()
    await client.until(lambda got: got.endswith(END))
    assert len(client.received) == len(STREAM_HEAD) + sent + len(END)
    assert (await world.outcome()).kind is Kind.COMPLETE
    client.send(get(b"/next"))
    await upstream.until(b"/next")
    upstream.send(answer(b"next"))
    await client.until(lambda got: got.endswith(b"next"))


async def test_client_that_never_reads():
    """A client that reads nothing for too long is cut, and counts as one that left."""
    async with World(Limits(stall_timeout=0.1, **FAST)) as world:
        client = await world.client(post())
        upstream = await world.origin.request(end=b"{}")
        client.transport.pause_reading()
        upstream.send(answer(b"x" * 20_000_000))
        await upstream.until_closed()
        assert (await world.outcome()).kind is Kind.CLIENT_GONE


async def test_slow_upstream_of_an_upload(world: World):
    """An upstream that reads nothing stops its client; 256 KiB at most wait here, and none is lost."""
    world.handler.plan = BodyPlan.STREAM
    body = b"x" * 30_000_000
    client = await world.client(post(body))
    upstream = await world.origin.peer()
    upstream.transport.pause_reading()
    await eventually_async(
        lambda: world.handler.exchanges and world.handler.exchanges[0].connection.read_paused
    )
    (connection,) = world.upstream.pool.connections
    held = connection.transport.get_write_buffer_size()
    assert 0 < held <= HELD_BYTES
    assert client.transport.get_write_buffer_size() > 0
    upstream.transport.resume_reading()
    await upstream.until(lambda got: len(got) > len(body))
    upstream.send(answer(b"stored"))
    await client.until(b"stored")


@pytest.mark.parametrize("begun", [b"", STREAM_HEAD + chunk(b"early")])
async def test_an_upload_that_stands_still(begun: bytes):
    """An upstream that takes nothing more of a body is given up; it isn't the client that was too slow."""
    async with World(Limits(stall_timeout=0.5, **FAST)) as world:
        world.handler.plan = BodyPlan.STREAM
        client = await world.client(post(b"x" * 20_000_000))
        upstream = await world.origin.peer()
        upstream.transport.pause_reading()
        upstream.send(begun)
        got = await client.until_closed()
        await eventually_async(lambda: not world.upstream.pool.connections)
        if begun:
            assert got.startswith(b"HTTP/1.1 200 ")
            assert got.endswith(chunk(b"early"))
        else:
            assert got.startswith(b"HTTP/1.1 504 ")
        kind = Kind.UPSTREAM_BROKEN if begun else Kind.UPSTREAM_FAILED
        assert (await world.outcome()).kind is kind


async def test_pipelining_without_reading(world: World):
    """A client that asks and never reads is owed no more than a buffer or two."""
    world.handler.on_ready = lambda ex: ex.respond(200, [], b"y" * 3000)
    client = await world.client()
    client.transport.pause_reading()
    asked = get() * 6_000
    client.send(asked)
    await eventually_async(lambda: any(c.write_paused for c in world.server.connections))
    (connection,) = world.server.connections
    for _ in range(20):  # turns in which it would go on, if it did
        await asyncio.sleep(0.002)
    assert connection.transport.get_write_buffer_size() <= HELD_BYTES + SLACK
    assert len(world.handler.outcomes) < 6_000
    client.transport.resume_reading()
    await client.until(lambda got: got.count(b"HTTP/1.1 200") == 6_000)


async def test_pipelining_too_far_ahead(world: World):
    """What is sent ahead beyond the limit isn't kept: the answer comes, then the connection closes."""
    client = await world.client(get(b"/1") + get(b"/ahead") * 5000)
    upstream = await world.origin.request()
    await eventually_async(lambda: world.handler.exchanges[0].connection._surplus)
    upstream.send(answer(b"one"))
    got = await client.until_closed()
    assert got.endswith(b"one")
    assert len(world.handler.exchanges) == 1


async def test_drain_lets_streams_finish(world: World):
    """Draining closes idle connections at once, refuses new ones, and waits for what is under way."""
    idle = await world.client()
    busy = await world.client(post())
    upstream = await world.origin.request(end=b"{}")
    upstream.send(STREAM_HEAD + chunk(b"token"))
    await busy.until(b"token")
    draining = asyncio.create_task(world.server.drain(5))
    await idle.until_closed()
    host, port = world.address.split(":")
    with pytest.raises(OSError, match="refused"):
        await asyncio.open_connection(host, int(port))
    assert not draining.done()
    upstream.send(chunk(b"last") + END)
    assert (await busy.until_closed()).endswith(END)
    assert await draining == 0


async def test_drain_may_leave_idle_connections_a_moment(world: World):
    """With a linger, an idle connection brings one more request; one that doesn't is closed after it."""
    late, idle = await world.client(), await world.client()
    draining = asyncio.create_task(world.server.drain(5, linger=0.3))
    await eventually_async(lambda: world.server.draining)
    late.send(post())
    upstream = await world.origin.request(end=b"{}")
    upstream.send(answer())
    got = await late.until_closed()
    assert b"connection: close" in got
    assert got.endswith(b"ok")
    await idle.until_closed()
    assert await draining == 0


async def test_drain_has_an_end(world: World):
    """What doesn't finish in time is cut, and counted."""
    client = await world.client(post())
    upstream = await world.origin.request(end=b"{}")
    upstream.send(STREAM_HEAD + chunk(b"token"))
    await client.until(b"token")
    assert await world.server.drain(0.05) == 1
    assert not (await client.until_closed()).endswith(END)
    await upstream.until_closed()


async def test_inherited_socket(world: World):
    """A socket that listens already, as systemd hands it over, is served."""
    inherited = socket.create_server(("127.0.0.1", 0))
    port = inherited.getsockname()[1]
    assert await world.server.listen([inherited]) == [f"127.0.0.1:{port}"]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(get())
    (await world.origin.request()).send(answer())
    assert await reader.readuntil(b"ok") == answer()
    writer.close()
    await writer.wait_closed()


async def test_tls(world: World, tmp_path):
    """A listener with TLS serves, streams, and tells its clients when they should be cut."""
    subprocess.run(  # noqa: ASYNC221 - before anything runs
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
         "-keyout", tmp_path / "key", "-out", tmp_path / "cert"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    (bound,) = await world.server.listen(["127.0.0.1:0"], tls=context)
    trusting = ssl.create_default_context(cafile=tmp_path / "cert")
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", int(bound.split(":")[1]), ssl=trusting, server_hostname="localhost", limit=1 << 20
    )
    writer.write(post())
    upstream = await world.origin.request(end=b"{}")
    upstream.send(STREAM_HEAD + chunk(b"x" * 100_000) + END)
    assert (await reader.readuntil(END)).endswith(chunk(b"x" * 100_000) + END)
    writer.write(post(b"[]"))
    await upstream.until(b"[]")
    began = asyncio.get_running_loop().time()
    writer.transport.abort()
    await upstream.until_closed()
    assert asyncio.get_running_loop().time() - began < 1
    assert (await world.outcome(2)).kind is Kind.CLIENT_GONE
