"""Connections before TLS is agreed on: they count, have a limit of time, and leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from drover_proxy.wire import Forwarding, Limits, Server
from drover_proxy.wire.client import ClientConnection
from drover_proxy.wire.forwarding import network
from drover_proxy.wire.limits import LINGER_SECONDS
from drover_proxy.wire.link import Phase

from tests.proxy.authority import Authority, context_of
from tests.support import eventually_async
from tests.unit.wire.memory import Answering, FakeTransport
from tests.unit.wire.rig import FAST, Peer, World, answer, get

LOOPBACK = Forwarding(trusted=(network("127.0.0.1"),))


class Door:
    """A listener with TLS, and clients that shake hands or don't."""

    def __init__(self, world: World, authority: Authority, port: int) -> None:
        self.world, self.authority, self.port = world, authority, port

    async def silent(self) -> Peer:
        """Connect, and say nothing."""
        loop = asyncio.get_running_loop()
        _, peer = await loop.create_connection(Peer, "127.0.0.1", self.port)
        self.world.clients.append(peer)
        return peer

    async def connect(self) -> socket.socket:
        """Connect, and be accepted."""
        server, loop = self.world.server, asyncio.get_running_loop()
        sock = socket.socket()
        sock.setblocking(False)  # noqa: FBT003 - the standard library's way
        before = server._shaking_total
        await loop.sock_connect(sock, ("127.0.0.1", self.port))
        await eventually_async(lambda: server._shaking_total > before)
        return sock

    async def client(self, sock: socket.socket | None = None) -> Peer:
        """Shake hands."""
        loop = asyncio.get_running_loop()
        tls = context_of(self.authority)
        _, peer = await loop.create_connection(
            Peer, sock=sock or await self.connect(), ssl=tls, server_hostname="localhost"
        )
        self.world.clients.append(peer)
        return peer


@asynccontextmanager
async def opened(folder, forwarding: Forwarding | None = None, **limits) -> AsyncIterator[Door]:
    """Open a door with these limits."""
    authority = Authority(folder)
    cert, key, _ = authority.issue("server")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(cert, key)
    async with World(Limits(**FAST, **limits), forwarding) as world:
        (bound,) = await world.server.listen(["127.0.0.1:0"], tls=tls)
        yield Door(world, authority, int(bound.rpartition(":")[2]))


@pytest.mark.parametrize("limit", ["max_connections", "max_connections_per_client"])
async def test_who_shakes_hands_counts(tmp_path, limit: str):
    """Beyond a cap, who connects is closed before the handshake; a place that becomes free is free."""
    async with opened(tmp_path, **{limit: 3}) as door:
        client = await door.client()
        first, _second = await door.silent(), await door.silent()
        fourth = await door.silent()
        assert await fourth.until_closed() == b""
        assert not first.eof
        assert door.world.server.refusals["too_many_connections"] == 1
        first.transport.abort()
        await eventually_async(lambda: door.world.server._shaking_total == 1)
        another = await door.client()
        for served in (client, another):
            served.send(get())
        for number in range(2):
            (await door.world.origin.request(number)).send(answer())
        await client.until(b"ok")
        await another.until(b"ok")


async def test_a_trusted_proxy_has_no_cap_of_its_own(tmp_path):
    """Its connections are many clients', also while it shakes hands."""
    async with opened(tmp_path, LOOPBACK, max_connections_per_client=1) as door:
        await door.silent()
        await door.silent()
        client = await door.client()
        client.send(get())
        (await door.world.origin.request()).send(answer())
        await client.until(b"ok")


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\x16\x03\x01\x00\xff\x01"])
async def test_a_handshake_that_comes_to_nothing(tmp_path, said: bytes):
    """It ends in its time, gives its place back, and is nothing that the loop has to report."""
    async with opened(tmp_path, head_timeout=0.2) as door:
        peer = await door.silent()
        peer.send(said)
        assert not (await peer.until_closed()).startswith(b"HTTP/")
        await eventually_async(lambda: not door.world.server._shaking_total)
        assert not door.world.server._shaking
        assert not door.world.server.accepted


async def test_who_says_nothing_more_does_not_keep_its_place(tmp_path):
    """A client that doesn't even answer TLS's good-bye is cut soon after it."""
    async with opened(tmp_path) as door:
        server = door.world.server
        sent, received = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context_of(door.authority).wrap_bio(received, sent, server_hostname="localhost")
        peer = await door.silent()
        while not server.connections:
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.do_handshake()
            peer.send(sent.read())
            received.write(peer.take())
            await asyncio.sleep(0.001)
        (connection,) = server.connections
        ahead = server.limits.head_timeout
        server.clock = lambda: time.monotonic() + ahead
        await eventually_async(lambda: connection.phase is Phase.CLOSING)
        assert server.connections
        ahead += LINGER_SECONDS
        await eventually_async(lambda: not server.connections)


async def test_a_drain_waits_for_handshakes_as_long_as_for_idle_clients(tmp_path):
    """Who shakes hands at a drain may bring a request while it lingers, and is cut after that."""
    async with opened(tmp_path) as door:
        silent = await door.silent()
        late = await door.connect()
        draining = asyncio.create_task(door.world.server.drain(5, linger=0.3))
        client = await door.client(late)
        client.send(get())
        (await door.world.origin.request()).send(answer())
        assert b"connection: close" in await client.until_closed()
        await silent.until_closed()
        assert await draining == 0


def test_addresses_of_one_network_count_as_one():
    """An IPv6 client has more addresses than there are connections: the cap is its network's."""
    server = Server(Answering(), Limits(max_connections_per_client=2))  # type: ignore[arg-type]

    def connect(address: str) -> FakeTransport:
        transport = FakeTransport(address)
        ClientConnection(server).connection_made(transport)
        return transport

    told = [connect(f"2001:db8::{n}").written for n in range(1, 5)]
    assert [b"HTTP/1.1 503 " in one for one in told] == [False, False, True, True]
    assert connect("2001:db8:0:1::1").written == b""
    assert connect("192.0.2.7").written == b""
    assert connect("::ffff:192.0.2.7").written == b""
    assert connect("192.0.2.7").written.startswith(b"HTTP/1.1 503 ")
