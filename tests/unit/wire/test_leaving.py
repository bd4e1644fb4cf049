"""Clients that leave, at every moment of a request's life: the upstream sees it, and nothing is left."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable

import pytest
from drover_proxy.wire import BodyPlan, Kind, Limits, Upstream
from drover_proxy.wire.limits import SILENT_SECONDS

from tests.proxy.authority import Authority, context_of
from tests.support import eventually_async
from tests.unit.wire.rig import PATIENCE, STREAM_HEAD, Peer, World, answer, chunk, get, post

AT_ONCE_SECONDS = 0.05
"""The promise. The tests allow more where they only look for leaks: this machine may be busy."""


async def before_the_head_is_whole(world: World) -> tuple[Peer, Peer | None]:
    """Half a head was sent."""
    client = await world.client(b"POST / HTTP/1.1\r\nHos")
    await eventually_async(lambda: bool(world.server.connections))
    return client, None


async def during_its_upload(world: World) -> tuple[Peer, Peer | None]:
    """A buffered body is half there."""
    client = await world.client(post(b"x" * 1000)[:-500])
    await eventually_async(lambda: bool(world.handler.exchanges))
    return client, None


async def during_a_streamed_upload(world: World) -> tuple[Peer, Peer | None]:
    """A streamed body is half through."""
    world.handler.plan = BodyPlan.STREAM
    client = await world.client(post(b"x" * 1000)[:-500])
    return client, await world.origin.request(end=b"xxx")


async def while_queued(world: World) -> tuple[Peer, Peer | None]:
    """The handler holds the request."""
    world.handler.on_ready = lambda ex: None
    client = await world.client(post())
    await eventually_async(lambda: ("ready", 1) in world.handler.story)
    return client, None


async def while_dialing(world: World, request: bytes = b"") -> tuple[Peer, Peer | None]:
    """The upstream's connection isn't there yet: its backlog is full."""
    world.full = socket.socket()
    world.full.bind(("127.0.0.1", 0))
    world.full.listen(0)
    world.fillers = []
    for _ in range(4):
        filler = socket.socket()
        filler.setblocking(False)  # noqa: FBT003 - the standard library's way
        filler.connect_ex(world.full.getsockname())
        world.fillers.append(filler)
    world.handler.upstream = world.slow = Upstream("full", *world.full.getsockname())
    client = await world.client(request or post())
    await eventually_async(lambda: bool(world.slow.pool.dialing))
    return client, None


async def before_the_first_byte(world: World) -> tuple[Peer, Peer | None]:
    """The upstream has the request and says nothing."""
    client = await world.client(post())
    return client, await world.origin.request(end=b"{}")


async def within_the_answers_head(world: World) -> tuple[Peer, Peer | None]:
    """The upstream has sent half a head."""
    client = await world.client(post())
    upstream = await world.origin.request(end=b"{}")
    upstream.send(b"HTTP/1.1 200 OK\r\nConte")
    return client, upstream


async def in_mid_stream(world: World) -> tuple[Peer, Peer | None]:
    """Tokens flow."""
    client = await world.client(post())
    upstream = await world.origin.request(end=b"{}")
    upstream.send(STREAM_HEAD + chunk(b"token"))
    await client.until(b"token")
    return client, upstream


async def in_a_stream_of_our_own(world: World) -> tuple[Peer, Peer | None]:
    """The proxy itself streams."""
    world.handler.on_ready = lambda ex: (ex.start_stream(200), ex.write(b"token"))
    client = await world.client(post())
    await client.until(b"token")
    return client, None


MOMENTS = [
    before_the_head_is_whole,
    during_its_upload,
    during_a_streamed_upload,
    while_queued,
    while_dialing,
    before_the_first_byte,
    within_the_answers_head,
    in_mid_stream,
    in_a_stream_of_our_own,
]
WAYS = {
    "close": lambda client: client.close(),
    "reset": lambda client: client.reset(),
    "half-close": lambda client: client.transport.write_eof(),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda m: m.__name__)
async def test_client_leaves(
    world: World, moment: Callable[[World], Awaitable[tuple[Peer, Peer | None]]], way: str
):
    """Whenever and however a client leaves, its upstream is closed at once and the handler is told, once."""
    client, upstream = await moment(world)
    began = time.monotonic()
    WAYS[way](client)
    if upstream is not None:
        await upstream.until_closed()
        assert upstream.closed_at - began < 10 * AT_ONCE_SECONDS
    await eventually_async(lambda: not world.server.connections)
    if world.handler.exchanges:
        assert (await world.outcome()).kind is Kind.CLIENT_GONE
        assert world.handler.story[-2:] == [("gone", 1), ("finished", 1, "client_gone")]
        ex = world.handler.exchanges[0]
        assert ex.over
        before = list(world.handler.story)
        world.handler.send_on(ex)  # too late: nothing happens
        ex.respond(200)
        ex.start_stream(200)
        ex.write(b"x")
        ex.end()
        ex.abort()
        assert world.handler.story == before
    for sock in [getattr(world, "full", None), *getattr(world, "fillers", [])]:
        if sock is not None:
            sock.close()
    if hasattr(world, "slow"):
        await eventually_async(lambda: not world.slow.pool.dialing)


@pytest.mark.timeout(60)
async def test_many_leave_at_random_moments(world: World):
    """Hundreds of clients that leave anywhere along the way leave nothing behind."""
    world.handler.plan = BodyPlan.BUFFER

    async def serve(peer_number: int) -> None:
        peer = await world.origin.peer(peer_number)
        while not peer.eof:
            if peer.received.endswith(b"{}"):
                peer.take()
                peer.send(STREAM_HEAD + chunk(b"token") * 3 + b"0\r\n\r\n")
            await asyncio.sleep(0)

    served = 0
    tasks: list[asyncio.Task[None]] = []
    for n in range(300):
        client = await world.client(post()[: n % 60 + 1] if n % 3 else post())
        for _ in range(n % 7):
            await asyncio.sleep(0)
            while served < len(world.origin.peers):
                tasks.append(asyncio.create_task(serve(served)))
                served += 1
        (client.reset if n % 2 else client.close)()
    await eventually_async(lambda: not world.server.connections)
    world.upstream.close()
    await eventually_async(lambda: all(peer.eof for peer in world.origin.peers))
    await asyncio.gather(*tasks)
    kinds = {o.kind for o in world.handler.outcomes}
    assert kinds <= {Kind.COMPLETE, Kind.CLIENT_GONE}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("upstream_there", [False, True])
async def test_client_leaves_behind_a_body_that_waits(way: str, *, upstream_there: bool):
    """Where reading is paused, since nobody takes the body, the kernel tells at once who has left."""
    async with World(Limits(sweep_seconds=60)) as world:
        world.handler.plan = BodyPlan.STREAM
        if not upstream_there:
            world.handler.on_ready = lambda ex: None
        client = await world.client(post(b"x" * 100_000_000)[:100_000])
        if upstream_there:
            (await world.origin.request()).transport.pause_reading()
            while not any(c.read_paused for c in world.server.connections):
                client.send(b"x" * 100_000)
                await asyncio.sleep(0.001)
        await eventually_async(lambda: any(c.read_paused for c in world.server.connections), timeout=PATIENCE)
        client.send(b"x" * 1000)
        await eventually_async(lambda: client.transport.get_write_buffer_size() == 0, timeout=PATIENCE)
        left = time.monotonic()
        WAYS[way](client)
        await eventually_async(lambda: not world.server.connections, timeout=PATIENCE, every=0.001)
        assert (await world.outcome()).kind is Kind.CLIENT_GONE
        assert time.monotonic() - left < 1
        if upstream_there:
            upstream = await world.origin.peer()
            upstream.transport.resume_reading()
            await upstream.until_closed()


async def test_a_pause_that_ends_forgets_its_watch():
    """A client whose body flows again isn't watched any more, and may end its request in the ordinary way."""
    async with World(Limits(sweep_seconds=60)) as world:
        world.handler.plan = BodyPlan.STREAM
        world.handler.on_ready = lambda ex: None
        body = b"x" * 1_000_000
        client = await world.client(post(body))
        await eventually_async(lambda: any(c.read_paused for c in world.server.connections), timeout=PATIENCE)
        assert world.server.hangups.watched == 1
        world.handler.send_on(world.handler.exchanges[0])
        upstream = await world.origin.request(end=body)
        assert world.server.hangups.watched == 0
        upstream.send(answer())
        await client.until(b"ok")
        assert (await world.outcome()).kind is Kind.COMPLETE


