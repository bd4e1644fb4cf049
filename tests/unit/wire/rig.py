"""A scripted upstream, raw clients and a handler that records: bytes and timing are in the test's hands."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from drover_proxy.wire import (
    BodyPlan,
    Exchange,
    Forwarding,
    Limits,
    Outcome,
    Server,
    Stranger,
    Upstream,
    UpstreamError,
)
from drover_proxy.wire.answers import plain_error

from tests.support import eventually_async

PATIENCE = 5.0
DATE = b"Date: Sat, 21 Nov 2026 12:00:00 GMT\r\n"
"""In every answer, as Go sends it: one without would be given one."""
FAST = {"sweep_seconds": 0.01}


class Peer(asyncio.Protocol):
    """One end of a connection, driven by the test: what came, whether it is closed, and raw sends."""

    def __init__(self, on_made: Callable[[Peer], None] | None = None) -> None:
        self.received = bytearray()
        self.eof = False
        self.error: Exception | None = None
        self.closed_at: float | None = None
        self.on_made = on_made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = transport
        if self.on_made:
            self.on_made(self)

    def data_received(self, data: bytes) -> None:
        """Collect."""
        self.received += data

    def eof_received(self) -> bool:
        """Note the half-close, and stay open ourselves."""
        self.eof = True
        self.closed_at = self.closed_at or time.monotonic()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the end."""
        self.error = exc
        self.eof = True
        self.closed_at = self.closed_at or time.monotonic()

    def send(self, data: bytes) -> None:
        """Write."""
        self.transport.write(data)

    def close(self) -> None:
        """Close in the ordinary way."""
        self.transport.close()

    def reset(self) -> None:
        """Close with a reset."""
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    async def until(self, what: bytes | Callable[[bytes], bool]) -> bytes:
        """Wait until what was received contains, or satisfies, this; return all of it."""
        check = what if callable(what) else (lambda got: what in got)
        await eventually_async(
            lambda: check(self.received),
            timeout=PATIENCE,
            what=f"{what!r} in {bytes(self.received[-300:])!r}",
        )
        return bytes(self.received)

    async def until_closed(self) -> bytes:
        """Wait for the other side's end; return all that came."""
        await eventually_async(
            lambda: self.eof, timeout=PATIENCE, what=f"closed after {self.received[-200:]!r}"
        )
        return bytes(self.received)

    def take(self) -> bytes:
        """Return what was received and forget it."""
        got, self.received = self.received, bytearray()
        return bytes(got)


class Origin:
    """The upstream: accepts connections and does nothing by itself."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []

    async def start(self) -> Origin:
        """Listen."""
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(lambda: Peer(self.peers.append), "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def peer(self, number: int = 0) -> Peer:
        """Wait for the connection of this number."""
        await eventually_async(
            lambda: len(self.peers) > number, timeout=PATIENCE, what=f"upstream connection {number}"
        )
        return self.peers[number]

    async def request(self, number: int = 0, end: bytes = b"\r\n\r\n") -> Peer:
        """Wait until that connection has received this."""
        peer = await self.peer(number)
        await peer.until(end)
        return peer


@dataclass
class Recorder:
    """A handler whose moves are the test's, and that keeps the whole story."""

    upstream: Upstream | None = None
    plan: BodyPlan = BodyPlan.BUFFER
    on_head: Callable[[Exchange], None] | None = None
    on_ready: Callable[[Exchange], None] | None = None
    on_failed: Callable[[Exchange, UpstreamError], bool] | None = None
    forward: dict = field(default_factory=dict)
    watch: Callable[[], object] | None = None
    story: list[tuple] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)

    def head(self, ex: Exchange) -> BodyPlan:
        """Record, and give the plan."""
        self.story.append(("head", ex.id))
        self.exchanges.append(ex)
        if self.on_head:
            self.on_head(ex)
        return self.plan

    def ready(self, ex: Exchange) -> None:
        """Record, and forward unless the test does otherwise."""
        self.story.append(("ready", ex.id))
        if self.on_ready:
            self.on_ready(ex)
        else:
            self.send_on(ex)

    def send_on(self, ex: Exchange) -> None:
        """Forward as the test configured."""
        ex.forward(self.upstream, watch=self.watch() if self.watch else None, **self.forward)

    def answered(self, ex: Exchange, status: int) -> None:
        """Record."""
        self.story.append(("answered", ex.id, status))

    def upstream_failed(self, ex: Exchange, error: UpstreamError) -> bool:
        """Record, and leave it to the wire unless the test does otherwise."""
        self.story.append(("failed", ex.id, error.fault.value, error.retryable))
        return self.on_failed(ex, error) if self.on_failed else False

    def error_answer(self, asked: Exchange | Stranger, status: int, code: str, message: str):
        """Answer the wire's own errors so that a test sees what they were for, and who asked."""
        headers, body = plain_error(code, message)
        who = b"exchange" if isinstance(asked, Exchange) else b"stranger at " + asked.client.encode()
        return [*headers, (b"x-target", asked.target), (b"x-asked", who)], body

    def gone(self, ex: Exchange) -> None:
        """Record."""
        self.story.append(("gone", ex.id))

    def finished(self, ex: Exchange, outcome: Outcome) -> None:
        """Record."""
        self.story.append(("finished", ex.id, outcome.kind.value))
        self.outcomes.append(outcome)


