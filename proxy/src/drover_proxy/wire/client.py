"""A client's connection: reads requests one after the other, and gives each its turn."""

from __future__ import annotations

import asyncio
import enum
import socket
import struct
from typing import TYPE_CHECKING

from drover_proxy.wire import answers
from drover_proxy.wire.body import ChunkedBody, LengthBody
from drover_proxy.wire.contract import BodyPlan, Kind, Outcome
from drover_proxy.wire.exchange import Exchange
from drover_proxy.wire.head import BadRequest, HeadParser, bad, find_fault
from drover_proxy.wire.limits import (
    DISCARD_BYTES,
    EARLY_BODY_BYTES,
    LINGER_SECONDS,
    PIPELINED_BYTES,
    WRITE_HIGH_BYTES,
)
from drover_proxy.wire.relay import FOREVER
from drover_proxy.wire.states import Event, State

if TYPE_CHECKING:
    from drover_proxy.wire.server import Server

RESET = struct.pack("ii", 1, 0)  # SO_LINGER, no time: closing resets, so that nobody takes it for an end


class Phase(enum.IntEnum):
    """What a client's connection is reading."""

    HEAD = 0
    """Nothing yet, or a part of a head."""
    BODY = 1
    """The body of a request."""
    BUSY = 2
    """The request is whole and its answer under way. What comes is the next request; what goes is the client."""
    CLOSING = 3
    """Nothing any more: what comes is thrown away, what was written goes out, then the connection is closed."""


