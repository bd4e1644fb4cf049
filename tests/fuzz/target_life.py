r"""The life of requests: clients, upstreams, the handler, the clock and back-pressure in any order.

Input: a program, one step a byte (the low five bits say what, the high three with what). After each step the
invariants are checked: nothing raises, each exchange ends once, every upstream connection is idle or
somebody's, and nobody is left paused whom nothing would wake.
"""

from __future__ import annotations

import asyncio

from drover_proxy.dialect.routes import Shape
from drover_proxy.dialect.watches import StreamWatch
from drover_proxy.wire import BodyPlan, Exchange, Limits, Outcome, Upstream, UpstreamError, UpstreamFault
from drover_proxy.wire.client import ClientConnection
from drover_proxy.wire.link import Phase
from drover_proxy.wire.pool import Pool
from drover_proxy.wire.relay import Relay
from drover_proxy.wire.states import State
from drover_proxy.wire.upstream import UpstreamConnection

from tests.fuzz.fakes import (
    TURNS,
    DeliberateError,
    Pipe,
    Quiet,
    connect,
    make_server,
    on_turns,
)

LENGTH = b"POST /l HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n"
CHUNKED = b"POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
FROM_CLIENT = (
    b"GET /g HTTP/1.1\r\nHost: a\r\n\r\n",
    LENGTH + b"abcdef",
    LENGTH + b"abc",
    b"def",
    CHUNKED + b"3\r\nabc\r\n",
    b"0\r\n\r\n",
    b"HEAD /h HTTP/1.0\r\n\r\n",
    b"POST /e HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: 3\r\n\r\n",
)
MORE = (
    b"GET /p HTTP/1.1\r\nHo",
    b"st: a\r\n\r\n",
    b"POST /big HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + b"x" * 70_000,
    b"x" * 30_000,
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 3,
    b"rubbish\n",
    b"GET /ten HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    CHUNKED + b"3\r\nabc\r\n0\r\n\r\n" + LENGTH,
)
RAISING = ("", "head", "ready", "answered", "upstream_failed", "gone", "finished", "")
STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
FROM_UPSTREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok",
    STREAM,
    STREAM + b'd\r\n{"done":true}\r\n',
    b"3\r\nabc\r\n",
    b"0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc",
    b"ok",
)
MORE_UPSTREAM = (
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nConte",
    b"nt-Length: 0\r\n\r\n",
    b"rubbish\n",
    STREAM + b"3\r\nabc\r\n0\r\n\r\n",
    b"3\r\nab",
    b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
)


class Dialing:
    """A dial under way, as the relay sees its task."""

    def __init__(self, pool: FakePool, relay: Relay) -> None:
        self.pool, self.relay = pool, relay

    def cancel(self) -> None:
        """Give it up."""
        self.pool.under_way.remove(self)


class FakePool(Pool):
    """Dials when the program says so; keeps the pipes it made."""

    __slots__ = ("pipes", "under_way")

    def __init__(self, upstream: Upstream) -> None:
        super().__init__(upstream)
        self.pipes: list[Pipe] = []
        self.under_way: list[Dialing] = []

    def dial(self, relay: Relay) -> asyncio.Task[None]:
        """Begin to dial."""
        dialing = Dialing(self, relay)
        self.under_way.append(dialing)
        return dialing  # type: ignore[return-value] # all that the relay does is to cancel it

    def connect(self) -> UpstreamConnection:
        """Make a connection."""
        connection = UpstreamConnection(self)
        pipe = Pipe(connection)
        self.pipes.append(pipe)
        connection.connection_made(pipe)
        return connection


