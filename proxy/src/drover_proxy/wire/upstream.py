"""A connection to an upstream: it sends one request at a time and follows the framing of its answer."""

from __future__ import annotations

import asyncio
import enum
from typing import TYPE_CHECKING

import httptools

from drover_proxy.wire.contract import UpstreamFault
from drover_proxy.wire.head import LENGTH, find_fault
from drover_proxy.wire.headers import Fields
from drover_proxy.wire.limits import ANSWER_HEAD_BYTES, WRITE_HIGH_BYTES

if TYPE_CHECKING:
    from drover_proxy.wire.pool import Pool
    from drover_proxy.wire.relay import Relay


class Framing(enum.IntEnum):
    """How the end of an answer's body is known (RFC 9112, 6.3)."""

    NONE = 0
    LENGTH = 1
    CHUNKED = 2
    CLOSE = 3


class BadAnswer(Exception):  # noqa: N818 - named after what it is
    """The upstream's answer can't be relayed: not HTTP/1.1, or its length is ambiguous."""


_NOT_CONNECTED = asyncio.Transport()


class UpstreamConnection(asyncio.Protocol):
    """One connection to one upstream. While `relay` is None it is idle in its pool.

    It is never half-closed: Ollama leaks what a half-closed client left behind. It ends by `transport.abort()`,
    and so in the same turn of the loop.
    """

    __slots__ = (
        "_buffer",
        "complete",
        "_fields",
        "_left",
        "_llhttp",
        "_surplus",
        "bodiless",
        "fields",
        "framing",
        "idle_until",
        "in_body",
        "line_end",
        "pool",
        "relay",
        "reusable",
        "served",
        "status",
        "transport",
    )

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.transport: asyncio.Transport = _NOT_CONNECTED
        self.relay: Relay | None = None
        self.served = 0
        self.idle_until = 0.0
        self.bodiless = False
        self.reusable = True
        self.framing = Framing.NONE
        self.in_body = False
        self.line_end = False
        self.status = 0
        self.fields: Fields = []
        self._fields = self.fields
        self._buffer = b""
        self._left = 0
        self.complete = False
        self._surplus = False
        self._llhttp = httptools.HttpResponseParser(self)

    # What llhttp calls. `on_chunk_*` are left out on purpose: following the chunks costs no Python at all.

    def on_message_begin(self) -> None:
        """Notice an answer that nobody asked for, behind the one that was."""
        if self.in_body:
            self._surplus = True
            self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field of the head; trailers go through as bytes and are of no interest."""
        if not self.in_body:
            self._fields.append((name.lower(), value.rstrip(b" \t")))

    def on_body(self, data: bytes) -> None:
        """Show a piece of the body to the watch."""
        relay = self.relay
        if relay is not None and relay.watch is not None and not self._surplus:
            relay.watch.feed(data)

    def on_message_complete(self) -> None:
        """Take note of the end of the answer."""
        self.complete = True

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = transport  # type: ignore[assignment] # a stream's: asyncio can't say so
        self.pool.connections.add(self)
        self.transport.set_write_buffer_limits(WRITE_HIGH_BYTES)

    def data_received(self, data: bytes) -> None:
        """Follow the answer and pass it on."""
        relay = self.relay
        if relay is None:
            self.close()  # bytes that nobody asked for: whatever they are, this connection is out of step
        elif self.in_body:
            self._body(relay, data)
        else:
            self._head(relay, self._buffer + data if self._buffer else data)

    def eof_received(self) -> bool:
        """The upstream will send no more. It may not listen either: don't wait for its socket to close."""
        self._lost("closed the connection")
        self.transport.abort()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is no more."""
        self._lost(f"reset the connection: {exc}" if exc else "closed the connection", clean=exc is None)
        self.pool.forget(self)

    def pause_writing(self) -> None:
        """The upstream doesn't keep up with a streamed body."""
        if self.relay is not None:
            self.relay.upload_paused(paused=True)

    def resume_writing(self) -> None:
        """The upstream has caught up."""
        if self.relay is not None:
            self.relay.upload_paused(paused=False)

    # What the relay calls.

    def begin(self, relay: Relay, *, bodiless: bool) -> None:
        """Get ready for the answer to the request that the relay is about to write; `bodiless` for HEAD."""
        self.relay = relay
        self.bodiless = bodiless
        self.in_body = False
        self._buffer = b""
        self.complete = False

    def close(self) -> None:
        """Close at once, whatever is under way."""
        self.relay = None
        self.pool.forget(self)
        if self.transport is not _NOT_CONNECTED:
            self.transport.abort()

    def at_chunk_boundary(self) -> bool:
        """Say whether a chunk may be added here; the parser is spoilt afterwards.

        llhttp knows but doesn't tell, so it is asked by a last chunk: only between chunks that ends the message.
        """
        if self.framing is not Framing.CHUNKED or not self.line_end or self.complete:
            return False
        self.relay = None  # the watch must not see this
        try:
            self._llhttp.feed_data(b"0\r\n\r\n")
        except httptools.HttpParserError:
            return False
        return self.complete

    # Inner workings.

    def _head(self, relay: Relay, data: bytes) -> None:
        """Take the head of the answer, and whatever came with it."""
        end = data.find(b"\r\n\r\n") + 4
        if (end if end > 3 else len(data)) > ANSWER_HEAD_BYTES:
            return self._spoilt(relay, f"a head of more than {ANSWER_HEAD_BYTES} bytes")
        if end == 3:
            fault = find_fault(data)
            if fault:
                return self._spoilt(relay, fault)
            self._buffer = data
            return None
        whole = end == len(data)
        raw = data if whole else data[:end]
        rest = b"" if whole else data[end:]
        self._buffer = b""
        try:
            self._parse(raw)
        except (BadAnswer, httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            return self._spoilt(relay, str(error))
        if self.status < 200:
            self.complete = False
            relay.interim(self.status, raw)
            return self._head(relay, rest) if rest and self.relay is relay else None
        self.in_body = True
        if self.framing is Framing.NONE:
            self.complete = True
            self.reusable = self.reusable and not rest
            relay.answer(self, raw, b"")
            return None
        if not rest and not self.complete:
            relay.answer(self, raw, b"")
            return None
        return self._first(relay, raw, rest)

    def _first(self, relay: Relay, raw: bytes, rest: bytes) -> None:
        """Relay the head together with the first piece of the body: one write for both."""
        rest = self._follow(rest)
        if self._surplus:
            return self._spoilt(relay, "bytes beyond the end of the answer")
        relay.answer(self, raw, rest)
        self.line_end = rest.endswith(b"\r\n")
        return None

    def _body(self, relay: Relay, data: bytes) -> None:
        """Relay a piece of the body. This is the path of every token."""
        data = self._follow(data)
        if self._surplus:
            relay.broken(self, "the upstream sent bytes that are no part of its answer")
        elif self.complete:
            relay.last(self, b"", data)
        else:
            self.line_end = data.endswith(b"\r\n")
            relay.piece(data)

    def _follow(self, data: bytes) -> bytes:
        """Follow the framing through this piece; give what of it belongs to the answer."""
        if self.framing is Framing.LENGTH:
            left = self._left = self._left - len(data)
            if left < 0:
                # More than it said: the answer is whole, the connection is not to be used again.
                data = data[:left]
                self.reusable = False
            if data:
                self._llhttp.feed_data(data)
            self.complete = left <= 0
            return data
        try:
            self._llhttp.feed_data(data)
        except httptools.HttpParserError:
            self._surplus = True
        if self.complete and data.endswith(b"\r\n\r\n\r\n"):
            self._surplus = True
        return data

    def _parse(self, raw: bytes) -> None:
        """Take the head apart and decide how its body ends."""
        fault = find_fault(raw)
        if fault:
            raise BadAnswer(fault)
        self._fields = self.fields = []
        self.complete = self._surplus = False
        self._llhttp.feed_data(raw)
        self.status = status = self._llhttp.get_status_code()
        if raw[:7] != b"HTTP/1.":
            raise BadAnswer("not HTTP/1.x")
        if status == 101:
            raise BadAnswer("it switches protocols, which nobody asked for")
        lengths = [value for name, value in self.fields if name == b"content-length"]
        codings = [value for name, value in self.fields if name == b"transfer-encoding"]
        if codings and (lengths or len(codings) > 1 or codings[0].lower() != b"chunked"):
            raise BadAnswer("its Transfer-Encoding is not just chunked")
        if len(lengths) > 1 or (lengths and LENGTH.fullmatch(lengths[0]) is None):
            raise BadAnswer("its Content-Length is not one plain number")
        if status < 200:
            return
        self.reusable = self._llhttp.should_keep_alive()
        self.line_end = True
        if self.bodiless or status in {204, 304}:
            self.framing = Framing.NONE
            if not self.complete:
                self._llhttp = httptools.HttpResponseParser(self)  # it waits for a body that won't come
        elif codings:
            self.framing = Framing.CHUNKED
        elif lengths:
            self.framing = Framing.LENGTH
            self._left = int(lengths[0])
        else:
            self.framing = Framing.CLOSE
            self.reusable = False

    def _spoilt(self, relay: Relay, why: str) -> None:
        """Give the answer up before anything of it was relayed."""
        self.close()
        relay.failed(UpstreamFault.BAD_ANSWER, f"it sent a malformed answer: {why}")

    def _lost(self, why: str, *, clean: bool = True) -> None:
        """Tell the relay, if there is one, that the upstream is gone."""
        relay = self.relay
        if relay is None:
            return
        if not self.in_body:
            self.relay = None
            relay.lost(self, f"it {why}", untouched=not self._buffer)
        elif self.framing is Framing.CLOSE and clean:
            relay.last(self, b"", b"")
        else:
            relay.broken(self, f"the upstream {why} in the middle of its answer")
