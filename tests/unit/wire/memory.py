"""The client's side of the wire without sockets: bytes in, requests and answers out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import h11
from drover_proxy.wire import BodyPlan, Exchange, Limits, Outcome, Server
from drover_proxy.wire.answers import plain_error
from drover_proxy.wire.client import ClientConnection


class FakeTransport(asyncio.Transport):
    """Takes what is written and remembers how it was ended."""

    def __init__(self, peer: str = "192.0.2.1") -> None:
        super().__init__()
        self.peer = peer
        self.written = b""
        self.closed = False
        self.half_closed = False

    def write(self, data: bytes) -> None:
        """Collect."""
        assert not self.closed
        self.written += data

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is ever held."""

    def pause_reading(self) -> None:
        """Whoever feeds it waits for the turns to be over."""

    resume_reading = pause_reading

    def is_closing(self) -> bool:
        """Tell."""
        return self.closed

    def can_write_eof(self) -> bool:
        """As sockets can."""
        return True

    def write_eof(self) -> None:
        """Note."""
        self.half_closed = True

    def close(self) -> None:
        """Note."""
        self.closed = True

    abort = close

    def get_extra_info(self, name: str, default: object = None) -> object:
        """Have a peer."""
        return (self.peer, 1) if name == "peername" else default

    @property
    def ended(self) -> bool:
        """No more answers will come."""
        return self.closed or self.half_closed


@dataclass
class Answering:
    """Answers every request at once, and lists what came whole."""

    requests: list[tuple[bytes, bytes, bytes]] = field(default_factory=list)
    begun: int = 0

    def head(self, ex: Exchange) -> BodyPlan:
        """Hold bodies whole."""
        self.begun += 1
        return BodyPlan.BUFFER

    def ready(self, ex: Exchange) -> None:
        """List, and answer."""
        self.requests.append((ex.method, ex.target, ex.body))
        ex.respond(200, [], b"")

    def error_answer(self, asked: object, status: int, code: str, message: str):
        """Answer the wire's own errors."""
        return plain_error(code, message)

    def finished(self, ex: Exchange, outcome: Outcome) -> None:
        """Nothing to do."""


def ours(
    pieces: list[bytes], limits: Limits | None = None
) -> tuple[list[tuple[bytes, bytes, bytes]], FakeTransport]:
    """Feed the wire; return the requests it would have forwarded, and its transport."""
    handler = Answering()
    server = Server(handler, limits)  # type: ignore[arg-type]
    turns: list[Callable[[], None]] = []
    server.soon = turns.append  # type: ignore[method-assign]
    connection = ClientConnection(server)
    transport = FakeTransport()
    connection.connection_made(transport)
    for piece in pieces:
        if not transport.closed:
            connection.data_received(piece)
        while turns:
            turns.pop(0)()
    return handler.requests, transport


def theirs(data: bytes) -> tuple[list[tuple[bytes, bytes, bytes]], bool]:
    """Feed h11; return the requests that came whole, and whether it refused what followed.

    h11 gets a new connection for each request, and not the one empty line before it, which RFC 9112 (2.2)
    asks to ignore and h11 refuses.
    """
    requests: list[tuple[bytes, bytes, bytes]] = []
    while True:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        connection.receive_data(data.removeprefix(b"\r\n"))
        request, refused = _one(connection)
        if request is not None:
            requests.append(request)
        if request is None or connection.our_state is h11.MUST_CLOSE:
            return requests, refused
        data = connection.trailing_data[0]


def _one(connection: h11.Connection) -> tuple[tuple[bytes, bytes, bytes] | None, bool]:
    """Take one request from h11, and answer it."""
    request, body = None, b""
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError:
            return None, True
        if isinstance(event, h11.Request):
            request, body = event, b""
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            assert request is not None
            connection.send(h11.Response(status_code=200, headers=[(b"content-length", b"0")]))
            connection.send(h11.EndOfMessage())
            return (bytes(request.method), bytes(request.target), body), False
        else:  # NEED_DATA, PAUSED
            return None, False
