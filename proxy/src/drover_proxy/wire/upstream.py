"""A connection to an upstream: it sends one request at a time and follows the framing of its answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import httptools

from drover_proxy.wire.answerhead import AnswerHead, BadAnswer, Framing
from drover_proxy.wire.chunks import step_over
from drover_proxy.wire.contract import UpstreamFault, Watch
from drover_proxy.wire.fields import find_fault
from drover_proxy.wire.limits import ANSWER_HEAD_BYTES, WRITE_HIGH_BYTES

if TYPE_CHECKING:
    from drover_proxy.wire.pool import Pool
    from drover_proxy.wire.relay import Relay


NONE: Final = Framing.NONE  # as globals, they are cheap to look up
BY_LENGTH: Final = Framing.LENGTH
CHUNKED: Final = Framing.CHUNKED
CLOSE: Final = Framing.CLOSE

_NOT_CONNECTED = asyncio.Transport()


class UpstreamConnection:
    """One connection to one upstream. While `relay` is None it is idle in its pool.

    It is never half-closed: Ollama leaks what a half-closed client left behind. It ends by
    `transport.abort()`, and so in the same turn of the loop. As to its base class, see Link.
    """

    __slots__ = (
        "_buffer",
        "_left",
        "_llhttp",
        "_llhttp_whole",
        "_surplus",
        "_unshown",
        "bodiless",
        "complete",
        "framing",
        "full",
        "idle_until",
        "in_body",
        "line_end",
        "moved",
        "out",
        "passed_bytes",
        "pool",
        "relay",
        "reusable",
        "served",
        "transport",
        "watch",
    )

    def __init__(self, pool: Pool) -> None:
        # First what a token needs, in one place: a thousand streams fit into no cache, and where this is
        # compiled, attributes lie in the order in which they are set here.
        self.relay: Relay | None = None
        self.in_body = False
        self.complete = False
        self._surplus = False  # what came is more than the answer, or no chunk
        self.line_end = False
        self.moved = False  # something came since the last sweep
        self.framing: Framing = NONE
        self._unshown: bytes | None = None
        """The head of a chunked answer of which llhttp needed to see nothing yet."""
        self.watch: Watch | None = None
        self.passed_bytes = 0  # not counted by the exchange yet
        self.out: asyncio.Transport = _NOT_CONNECTED  # the client's
        self.pool = pool
        self.transport: asyncio.Transport = _NOT_CONNECTED
        self.served = 0
        self.idle_until = 0.0
        self.bodiless = False
        self.reusable = True
        self.full = False
        """A part of a request waits to be sent."""
        self._buffer = b""  # the beginning of a head
        self._left = 0  # of an answer whose length was told
        self._llhttp: httptools.HttpResponseParser | None = None  # of chunked answers only
        self._llhttp_whole = False  # it has seen a whole answer: the next one needs another

    # What llhttp calls, where it is needed. `on_chunk_*` are left out on purpose: they would cost Python.

    def on_message_begin(self) -> None:
        """Notice an answer that nobody asked for, behind the one that was."""
        if self._llhttp_whole:
            self._surplus = True

    def on_body(self, data: bytes) -> None:
        """Show a piece of the body to the watch."""
        if self.watch is not None:
            self.watch.feed(data)

    def on_message_complete(self) -> None:
        """Take note of the end of the answer."""
        self.complete = self._llhttp_whole = True

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = transport  # type: ignore[assignment] # a stream's: asyncio can't say so
        self.pool.connections.add(self)
        self.transport.set_write_buffer_limits(WRITE_HIGH_BYTES, 0)

    def data_received(self, data: bytes) -> None:
        """Follow the answer and pass it on."""
        relay = self.relay
        if relay is None:
            self.close()  # bytes that nobody asked for: whatever they are, this connection is out of step
        elif self.in_body:
            data = self._follow(data)  # from here on: the path of every token
            if not (self.complete or self._surplus):
                self.line_end = data.endswith(b"\r\n")
                self.moved = True
                self.passed_bytes += len(data)
                self.out.write(data)
            elif self._surplus:
                relay.broken(self, "the upstream sent bytes that are no part of its answer")
            else:
                relay.last(self, b"", data)
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
        """The upstream doesn't keep up with a body."""
        self.full = True
        if self.relay is not None:
            self.relay.upload_paused(paused=True)

    def resume_writing(self) -> None:
        """The upstream has caught up."""
        self.full = False
        if self.relay is not None:
            self.relay.upload_paused(paused=False)

    # What the relay calls.

    def begin(self, relay: Relay, *, bodiless: bool) -> None:
        """Get ready for the answer to the request that the relay is about to write; `bodiless` for HEAD."""
        self.relay = relay
        self.out, self.watch = relay.transport, relay.watch
        self.passed_bytes = 0
        self.bodiless = bodiless
        self.in_body = False
        self._buffer = b""
        self.complete = False

    def let_go(self) -> None:
        """Forget the request that was served."""
        self.relay = self.watch = None
        self.out = _NOT_CONNECTED

    def close(self) -> None:
        """Close at once, whatever is under way."""
        self.let_go()
        self.pool.forget(self)
        if self.transport is not _NOT_CONNECTED:
            self.transport.abort()

    def at_chunk_boundary(self) -> bool:
        """Say whether a chunk may be added here; the parser is spoilt afterwards.

        llhttp knows but doesn't tell, so it is shown a last chunk: only between chunks that ends the message.
        """
        if self.framing is not CHUNKED or not self.line_end or self.complete:
            return False
        if self._unshown is not None:
            return True  # nothing but whole chunks came
        assert self._llhttp is not None
        self.let_go()  # the watch must not see this
        try:
            self._llhttp.feed_data(b"0\r\n\r\n")
        except httptools.HttpParserError:
            return False
        return self.complete

    # Inner workings.

    def _head(self, relay: Relay, data: bytes) -> None:
        """Take the head of the answer, and whatever came with it."""
        known = len(self._buffer)  # was looked at before: each byte is, once, however it drips
        self._buffer = b""
        try:
            heads = self.pool.heads
            while True:
                head = heads.again(data)
                if head is None:
                    end = data.find(b"\r\n\r\n", known - 3 if known > 3 else 0)
                    if end < 0:
                        self._partial_head(data, known)
                        return
                    head = heads.read(data[: end + 4])
                if head.status >= 200:
                    break
                relay.interim(head.status, head.relayed + b"\r\n")
                data, known = data[head.size :], 0
            rest = self._begin_body(head, data)
        except (BadAnswer, httptools.HttpParserError) as error:
            self.close()
            relay.failed(UpstreamFault.BAD_ANSWER, f"it sent a malformed answer: {error}")
            return
        relay.answer(self, head, rest)
        self.line_end = rest.endswith(b"\r\n") or not rest

    def _partial_head(self, data: bytes, known: int) -> None:
        """Keep the beginning of a head, unless it can't become one."""
        if len(data) > ANSWER_HEAD_BYTES:
            raise BadAnswer(f"a head of more than {ANSWER_HEAD_BYTES} bytes")
        if fault := find_fault(data, known):
            raise BadAnswer(fault)
        self._buffer = data

    def _begin_body(self, head: AnswerHead, data: bytes) -> bytes:
        """Get ready for the body; give what of it is here already, behind the head."""
        rest = data[head.size :]
        self.in_body = self.line_end = True
        self.reusable = head.keep_alive
        self.complete = self._surplus = False
        self.framing = framing = NONE if self.bodiless else head.framing
        if framing is BY_LENGTH:
            self._left = head.length
        elif framing is CHUNKED:
            self._unshown = head.raw
        elif framing is NONE:
            self.complete = True
            self.reusable = self.reusable and not rest
            return b""
        rest = self._follow(rest) if rest or framing is BY_LENGTH else rest
        if self._surplus:
            raise BadAnswer("bytes beyond its end")
        return rest

    def _follow(self, data: bytes) -> bytes:
        """Follow the framing through this piece; give what of it belongs to the answer."""
        framing = self.framing
        if framing is CHUNKED:
            self._follow_chunks(data)
            return data
        if framing is BY_LENGTH:
            left = self._left = self._left - len(data)
            if left <= 0:
                self.complete = True
                if left:
                    # More than it said: the answer is whole, the connection is not to be used again.
                    data = data[:left]
                    self.reusable = False
        if self.watch is not None and data:
            self.watch.feed(data)
        return data

    def _follow_chunks(self, data: bytes) -> None:
        """Step over whole chunks; from the first that isn't one, llhttp sees everything."""
        at = 0
        if self._unshown is not None:
            at, last = step_over(data, self.watch)
            if last:
                self.complete = True
                self._surplus = at < len(data)
                return
            if at == len(data):
                return
        rest = data[at:] if at else data
        try:
            parser = self._parser()
            if len(rest) > 4:
                parser.feed_data(rest)
                # llhttp takes CR and LF behind an answer for nothing. A client might not.
                end = rest[-4:] == b"\r\n\r\n" and rest[-5] not in b"\r\n"
                self._surplus = self._surplus or (self.complete and not end)
            else:  # perhaps a part of the end: nothing may follow it
                for place in range(len(rest)):
                    self._surplus = self._surplus or self.complete
                    parser.feed_data(rest[place : place + 1])
        except httptools.HttpParserError:
            self._surplus = True

    def _parser(self) -> httptools.HttpResponseParser:
        """Give llhttp for a chunked answer; it has seen the head, and what comes from now on."""
        head, parser = self._unshown, self._llhttp
        if parser is None or (head is not None and not self._llhttp_whole):
            parser = self._llhttp = httptools.HttpResponseParser(self)
        if head is not None:
            self._unshown = None
            self._llhttp_whole = False
            parser.feed_data(head)
        return parser

    def _lost(self, why: str, *, clean: bool = True) -> None:
        """Tell the relay, if there is one, that the upstream is gone."""
        relay = self.relay
        if relay is None:
            return
        if not self.in_body:
            self.relay = None
            relay.lost(self, f"it {why}", untouched=not self._buffer)
        elif self.framing is CLOSE and clean:
            relay.last(self, b"", b"")
        else:
            relay.broken(self, f"the upstream {why} in the middle of its answer")