class FakeUpstream(Upstream):
    """An upstream over such a pool."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__("gpu0", "127.0.0.1", 11434)
        self.pool: FakePool = FakePool(self)


class Steered(Quiet):
    """A handler whose every move is the program's."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.plan = BodyPlan.BUFFER
        self.at_head = False
        self.at_ready = 0
        self.on_failure = 0
        self.raising = ""
        """The method whose next call raises: a handler's bug costs one request, and nothing else."""

    def _perhaps_raise(self, method: str) -> None:
        if self.raising == method:
            self.raising = ""
            raise DeliberateError(method)

    def head(self, ex: Exchange) -> BodyPlan:
        """Begin; answer at once where the program says so."""
        super().head(ex)
        self._perhaps_raise("head")
        if self.at_head:
            ex.respond(401, [], b"no")
        return self.plan

    def ready(self, ex: Exchange) -> None:
        """Forward, answer, or hold."""
        self._perhaps_raise("ready")
        if self.at_ready < 4:
            self.world.forward(ex)
        elif self.at_ready < 6:
            ex.respond(200, [], b"ok")

    def upstream_failed(self, ex: Exchange, error: UpstreamError) -> bool:
        """Try again where that is safe, answer, or leave it to the wire."""
        self._perhaps_raise("upstream_failed")
        if self.on_failure == 1 and error.retryable:
            self.world.forward(ex)
            return True
        if self.on_failure == 2:
            ex.respond(503)
            return True
        return self.on_failure == 3 and error.fault is not UpstreamFault.DIAL

    def answered(self, ex: Exchange, status: int) -> None:
        """Raise, perhaps."""
        self._perhaps_raise("answered")

    def gone(self, ex: Exchange) -> None:
        """See that its upstream is gone; raise, perhaps."""
        super().gone(ex)
        self._perhaps_raise("gone")

    def finished(self, ex: Exchange, outcome: Outcome) -> None:
        """Keep; raise, perhaps."""
        super().finished(ex, outcome)
        self._perhaps_raise("finished")


class World:
    """One client after the other, an upstream, and a program."""

    def __init__(self) -> None:
        self.handler = Steered(self)
        self.server, self.clock = make_server(
            self.handler, Limits(body_bytes=50_000, first_byte_timeout=20.0)
        )
        self.upstream = FakeUpstream()
        self.client: ClientConnection
        self.pipe: Pipe
        self.watch = False
        self.reconnect()

    def reconnect(self) -> None:
        """Let the next client come."""
        self.client, self.pipe = connect(self.server)

    def forward(self, ex: Exchange) -> None:
        """Forward."""
        ex.forward(self.upstream, watch=StreamWatch(Shape.DONE) if self.watch else None)

    def step(self, what: int, which: int) -> None:
        """Do one thing."""
        if what < 8:
            self._client_step(what, which)
        elif what < 16:
            self._upstream_step(what - 8, which)
        elif what < 24:
            self._handler_step(what - 16, which)
        else:
            self._other_step(what - 24, which)
        self.settle()

    def _client_step(self, what: int, which: int) -> None:
        pipe, client = self.pipe, self.client
        if pipe.closed:
            return
        if what < 5:
            if pipe.reading:
                client.data_received((FROM_CLIENT, MORE)[what == 4][which])
        elif what == 5:
            if which < 3 and pipe.reading:
                client.eof_received()
                pipe.close()
            elif which < 5:
                pipe.lose(ConnectionResetError())
            elif client in self.server.hangups.links:
                client.hung_up()
        elif what == 6:
            if not client.write_paused and which < 4:
                client.pause_writing()
            pipe.fills = not client.write_paused
        elif client.write_paused:
            client.resume_writing()
        else:
            pipe.fills = False

    def _upstream_step(self, what: int, which: int) -> None:
        ex = self.client.exchange
        connection = ex.relay.connection if ex is not None and ex.relay is not None else None
        if connection is None and self.upstream.pool.idle:
            connection = self.upstream.pool.idle[which % len(self.upstream.pool.idle)]
        pipe = next((p for p in self.upstream.pool.pipes if p.protocol is connection), None)
        if connection is None or pipe is None or pipe.closed:
            return
        if what < 5:
            if pipe.reading:
                connection.data_received((FROM_UPSTREAM, MORE_UPSTREAM)[what == 4][which])
        elif what == 5:
            if which < 4 and pipe.reading:
                connection.eof_received()
                pipe.close()
            else:
                pipe.lose(ConnectionResetError() if which & 1 else None)
        elif what == 6:
            connection.pause_writing()
        else:
            connection.resume_writing()

    def _handler_step(self, what: int, which: int) -> None:
        ex = self.client.exchange
        dialing = self.upstream.pool.under_way
        if what < 3:
            if dialing:
                self._dialed(dialing.pop(0), failed=what == 2)
        elif ex is None:
            self.watch = bool(which & 1)
        elif ex.state is State.HELD and what < 7:
            (self.forward, lambda e: e.respond(200, [], b"held"), lambda e: e.start_stream(200))[what % 3](ex)
        elif ex.state is State.MAKING:
            (lambda: ex.write(b"token"), ex.end, ex.abort)[which % 3]()

    @staticmethod
    def _dialed(dialing: Dialing, *, failed: bool) -> None:
        if failed:
            dialing.relay.failed(UpstreamFault.DIAL, "refused")
        else:
            dialing.relay.dialed(dialing.pool.connect())

    def _other_step(self, what: int, which: int) -> None:
        if what < 2:
            self.clock.now += (0.5, 1, 3, 10, 30, 61, 130, 301)[which]
            self.sweep()
        elif what == 2:
            self.handler.plan = BodyPlan(which % 3)
        elif what == 3:
            self.handler.at_head = which == 7
            self.handler.raising = RAISING[which]
        elif what == 4:
            self.handler.at_ready = which
        elif what == 5:
            self.handler.on_failure = which % 4
        elif what == 6 and self.pipe.closed:
            self.reconnect()
        elif what == 7 and which == 7:
            self.server.draining = True
            self.client.close_if_idle()

    def sweep(self) -> None:
        """Do what the server does every second."""
        self.server._sweep()

    def settle(self) -> None:
        """Let the loop's turn end."""
        TURNS.turn()
        self.pipe.settle()
        for pipe in self.upstream.pool.pipes:
            pipe.settle()
        self.upstream.pool.pipes = [p for p in self.upstream.pool.pipes if not p.gone]

    def hold(self) -> None:
        """Check what must be true between any two turns."""
        client, pool = self.client, self.upstream.pool
        ex = client.exchange
        relay = ex.relay if ex is not None else None
        open_now = {id(ex)} if ex is not None else set()
        assert {id(e) for e in self.handler.begun if not e.over} == open_now
        own = {relay.connection} if relay is not None and relay.connection is not None else set()
        assert pool.connections == set(pool.idle) | own, "an upstream connection is nobody's"
        assert len(pool.under_way) == (relay is not None and relay.connection is None), "a dial is nobody's"
        assert all(c.relay is None for c in pool.idle)
        for pipe in pool.pipes:
            stuck = not pipe.reading and not (pipe.protocol in own and client.write_paused)
            assert not stuck, f"the upstream isn't read any more: {relay}"
        if not self.pipe.closed and not self.pipe.reading:
            waiting = client.phase is Phase.BODY and ex is not None
            assert waiting or client.write_paused, f"the client isn't read any more: {client!r}"
            watched = client in self.server.hangups.links
            assert watched is (client.phase is Phase.BODY), "nobody would see it leave"
        if client.lost:
            assert client not in self.server.hangups.links
            assert ex is None
            assert client not in self.server.connections

    def end(self) -> None:
        """Let the client leave, and look for what is left."""
        if not self.pipe.gone:
            self.pipe.lose(None)
        self.settle()
        self.hold()
        assert not self.server.connections
        assert len(self.handler.outcomes) == len(self.handler.begun)
        assert sum(self.server.outcomes.values()) == len(self.handler.begun)