class World:
    """A server between a scripted upstream and raw clients; looks for leaks when it ends."""

    def __init__(self, limits: Limits | None = None, forwarding: Forwarding | None = None) -> None:
        self.limits = limits or Limits(**FAST)
        self.forwarding = forwarding
        self.handler = Recorder()
        self.clients: list[Peer] = []

    async def __aenter__(self) -> Self:
        """Start everything."""
        self.fds = open_fds()
        self.problems: list[dict] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.problems.append(context))
        self.origin = await Origin().start()
        self.upstream = Upstream("gpu0", "127.0.0.1", self.origin.port)
        self.handler.upstream = self.upstream
        self.server = Server(self.handler, self.limits, self.forwarding)
        (self.address,) = await self.server.listen(["127.0.0.1:0"])
        return self

    async def client(self, data: bytes = b"") -> Peer:
        """Connect, and send."""
        host, port = self.address.split(":")
        _, peer = await asyncio.get_running_loop().create_connection(Peer, host, int(port))
        self.clients.append(peer)
        if data:
            peer.send(data)
        return peer

    async def kept(self, count: int) -> list[Peer]:
        """Have so many connections to the upstream that served a request each."""
        clients = [await self.client(post(b"first")) for _ in range(count)]
        upstreams = [await self.origin.request(number, end=b"first") for number in range(count)]
        for upstream in upstreams:
            upstream.send(answer(b"one"))
        for client in clients:
            await client.until(b"one")
        return upstreams

    async def again(self) -> tuple[Peer, Peer]:
        """Send a request over a connection that served one before: its client, and the upstream."""
        (upstream,) = await self.kept(1)
        client = await self.client(post(b"again"))
        await upstream.until(b"again")
        return client, upstream

    async def passes(self, seconds: float) -> None:
        """Wait until a sweep has seen so much time go by: what was due in it has happened."""
        until = self.server.clock() + seconds
        await eventually_async(lambda: self.server.now > until, timeout=PATIENCE)

    async def outcome(self, count: int = 1) -> Outcome:
        """Wait for so many outcomes; return the last."""
        await eventually_async(
            lambda: len(self.handler.outcomes) >= count,
            timeout=PATIENCE,
            what=f"{count} outcomes; {self.handler.story}",
        )
        return self.handler.outcomes[-1]

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Stop everything, then see that nothing is left and every exchange ended once."""
        for client in self.clients:
            client.transport.abort()
        try:
            if kind is None:
                await eventually_async(
                    lambda: not self.server.connections, timeout=PATIENCE, what="client connections gone"
                )
        finally:  # else the loop, with sockets open, would never close
            await self.server.drain(0)
            self.origin.server.close()
            for peer in self.origin.peers:
                peer.transport.abort()
        if kind is not None:
            return
        pool = self.upstream.pool
        await eventually_async(lambda: not pool.connections, timeout=PATIENCE, what=f"{pool!r} empty")
        assert not pool.idle
        assert not pool.dialing
        await eventually_async(
            lambda: open_fds() <= self.fds, timeout=PATIENCE, what=f"{open_fds()} fds, {self.fds} before"
        )
        await eventually_async(
            lambda: asyncio.all_tasks() == {asyncio.current_task()},
            timeout=PATIENCE,
            what=f"tasks {asyncio.all_tasks()}",
        )
        ends = [step[1] for step in self.handler.story if step[0] == "finished"]
        assert sorted(ends) == [ex.id for ex in self.handler.exchanges], self.handler.story
        assert not self.problems, self.problems


def open_fds() -> int:
    """Count the process's file descriptors that are sockets."""
    count = 0
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that the listing itself needs
            count += str(fd.readlink()).startswith("socket:")
    return count


def post(body: bytes = b"{}", *, path: bytes = b"/api/chat", extra: bytes = b"") -> bytes:
    """Write a plain request."""
    return b"POST %b HTTP/1.1\r\nHost: drover\r\nContent-Length: %d\r\n%b\r\n%b" % (
        path,
        len(body),
        extra,
        body,
    )


def get(path: bytes = b"/", *, extra: bytes = b"") -> bytes:
    """Write a request without a body."""
    return b"GET %b HTTP/1.1\r\nHost: drover\r\n%b\r\n" % (path, extra)


def answer(body: bytes = b"ok", *, extra: bytes = b"", status: bytes = b"200 OK") -> bytes:
    """Write a plain answer."""
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n%b%b\r\n%b" % (status, len(body), DATE, extra, body)


def chunk(data: bytes) -> bytes:
    """Write a chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n%b\r\n" % DATE
)
END = b"0\r\n\r\n"
