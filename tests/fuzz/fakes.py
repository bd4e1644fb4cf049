"""The wire without sockets: transports that remember, turns of a loop, a clock."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from drover_proxy.wire import BodyPlan, Exchange, Limits, Outcome, Server, Upstream, UpstreamError
from drover_proxy.wire.client import ClientConnection
from drover_proxy.wire.link import Link
from drover_proxy.wire.upstream import UpstreamConnection


class DeliberateError(Exception):
    """Raised by a handler, to see that the wire stands it."""


class Turns:
    """All of an event loop that the wire uses while it is fed: what it puts off until the next turn."""

    def __init__(self) -> None:
        self.soon: list[tuple[Callable[..., object], tuple[Any, ...]]] = []

    def call_soon(self, call: Callable[..., object], *arguments: object) -> None:
        """Keep it for the next turn."""
        self.soon.append((call, arguments))

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Fail: something raised where nothing may, unless the harness raised it."""
        if isinstance(context.get("exception"), DeliberateError):
            return
        raise AssertionError(context["message"]) from context.get("exception")

    def call_later(self, seconds: float, call: Callable[..., object]) -> None:
        """Not by itself: the harness sweeps."""

    def is_running(self) -> bool:
        """Tell."""
        return True

    def turn(self) -> None:
        """Do what was put off, and what that puts off again."""
        while self.soon:
            call, arguments = self.soon.pop(0)
            call(*arguments)


TURNS = Turns()


def on_turns(check: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """Run a check as if on a loop."""

    @functools.wraps(check)
    def wrapped(data: bytes) -> None:
        TURNS.soon.clear()
        asyncio._set_running_loop(TURNS)  # type: ignore[arg-type] # as much of a loop as is needed
        try:
            check(data)
        finally:
            asyncio._set_running_loop(None)

    return wrapped


class Quiet:
    """A handler of which the targets change what they need."""

    def __init__(self) -> None:
        self.begun: list[Exchange] = []
        self.outcomes: list[Outcome] = []

    def head(self, ex: Exchange) -> BodyPlan:
        """Count."""
        self.begun.append(ex)
        return BodyPlan.NONE

    def ready(self, ex: Exchange) -> None:
        """Nothing to do."""

    def answered(self, ex: Exchange, status: int) -> None:
        """Nothing to do."""

    def upstream_failed(self, ex: Exchange, error: UpstreamError) -> bool:
        """Leave it to the wire."""
        return False

    def error_answer(
        self, asked: object, status: int, code: str, message: str
    ) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Say it plainly."""
        return [(b"x-drover-error", code.encode())], code.encode()

    def gone(self, ex: Exchange) -> None:
        """Check that its upstream is gone before anybody is told."""
        assert ex.relay is None

    def finished(self, ex: Exchange, outcome: Outcome) -> None:
        """Keep."""
        assert ex.over
        self.outcomes.append(outcome)


class Pipe(asyncio.Transport):
    """A transport: takes what is written, remembers how it ended, and holds the wire to asyncio's rules."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.written = b""
        self.closed = self.aborted = self.half_closed = False
        self.reading = True
        self.gone = False
        """`connection_lost` was called."""
        self.fills = False
        """The next write is more than the peer takes: the writer is paused before it returns."""

    def write(self, data: bytes) -> None:
        """Collect."""
        assert not self.half_closed, "a write behind write_eof: asyncio raises"
        if not self.closed:
            self.written += data
            if self.fills:
                self.fills = False
                self.protocol.pause_writing()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is held; the harness pauses the writer when it wants to."""

    def is_closing(self) -> bool:
        """Tell."""
        return self.closed

    def can_write_eof(self) -> bool:
        """As sockets can."""
        return True

    def write_eof(self) -> None:
        """Note."""
        assert not self.closed
        self.half_closed = True

    def close(self) -> None:
        """Note."""
        self.closed = True

    def abort(self) -> None:
        """Note that what waited to be written is lost, and that the peer may see a reset."""
        self.closed = self.aborted = True

    def pause_reading(self) -> None:
        """Note."""
        assert not self.closed, "paused when closed: uvloop raises"
        self.reading = False

    def resume_reading(self) -> None:
        """Note."""
        assert not self.closed, "resumed when closed: uvloop raises"
        self.reading = True

    def get_extra_info(self, name: str, default: object = None) -> object:
        """Have a peer, and no socket."""
        return ("192.0.2.1", 1) if name == "peername" else default

    def settle(self, error: Exception | None = None) -> None:
        """Do what the loop does after the turn in which a transport was closed."""
        if self.closed and not self.gone:
            self.gone = True
            self.protocol.connection_lost(error)

    def lose(self, error: Exception | None) -> None:
        """The peer's doing: the connection is gone."""
        self.closed = self.aborted = True
        self.settle(error)


class Wires:
    """An upstream whose connections are pipes: there is always an idle one, so that nothing is dialled."""

    def __init__(self) -> None:
        self.upstream = Upstream("gpu0", "127.0.0.1", 11434)
        self.pool = self.upstream.pool
        self.pipes: list[Pipe] = []
        self.supply()

    def supply(self) -> None:
        """Lay an idle connection ready, if there is none."""
        if not self.pool.idle:
            connection = UpstreamConnection(self.pool)
            pipe = Pipe(connection)
            self.pipes.append(pipe)
            connection.connection_made(pipe)
            self.pool.idle.append(connection)


class FakeHangUps:
    """Knows whose leaving would be noticed though nothing is read from them."""

    def __init__(self) -> None:
        self.links: set[Link] = set()

    def watch(self, link: Link) -> None:
        """Begin."""
        self.links.add(link)

    def forget(self, link: Link) -> None:
        """End."""
        self.links.discard(link)


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Read it."""
        return self.now


def make_server(handler: Quiet, limits: Limits | None = None) -> tuple[Server, Clock]:
    """Make a server whose clock stands still."""
    server = Server(handler, limits)
    clock = Clock()
    server.clock = clock  # type: ignore[assignment] # a function's place, taken by something callable
    server.now = clock.now
    server._hangups = FakeHangUps()  # type: ignore[assignment] # the same two methods
    return server, clock


def connect(server: Server) -> tuple[ClientConnection, Pipe]:
    """Let a client connect."""
    connection = ClientConnection(server)
    pipe = Pipe(connection)
    connection.connection_made(pipe)
    return connection, pipe


def cuts(data: bytes, seed: int) -> Iterator[bytes]:
    """Cut bytes into pieces, as the network might: 0 doesn't, 255 cuts them into single ones."""
    if seed == 0:
        yield data
        return
    sizes = itertools.cycle((1,) if seed == 255 else (seed % 7 + 1, seed // 7 % 11 + 1, 1, seed))
    at = 0
    while at < len(data):
        size = next(sizes)
        yield data[at : at + size]
        at += size
