"""What h11 makes of the same bytes: the other opinion in the comparisons."""

from __future__ import annotations

from typing import NamedTuple

import h11

LARGE = 1 << 20

Seen = tuple[bytes, bytes, bytes]
"""Method, target, body."""


class Answer(NamedTuple):
    """An answer as a client reads it."""

    status: int
    body: bytes
    whole: bool


def requests_in(data: bytes, *, heads: bool = False) -> list[Seen]:
    """List the requests that a server reads, up to what it refuses or waits for.

    With `heads`, the bodies are left out, and a request counts when its head is whole.

    h11 gets a new connection for each request, and not the one empty line before it, which RFC 9112 (2.2)
    asks to ignore and h11 refuses.
    """
    requests: list[Seen] = []
    while True:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=LARGE)
        connection.receive_data(data.removeprefix(b"\r\n"))
        request, whole = _request(connection)
        if request is not None and (whole or heads):
            requests.append((*request[:2], b"") if heads else request)
        if not whole or connection.our_state is h11.MUST_CLOSE:
            return requests
        data = connection.trailing_data[0]


def _request(connection: h11.Connection) -> tuple[Seen | None, bool]:
    """Take one request, and answer it; say whether it was whole."""
    request, body = None, b""
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError:
            return request, False
        if isinstance(event, h11.Request):
            request = bytes(event.method), bytes(event.target), b""
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage) and request is not None:
            connection.send(h11.Response(status_code=404, headers=[(b"content-length", b"0")]))
            connection.send(h11.EndOfMessage())
            return (*request[:2], body), True
        else:  # NEED_DATA, PAUSED
            return request, False


def one_request(data: bytes) -> Seen | None:
    """Read what was forwarded: exactly one request, or (None) the beginning of one."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=LARGE)
    connection.receive_data(data)
    request, body = connection.next_event(), b""
    assert isinstance(request, h11.Request), "the head always goes out whole"
    assert sum(name == b"host" for name, _ in request.headers) == 1
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            assert connection.trailing_data[0] == b"", "something follows the request"
            return bytes(request.method), bytes(request.target), body
        else:
            return None


def answer_in(data: bytes, method: bytes, *, closed: bool) -> tuple[Answer | None, bytes]:
    """Read an answer, and what follows it; None where there is none, or it is refused."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=LARGE)
    connection.send(h11.Request(method=method, target="/x", headers=[("host", "a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    if closed:
        connection.receive_data(b"")
    status, body = 0, b""
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError:
            return None, b""
        if isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return Answer(status, body, whole=True), connection.trailing_data[0]
        elif not isinstance(event, h11.InformationalResponse):
            return (Answer(status, body, whole=False) if status else None), b""
