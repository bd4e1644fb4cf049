"""One request on one connection, and its whole answer: all that control calls on loopback need of HTTP.

A client library would take a third of the proxy's memory and of its start, for pools, redirects and proxies
that nobody wants here.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple
from urllib.parse import urlsplit

import httptools

MOST_BYTES = 256 << 20
"""Of an answer. The largest there is lists a vocabulary of some hundred thousand words: 20 MB."""


class CallError(Exception):
    """No whole answer came."""


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    content: bytes
    content_type: str


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int


def address_of(url: str) -> Address:
    """Return where the server of a http URL listens."""
    parts = urlsplit(url)
    return Address(parts.hostname or "127.0.0.1", parts.port or 80)


async def call(  # noqa: PLR0913 - one call has as many aspects
    address: Address,
    method: str,
    path: str,
    body: bytes | None = None,
    *,
    connect_seconds: float,
    answer_seconds: float,
) -> Answer:
    """Send a request and return its answer.

    Raises:
        CallError: No connection, or no whole answer.
        asyncio.TimeoutError: Not in time.
    """
    loop = asyncio.get_running_loop()
    head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\naccept: */*\r\nconnection: close\r\n"
    if body is not None:
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
    try:
        connecting = loop.create_connection(lambda: _Exchange(loop.create_future()), *address)
        transport, exchange = await asyncio.wait_for(connecting, connect_seconds)
    except OSError as error:
        raise CallError(error.strerror or str(error)) from error
    try:
        transport.write(f"{head}\r\n".encode() + (body or b""))
        return await asyncio.wait_for(exchange.answer, answer_seconds)
    finally:
        transport.abort()  # never half-closed: Ollama leaks what a half-closed client left behind


class _Exchange(asyncio.Protocol):
    """Reads one answer."""

    def __init__(self, answer: asyncio.Future[Answer]) -> None:
        self.answer = answer
        self._parser = httptools.HttpResponseParser(self)
        self._content: list[bytes] = []
        self._size = 0
        self._type = ""

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"it is no HTTP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(str(exc or "the connection was closed before the answer was whole"))

    def _fail(self, reason: str) -> None:
        if not self.answer.done():
            self.answer.set_exception(CallError(reason))
            self.answer.exception()  # whoever waited may have left

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self._type = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._content.append(body)
        self._size += len(body)
        if self._size > MOST_BYTES:
            self._fail(f"the answer is longer than {MOST_BYTES} bytes")

    def on_message_complete(self) -> None:
        if not self.answer.done():
            status = self._parser.get_status_code()
            self.answer.set_result(Answer(status, b"".join(self._content), self._type))