@on_turns
def check(data: bytes) -> None:
    """Run a program."""
    world = World()
    for byte in data[:300]:
        world.step(byte & 31, byte >> 5)
        world.hold()
    world.end()


def program(*steps: tuple[int, int]) -> bytes:
    """Write a program."""
    return bytes(what | which << 5 for what, which in steps)


def seeds() -> list[bytes]:
    """A few whole lives."""
    dial, answer, sweep = (16, 0), (8, 0), (24, 1)
    return [
        program((0, 0), dial, answer, (0, 1), answer, (4, 4), answer, answer, answer),
        program((0, 2), (0, 3), dial, (8, 2), (8, 4), (6, 0), (8, 4), (7, 0), (8, 5)),
        *(
            program((27, n), (0, 0), dial, (8, 2), (8, 4), (5, 3), (30, 0), (0, 1), dial, answer)
            for n in range(7)
        ),
        program((27, 4), (0, 0), (18, 0), (0, 0), dial, (13, 0), (0, 0)),
        program((0, 0), dial, (6, 7), answer, (0, 0), (7, 0), answer, (0, 0), answer),
        program((26, 2), (0, 4), dial, (14, 0), (0, 4), (15, 0), (0, 5), (8, 1), (8, 7)),
        program((26, 2), (4, 2), dial, (4, 3), (8, 2), (13, 4)),
        program((28, 7), (0, 0), (21, 0), (23, 0), (23, 1), (0, 0), (20, 0), (0, 6), (19, 0), (18, 0)),
        program((0, 0), dial, answer, (0, 0), (13, 5), dial, answer, (5, 0), (30, 0), (0, 0)),
        program((29, 1), (0, 0), (18, 0), dial, sweep, (24, 4), (25, 5), sweep),
        program((19, 1), (0, 0), dial, (8, 3), (8, 5), (0, 0), (8, 2), (8, 4), (8, 5)),
    ]