class ClientConnection(asyncio.Protocol):
    """One client.

    A client that shuts down its sending side before its answer has ended is taken for one that left: HTTP/1.1 clients
    don't do that, a vanished one looks the same, and what it had asked for costs a GPU.
    """

    __slots__ = (
        "active",
        "body",
        "buffer",
        "continue_due",
        "deadline",
        "early",
        "early_bytes",
        "exchange",
        "handler",
        "limits",
        "lost",
        "parser",
        "parsing",
        "peer",
        "phase",
        "pieces",
        "read_paused",
        "server",
        "surplus",
        "transport",
        "write_paused",
    )

    transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self.server = server
        self.handler = server.handler
        self.limits = server.limits
        self.parser = HeadParser()
        self.phase = Phase.HEAD
        self.exchange: Exchange | None = None
        self.body: LengthBody | ChunkedBody | None = None
        self.buffer = b""
        self.pieces: list[bytes] = []
        self.early: list[bytes] = []  # of a streamed body, while no upstream is there to take it
        self.early_bytes = 0
        self.peer = ""
        self.deadline = 0.0
        self.active = False
        self.parsing = False
        self.continue_due = False
        self.surplus = False
        self.write_paused = False
        self.read_paused = False
        self.lost = False

    def __repr__(self) -> str:
        """Tell where it stands."""
        return f"<ClientConnection {self.peer} {self.phase.name} {self.exchange!r}>"

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, or turn the client away when there are too many."""
        self.transport = transport  # type: ignore[assignment] # a stream's: asyncio can't say so
        self.transport.set_write_buffer_limits(WRITE_HIGH_BYTES)
        name = transport.get_extra_info("peername")
        self.peer = name[0] if isinstance(name, tuple) else "unix"
        self.deadline = self.server.clock() + self.limits.head_timeout
        refusal = self.server.admit(self)
        if refusal:
            self.write(answers.error(503, "too_many_connections", refusal))
            self.close(linger=True)

    def data_received(self, data: bytes) -> None:
        """Take what the client sends; what it means depends on the phase."""
        phase = self.phase
        if phase is Phase.HEAD:
            self._heads(self.buffer + data if self.buffer else data)
        elif phase is Phase.BODY:
            self.active = True
            self._body(data)
        elif phase is Phase.BUSY and not self.surplus:
            self.buffer += data
            if len(self.buffer) > PIPELINED_BYTES:
                self.buffer = b""
                self.surplus = True  # and the connection closes after this answer

    def eof_received(self) -> bool:
        """The client sends no more: between requests that is its good-bye, within one it has left."""
        if self.exchange is not None:
            self._left()
            self.transport.abort()
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - reset or closed: it has left
        """The connection is no more."""
        self._left()
        self.lost = True
        self.phase = Phase.CLOSING
        self.server.release(self)

    def pause_writing(self) -> None:
        """The client doesn't keep up."""
        self.write_paused = True
        if self.exchange is not None and self.exchange.relay is not None:
            self.exchange.relay.client_paused(paused=True)

    def resume_writing(self) -> None:
        """The client has caught up."""
        self.write_paused = False
        if self.exchange is not None and self.exchange.relay is not None:
            self.exchange.relay.client_paused(paused=False)

    # Reading requests.

    def _heads(self, data: bytes) -> None:
        """Take requests from what was read, as long as each is answered at once."""
        self.parsing = True
        while data and self.phase is Phase.HEAD:
            self.buffer = b""
            if data.startswith(b"\r\n") and len(data) > 2:
                data = data[2:]  # the one empty line that RFC 9112 asks to ignore
            end = data.find(b"\r\n\r\n") + 4
            try:
                if (end if end > 3 else len(data)) > self.limits.header_bytes:
                    raise BadRequest(  # noqa: TRY301 - one place answers them all
                        431, "head_too_long", f"a head of more than {self.limits.header_bytes} bytes"
                    )
                if end == 3:
                    self._partial_head(data)
                    break
                whole = end == len(data)
                self.parser.parse(data if whole else data[:end], self.limits)
            except BadRequest as error:
                self._refuse(error)
                break
            self.buffer = b"" if whole else data[end:]
            self._begin()
            data = self.buffer
        self.parsing = False

    def _partial_head(self, data: bytes) -> None:
        """Keep the beginning of a head, unless it can't become one."""
        fault = find_fault(data)
        if fault:
            raise bad(fault)
        if not self.active:
            self.active = True  # in this phase: a head has begun, and has this long to end
            self.deadline = self.server.clock() + self.limits.head_timeout
        self.buffer = data

    def _begin(self) -> None:
        """Make the exchange, ask the handler for its plan, and read the body accordingly."""
        parser = self.parser
        self.active = False
        self.exchange = ex = Exchange(
            self.server.number(),
            self,
            parser.method,
            parser.target,
            parser.fields,
            self.server.clock(),
            http10=parser.http10,
            keep_alive=parser.keep_alive,
        )
        self.phase = Phase.BUSY
        if parser.length or parser.chunked:
            self.phase = Phase.BODY
            self.body = ChunkedBody(keep=True) if parser.chunked else LengthBody(parser.length)
            self.deadline = self.server.now + self.limits.body_timeout
            self.continue_due = parser.expects
        else:
            self.deadline = FOREVER
        try:
            ex.plan = plan = self.handler.head(ex)
        except Exception as trouble:  # noqa: BLE001 - a bug of the handler must not take the connection's state along
            self._handler_failed(trouble, ex)
            return
        if ex.state is not State.BODY:
            return
        if self.body is not None and not self._accept_body(ex, plan):
            return
        if self.body is None or plan is not BodyPlan.BUFFER:
            self._ready(ex)
        if self.body is not None and self.buffer and self.phase is Phase.BODY:
            data, self.buffer = self.buffer, b""
            self._body(data)

    def _accept_body(self, ex: Exchange, plan: BodyPlan) -> bool:
        """Prepare for the body according to plan; say whether the request goes on."""
        limits, parser = self.limits, self.parser
        limit = limits.body_bytes if plan is BodyPlan.BUFFER else limits.stream_body_bytes
        if plan is not BodyPlan.NONE and limit is not None and parser.length > limit:
            self._refuse(_too_long(limit))
            return False
        if plan is BodyPlan.BUFFER:
            if self.continue_due and not self.buffer:
                self.write(answers.CONTINUE)
            self.continue_due = False
        elif parser.chunked:
            self.body = ChunkedBody(keep=False)
        return ex.state is State.BODY

    def _ready(self, ex: Exchange) -> None:
        """Hand the request to the handler."""
        ex.move(Event.READY)
        try:
            self.handler.ready(ex)
        except Exception as trouble:  # noqa: BLE001 - as in _begin
            self._handler_failed(trouble, ex)

    def _body(self, data: bytes) -> None:
        """Take a piece of the body, and what follows it."""
        body, ex = self.body, self.exchange
        assert body is not None
        try:
            taken = body.take(data)
            piece = data if taken == len(data) else data[:taken]
            self.parser.feed(piece, last=body.done)
            if ex is not None:
                self._body_piece(ex, body, piece)
        except BadRequest as error:
            self._refuse(error)
            return
        if not body.done:
            return
        rest = data[taken:]
        self.body = None
        if ex is None:  # the answer has gone out already
            self._next(rest)
            return
        if self.phase is Phase.BODY:
            self.phase = Phase.BUSY
            self.deadline = FOREVER
            self.buffer = rest
        if ex.plan is BodyPlan.BUFFER and ex.state is State.BODY:
            pieces, self.pieces = self.pieces, []
            ex.body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            self._ready(ex)
        elif ex.relay is not None and ex.relay.connection is not None:
            ex.relay.sent()

    def _body_piece(self, ex: Exchange, body: LengthBody | ChunkedBody, piece: bytes) -> None:
        """Do with a piece of the body what the plan says."""
        ex.bytes_in += len(piece)
        if ex.plan is BodyPlan.BUFFER:
            if ex.bytes_in > self.limits.body_bytes and not isinstance(body, LengthBody):
                raise _too_long(self.limits.body_bytes)
            self.pieces.append(body.decode(piece))
        elif ex.plan is BodyPlan.STREAM:
            limit = self.limits.stream_body_bytes
            if limit is not None and ex.bytes_in > limit:
                raise _too_long(limit)
            relay = ex.relay
            if relay is not None and relay.connection is not None:
                relay.upload(piece)
                return
            self.early.append(piece)
            self.early_bytes += len(piece)
            if self.early_bytes > EARLY_BODY_BYTES:
                self.hold_upload(held=True)
        elif ex.bytes_in > DISCARD_BYTES:
            self.surplus = True  # nobody wants it: the connection won't be used again

    # Streamed bodies.

    def upload_framing(self) -> bytes:
        """Say how long the streamed body is, as the client said it."""
        if self.parser.chunked:
            return b"transfer-encoding: chunked\r\n"
        return b"content-length: %d\r\n" % self.parser.length

    def upload_ready(self) -> None:
        """An upstream is there: let the body flow."""
        ex = self.exchange
        assert ex is not None
        assert ex.relay is not None
        if self.continue_due and self.body is not None and not self.early:
            self.write(answers.CONTINUE)
        self.continue_due = False
        early, self.early, self.early_bytes = self.early, [], 0
        if early:
            ex.relay.upload(b"".join(early))
        self.deadline = self.server.now + self.limits.body_timeout if self.body is not None else FOREVER
        if not self._upstream_full(ex):
            self.hold_upload(held=False)

    @staticmethod
    def _upstream_full(ex: Exchange) -> bool:
        connection = ex.relay.connection if ex.relay is not None else None
        return connection is not None and connection.transport.get_write_buffer_size() > 0

    def upload_done(self) -> bool:
        """Say whether the request has gone out whole."""
        return self.body is None and not self.early

    def hold_upload(self, *, held: bool) -> None:
        """Stop, or go on, reading a body that somebody can't take at the moment."""
        if held is self.read_paused or self.transport.is_closing() or (held and self.phase is not Phase.BODY):
            return
        self.read_paused = held
        self.active = True
        if held:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    # Answering.

    def write(self, data: bytes) -> None:
        """Write to the client."""
        if not self.transport.is_closing():
            self.transport.write(data)

    def decide_keep_alive(self, ex: Exchange) -> None:
        """Decide, before the answer's head goes out, whether the connection can serve another request."""
        if not ex.keep_alive:
            return
        body = self.body
        pending = body is not None and (
            self.continue_due or not isinstance(body, LengthBody) or body.remaining > DISCARD_BYTES
        )
        if pending or self.surplus or self.server.draining:
            ex.keep_alive = False

    def tell_answered(self, ex: Exchange) -> None:
        """Let the handler know that an upstream answers."""
        try:
            self.handler.answered(ex, ex.status)
        except Exception as trouble:  # noqa: BLE001 - as in _begin
            self.report(trouble, ex)

    def ended(self, ex: Exchange, kind: Kind) -> None:
        """The exchange is over and its answer written: report it, and go on with the next request or close."""
        self._forget(ex)
        self._report_end(ex, kind)
        if self.lost or self.phase is Phase.CLOSING:
            return
        if not ex.keep_alive or self.surplus or self.server.draining:
            self.close(linger=self.body is not None)
        elif self.body is not None:
            rest, self.buffer = self.buffer, b""
            self.deadline = self.server.now + self.limits.body_timeout
            if rest:
                self._body(rest)
        else:
            rest, self.buffer = self.buffer, b""
            self._next(rest)

    def broken(self, ex: Exchange, kind: Kind, *, reset: bool) -> None:
        """The exchange is over and its answer is not whole: make sure that the client can tell."""
        self._forget(ex)
        if reset:
            sock = self.transport.get_extra_info("socket")
            if sock is not None and sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.transport.abort()
        else:
            self.close(linger=False)
        self._report_end(ex, kind)

    def give_up(self, detail: str) -> None:
        """Cut off a client that doesn't do its part."""
        if self.exchange is not None:
            self.exchange.detail = detail
        self._left()
        self.transport.abort()

    def close(self, *, linger: bool) -> None:
        """Close when everything has been written; `linger` reads on for a while, so that the answer isn't lost."""
        self.phase = Phase.CLOSING
        self.buffer = b""
        self.body = None
        wait = LINGER_SECONDS if linger else (self.limits.stall_timeout or self.limits.body_timeout)
        self.deadline = self.server.clock() + wait
        if linger and self.transport.can_write_eof() and not self.transport.is_closing():
            self.hold_upload(held=False)
            self.transport.write_eof()
        else:
            self.transport.close()

    def report(self, trouble: Exception, ex: Exchange) -> None:
        """Tell of a bug in the handler."""
        asyncio.get_running_loop().call_exception_handler(
            {"message": f"the wire's handler raised on {ex!r}", "exception": trouble}
        )

    # Inner workings.

    def _next(self, rest: bytes) -> None:
        """Be ready for the next request; `rest` is what of it is here already."""
        self.phase = Phase.HEAD
        self.active = False
        self.deadline = self.server.now + self.limits.idle_timeout
        if self.parsing:
            self.buffer = rest
        elif rest:
            self._heads(rest)

    def _forget(self, ex: Exchange) -> None:
        assert self.exchange is ex
        self.exchange = None
        self.pieces = []
        self.early = []
        self.early_bytes = 0
        self.hold_upload(held=False)

    def _report_end(self, ex: Exchange, kind: Kind) -> None:
        self.server.ended(kind)
        try:
            self.handler.finished(
                ex, Outcome(kind, ex.status, ex.bytes_in, ex.bytes_out, ex.reused, ex.detail)
            )
        except Exception as trouble:  # noqa: BLE001 - as in _begin
            self.report(trouble, ex)

    def _left(self) -> None:
        """The client is gone: so is the upstream's connection, before anything else is done."""
        ex = self.exchange
        if ex is None:
            return
        ex.move(Event.LEFT)
        ex.drop_relay()
        self._forget(ex)
        try:
            self.handler.gone(ex)
        except Exception as trouble:  # noqa: BLE001 - as in _begin
            self.report(trouble, ex)
        self._report_end(ex, Kind.CLIENT_GONE)

    def _refuse(self, error: BadRequest) -> None:
        """Answer a request that can't be served, and close."""
        ex = self.exchange
        self.surplus = True
        if ex is None:
            self.server.refused(error)
            if self.phase is not Phase.BODY:  # else: only the end of a body that nobody wanted
                self.write(answers.error(error.status, error.code, error.message))
            self.close(linger=True)
        elif ex.state is State.RELAYING or ex.state is State.MAKING:
            self.give_up(error.message)  # too late for an answer: it is already under way
        else:
            ex.failure = Kind.REFUSED
            ex.detail = error.message
            headers, body = answers.error_parts(error.code, error.message)
            ex.respond(error.status, headers, body)

    def _handler_failed(self, trouble: Exception, ex: Exchange) -> None:
        """Answer for a handler that raised."""
        self.report(trouble, ex)
        if ex.state is State.RELAYING or ex.state is State.MAKING:
            self.give_up("the handler raised")
        elif ex.state is not State.DONE:
            ex.failure = Kind.REFUSED
            ex.detail = "the handler raised"
            headers, body = answers.error_parts("internal", "the proxy failed; its log says why")
            ex.respond(500, headers, body)

    def sweep(self, now: float) -> None:
        """Look at the clock."""
        ex = self.exchange
        if ex is not None and ex.relay is not None and self.body is None:
            ex.relay.sweep(now)
            return
        if self.phase is Phase.BODY and self.active:
            self.active = False
            limit: float | None = self.limits.body_timeout
            if (
                self.read_paused
            ):  # not the client's fault: it is the upstream that doesn't take its body, or isn't there
                limit = self.limits.stall_timeout if ex is not None and ex.relay is not None else None
            self.deadline = FOREVER if limit is None else now + limit
        if now < self.deadline:
            return
        if self.phase is Phase.CLOSING:
            self.transport.abort()
        elif self.phase is Phase.BODY and ex is not None:
            self._refuse(BadRequest(408, "body_timeout", "the body didn't come in time"))
        elif self.phase is Phase.HEAD and self.active:
            self._refuse(BadRequest(408, "head_timeout", "the head didn't come in time"))
        else:
            self.close(linger=False)


def _too_long(limit: int) -> BadRequest:
    return BadRequest(413, "body_too_long", f"a body of more than {limit} bytes")