async def test_upstream_is_never_half_closed(world: World):
    """What the upstream sees of a client that left is a closed socket: writing to it fails."""
    client, upstream = await in_mid_stream(world)
    client.close()
    await upstream.until_closed()
    for _ in range(100):
        upstream.send(b"x" * 1000)
        await asyncio.sleep(0.001)
        if upstream.transport.is_closing():
            break
    assert upstream.transport.is_closing()


async def test_a_client_that_stops_after_its_answer_is_fine(world: World):
    """Good-bye after the last answer is no cancellation."""
    client = await world.client(get())
    upstream = await world.origin.request()
    upstream.send(answer())
    await client.until(b"ok")
    await world.outcome()
    client.transport.write_eof()
    await eventually_async(lambda: not world.server.connections)
    assert world.handler.outcomes[0].kind is Kind.COMPLETE
    assert ("gone", 1) not in world.handler.story


async def test_answer_is_kept_for_a_client_that_half_closes_behind_it(world: World):
    """What was written before the good-bye still arrives."""
    body = b"x" * 20_000_000  # more than the kernel takes
    world.handler.on_ready = lambda ex: ex.respond(200, [], body)
    client = await world.client()
    client.transport.pause_reading()
    client.send(get())
    await world.outcome()
    (connection,) = world.server.connections
    client.transport.write_eof()
    await eventually_async(connection.transport.is_closing)
    assert connection.transport.get_write_buffer_size()
    client.transport.resume_reading()
    assert (await client.until_closed()).endswith(body)


