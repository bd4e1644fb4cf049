"""Answers: whatever an upstream sends, the client never gets a clean answer that h11 wouldn't read there.

Input: one byte for the method and the watch, one for how the upstream's connection ends, one for where the
network cuts, then what the upstream sends.
"""

from __future__ import annotations

from typing import NamedTuple

from drover_proxy.dialect.errors import error_event
from drover_proxy.dialect.routes import Shape
from drover_proxy.dialect.watches import StreamWatch
from drover_proxy.wire import Exchange, Kind

from tests.fuzz.fakes import TURNS, Quiet, Wires, connect, cuts, make_server, on_turns
from tests.fuzz.reference import Answer, answer_in

METHODS = (b"GET", b"HEAD")
WATCHES = (None, None, *Shape)
OPEN, EOF, LOST, RESET = range(4)
FAILED = {Kind.UPSTREAM_FAILED, Kind.UPSTREAM_BROKEN}


class Asking(Quiet):
    """Forwards the one request."""

    def __init__(self, upstream: Wires, shape: Shape | None) -> None:
        super().__init__()
        self.upstream, self.shape = upstream.upstream, shape

    def ready(self, ex: Exchange) -> None:
        """Forward."""
        ex.forward(self.upstream, watch=StreamWatch(self.shape) if self.shape else None)


class Told(NamedTuple):
    """What became of the request."""

    kind: Kind | None
    answer: Answer | None
    kept: bool
    """The upstream's connection is in its pool."""


def relay(sent: bytes, method: bytes, shape: Shape | None, ending: int, cut: int) -> Told:
    """Let the upstream send this."""
    upstream = Wires()
    handler = Asking(upstream, shape)
    server, _ = make_server(handler)
    client, pipe = connect(server)
    client.data_received(method + b" /x HTTP/1.1\r\nHost: a\r\n\r\n")
    (other,) = upstream.pipes
    for piece in cuts(sent, cut):
        if other.closed:
            break
        other.protocol.data_received(piece)
    kept = bool(upstream.pool.idle)
    if not other.closed and ending == EOF:
        assert other.protocol.eof_received() is False
        other.close()
    elif not other.closed and ending == LOST:
        other.lose(None)
    elif not other.closed and ending == RESET:
        other.lose(ConnectionResetError())
    other.settle()
    TURNS.turn()
    kind = handler.outcomes[0].kind if handler.outcomes else None
    answer, _ = answer_in(pipe.written, method, closed=pipe.closed and not pipe.aborted)
    assert len(upstream.pipes) == 1, "a fresh connection is never replaced"
    pipe.lose(None)
    other.settle()
    assert len(handler.outcomes) == 1
    assert not server.connections
    assert upstream.pool.connections == set(upstream.pool.idle)
    return Told(kind, answer, kept)


@on_turns
def check(data: bytes) -> None:
    """Compare what the client gets with what h11 reads from the upstream."""
    if len(data) < 4:
        return
    method, shape = METHODS[data[0] & 1], None if data[0] & 1 else WATCHES[(data[0] >> 1) % len(WATCHES)]
    ending, cut, sent = data[1] % 4, data[2], data[3:]
    told = relay(sent, method, shape, ending, 0)
    expected, trailing = answer_in(sent, method, closed=ending in {EOF, LOST})
    _hold(told, expected, shape)
    again = relay(sent, method, shape, ending, cut or 255)
    _hold(again, expected, shape)
    assert not (told.kept or again.kept) or trailing == b"", "kept, and out of step"
    if trailing:
        return  # whether the proxy sees it before it has ended the answer is a matter of time
    if told.kind in FAILED:  # whether the answer's head has gone out already is another
        assert again.kind in FAILED, (again, told)
    else:
        assert again == told, (again, told)


def _hold(told: Told, expected: Answer | None, shape: Shape | None) -> None:
    """A clean end is the upstream's clean end, and its bytes are the upstream's."""
    kind, answer, _ = told
    if kind in {Kind.COMPLETE, Kind.IN_BAND_ERROR}:
        assert expected is not None, "h11 refuses this answer"
        assert expected.whole, "h11 waits for more"
        assert answer == expected
        if shape is not None and expected.status == 200 and kind is Kind.COMPLETE:
            assert _ends(shape, expected.body), "clean, and not as its dialect ends"
    elif kind is Kind.UPSTREAM_BROKEN:
        if answer is not None and answer.whole:
            assert shape is not None, "a broken answer ends cleanly"
            assert answer.body.endswith(error_event(shape, "the answer broke off before its end; ask again"))
    elif kind is Kind.UPSTREAM_FAILED:
        assert answer is not None
        assert answer.status == 502
        assert answer.whole
    elif answer is not None:
        assert not answer.whole, "the client has an answer that we don't know of"


def _ends(shape: Shape, body: bytes) -> bool:
    """Say whether this is how an answer of that dialect ends."""
    watch = StreamWatch(shape)
    watch.feed(body)
    return watch.whole(200)


def seeds() -> list[bytes]:
    """Answers of every framing, and broken ones."""
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    answers = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\n\r\nok",
        b"HTTP/1.1 204 No Content\r\nKeep-Alive: x\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 100 C\r\n\r\nHTTP/1.1 103 E\r\nX: y\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        chunked + b"2\r\nok\r\n0\r\n\r\n",
        chunked + b"2;x=y\r\nok\r\n0\r\nX: y\r\n\r\n",
        chunked + b"2\r\nok\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        chunked + b"2\r\nok\r\n1",
        chunked + b"2\r\nokx\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200\r\nConnection: x, keep-alive\r\nX: y\r\nContent-Length: 2\r\n\r\nokok",
        b"HTTP/2 200 OK\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        chunked + b'1e\r\n{"response":"b","done":false}\n\r\nd\r\n{"done":true}\r\n0\r\n\r\n',
        chunked + b'1e\r\n{"response":"b","done":false}\n\r\n0\r\n\r\n',
        b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n" + b'{"error":"x"}',
    ]
    return [
        bytes(((2 * WATCHES.index(shape) + (index + ending) % 2) % 256, ending, 7 * index)) + raw
        for index, raw in enumerate(answers)
        for ending, shape in ((EOF, None), (OPEN, None), (OPEN, Shape.DONE), (RESET, Shape.CHAT))
    ]