async def test_a_tls_client_leaves_behind_a_body_that_waits(tmp_path):
    """TLS makes no difference: the end of the connection below it is what the kernel tells."""
    authority = Authority(tmp_path)
    cert, key, _ = authority.issue("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    async with World(Limits(sweep_seconds=60)) as world:
        world.handler.plan = BodyPlan.STREAM
        world.handler.on_ready = lambda ex: None
        (bound,) = await world.server.listen(["127.0.0.1:0"], tls=context)
        _, writer = await asyncio.open_connection(
            "127.0.0.1", int(bound.split(":")[1]), ssl=context_of(authority), server_hostname="localhost"
        )
        writer.write(post(b"x" * 10_000_000)[:100_000])
        await eventually_async(lambda: any(c.read_paused for c in world.server.connections), timeout=PATIENCE)
        left = time.monotonic()
        writer.transport.abort()
        await eventually_async(lambda: not world.server.connections, timeout=PATIENCE, every=0.001)
        assert time.monotonic() - left < 1
        assert (await world.outcome()).kind is Kind.CLIENT_GONE


@pytest.mark.parametrize("inherited", [False, True])
async def test_the_kernel_asks_clients_that_are_only_silent(world: World, *, inherited: bool):
    """Whose machine is gone doesn't leave: TCP's own keep-alive is what notices."""
    if inherited:
        (world.address,) = await world.server.listen([socket.create_server(("127.0.0.1", 0))])
    await world.client()
    await eventually_async(lambda: bool(world.server.connections))
    (connection,) = world.server.connections
    sock = connection.transport.get_extra_info("socket")
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == SILENT_SECONDS
