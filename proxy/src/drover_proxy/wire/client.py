"""A client's connection: reads requests one after the other, and gives each its turn."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from drover_proxy.wire import answers
from drover_proxy.wire.body import Intake, too_long
from drover_proxy.wire.contract import BodyPlan, Kind
from drover_proxy.wire.exchange import Exchange
from drover_proxy.wire.fields import find_fault
from drover_proxy.wire.head import BadRequest, HeadParser, bad
from drover_proxy.wire.limits import PIPELINED_BYTES
from drover_proxy.wire.link import Link, Phase
from drover_proxy.wire.relay import FOREVER, Relay
from drover_proxy.wire.states import State

if TYPE_CHECKING:
    from drover_proxy.wire.server import Server


HEAD, BODY, BUSY, CLOSING = Phase  # as globals, they are cheap to look up
BUFFER, STREAM = BodyPlan.BUFFER, BodyPlan.STREAM
HEAD_TAKEN = State.BODY


class ClientConnection(Link):
    """One client.

    A client that shuts down its sending side before its answer has ended is taken for one that left: HTTP/1.1
    clients don't do that, a vanished one looks the same, and what it had asked for costs a GPU.
    """

    __slots__ = (
        "_active",
        "_buffer",
        "_intake",
        "_parsing",
        "_surplus",
        "exchange",
        "handler",
        "parser",
    )

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.handler = server.handler
        self.exchange: Exchange | None = None
        self.parser = HeadParser()
        self._intake: Intake | None = None
        self._buffer = b""  # part of a head, or what came behind the request under way
        self._active = False  # HEAD: a head has begun; BODY: something came since the last sweep
        self._parsing = False
        self._surplus = (
            False  # more came than will be looked at: the connection can't go on after this answer
        )

    def __repr__(self) -> str:
        """Tell where it stands."""
        return f"<ClientConnection {self.peer} {self.phase.name} {self.exchange!r}>"

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, or turn the client away when there are too many."""
        super().connection_made(transport)
        if refusal := self.server.admit(self):
            self.write(answers.error(503, "too_many_connections", refusal))
            self.close(linger=False)  # lingering would let the cap be exceeded

    def data_received(self, data: bytes) -> None:
        """Take what the client sends; what it means depends on the phase."""
        phase = self.phase
        if phase is HEAD:
            self._heads(self._buffer + data)
        elif phase is BODY:
            self._active = True
            self._body(data)
        elif phase is BUSY and not self._surplus:
            self._buffer += data
            if len(self._buffer) > PIPELINED_BYTES:
                self._buffer = b""
                self._surplus = True

    def eof_received(self) -> bool:
        """The client sends no more: between requests that is its good-bye, within one it has left."""
        if self.exchange is not None:
            self._left()
            self.transport.abort()
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - reset or closed: it has left
        """The connection is no more."""
        self.lost = True
        self._left()
        self.phase = CLOSING
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
        elif self.phase is HEAD:
            self.pause_reading(paused=False)
            if not self._parsing and self._buffer:
                self._heads(self._buffer)

    # Reading requests.

    def _heads(self, data: bytes) -> None:
        """Take requests from what was read, as long as each is answered at once and its answer read."""
        self._parsing = True
        try:
            while data and self.phase is HEAD:
                if self.write_paused:
                    self._buffer = data
                    self.pause_reading(paused=True)
                    break
                self._buffer = b""
                self._one_head(data)
                if self.phase is not HEAD or self._active:
                    break
                data = self._buffer
        except BadRequest as error:
            self._refuse(error)
        finally:
            self._parsing = False

    def _one_head(self, data: bytes) -> None:
        """Take one head and begin its exchange, or keep what there is of it."""
        read = data
        if data.startswith(b"\r\n") and len(data) > 2:
            data = data[2:]  # the one empty line that RFC 9112 asks to ignore
        limits = self.limits
        end = data.find(b"\r\n\r\n") + 4
        if (end if end > 3 else len(data)) > limits.header_bytes:
            raise BadRequest(431, "head_too_long", f"a head of more than {limits.header_bytes} bytes")
        if end == 3:
            if fault := find_fault(data):
                raise bad(fault)
            if not self._active:
                self._active = True
                self.deadline = self.server.clock() + limits.head_timeout
            self._buffer = read
        elif end == len(data):
            self.parser.parse(data, limits)
            self._begin()
        else:
            self.parser.parse(data[:end], limits)
            self._buffer = data[end:]
            self._begin()

    def _begin(self) -> None:
        """Make the exchange, ask the handler for its plan, and read the body accordingly."""
        parser, server = self.parser, self.server
        self._active = False
        self.exchange = ex = Exchange(
            server.number(),
            self,
            parser.method,
            parser.target,
            parser.fields,
            server.clock(),
            http10=parser.http10,
            keep_alive=parser.keep_alive,
        )
        self.phase = BUSY
        self.deadline = FOREVER
        length = parser.length
        if length <= len(self._buffer) and not parser.chunked:
            self._begin_whole(ex, length)
            return
        self.phase = BODY
        self._intake = intake = Intake(length, chunked=parser.chunked, awaits_continue=parser.expects)
        ex.begin()
        if ex.state is HEAD_TAKEN:
            self._expect_body(ex, intake)

    def _begin_whole(self, ex: Exchange, length: int) -> None:
        """Go on with a request that is here whole, as most are: body and all in one read."""
        body = b""
        if length:
            body, self._buffer = self._buffer[:length], self._buffer[length:]
            ex.bytes_in = length
        ex.begin()
        if ex.state is not HEAD_TAKEN:
            return
        if length:
            if ex.plan is BUFFER:
                if length > self.limits.body_bytes:
                    raise too_long(self.limits.body_bytes)
                ex.body = body
            elif ex.plan is STREAM:
                self._intake = intake = Intake(length, chunked=False, awaits_continue=False)
                intake.follow(STREAM, self.limits)
                intake.take(body)
                intake.hold(body)
        ex.ready()

    def _expect_body(self, ex: Exchange, intake: Intake) -> None:
        """Read the body by its plan, beginning with what of it is here already."""
        intake.follow(ex.plan, self.limits)
        if ex.plan is not BodyPlan.NONE:
            self.deadline = self.server.now + self.limits.body_timeout
        if ex.plan is BUFFER:
            if intake.awaits_continue and not self._buffer:
                self.write(answers.CONTINUE)
            intake.awaits_continue = False
        else:
            ex.ready()
        if self._buffer and self.phase is BODY and self.exchange is ex:
            data, self._buffer = self._buffer, b""
            self._active = True
            self._body(data)

    def _body(self, data: bytes) -> None:
        """Take a piece of the body, and what follows it."""
        intake, ex = self._intake, self.exchange
        assert intake is not None
        try:
            taken = intake.take(data)
            piece = data if taken == len(data) else data[:taken]
            if self.parser.chunked:
                self.parser.feed(piece, last=intake.done)
        except BadRequest as error:
            self._refuse(error)
            return
        if intake.done:
            self.phase = BUSY
            self.deadline = FOREVER
            self._buffer = data[taken:]
        if ex is None:
            if intake.done:  # its answer has gone out already
                self._intake = None
                self._next()
            return
        ex.bytes_in += taken
        if ex.plan is STREAM:
            self._stream(ex, intake, piece)
        elif intake.done:
            self._intake = None
            if ex.plan is BUFFER:
                ex.body = intake.release()
                ex.ready()
        elif ex.plan is BodyPlan.NONE:
            self._surplus = self._surplus or not intake.skippable()

    # Streamed bodies.

    def _stream(self, ex: Exchange, intake: Intake, piece: bytes) -> None:
        """Pass a piece on, or hold it while no upstream is there."""
        relay = ex.relay
        if relay is None or relay.connection is None:
            if intake.hold(piece) and not intake.done:
                self.pause_reading(paused=True)
            return
        relay.upload(piece)
        if intake.done and self._intake is intake:
            self._intake = None
            relay.sent()

    def upload_ready(self, relay: Relay) -> None:
        """An upstream is there: let the body flow."""
        intake = self._intake
        if intake is None:
            return
        if intake.awaits_continue and not intake.received:
            self.write(answers.CONTINUE)
        intake.awaits_continue, held = False, intake.release()
        if intake.done:
            self._intake = None
        else:
            self._active = True  # the time that was spent waiting isn't the client's
            self.pause_reading(paused=False)
        if held:
            relay.upload(held)  # which may pause reading again

    def upload_done(self, ex: Exchange) -> bool:
        """Say whether the request has gone out whole."""
        return ex.plan is not STREAM or self._intake is None

    def upload_paused(self, *, paused: bool) -> None:
        """The upstream doesn't keep up with a streamed body, or has caught up."""
        if self.phase is BODY:
            self._active = True
            self.pause_reading(paused=paused)

    # Answering.

    def decide_keep_alive(self, ex: Exchange) -> None:
        """Decide, before the answer's head goes out, whether the connection can serve another request."""
        intake = self._intake
        if self._surplus or self.server.draining or (intake is not None and not intake.skippable()):
            ex.keep_alive = False

    def ended(self, ex: Exchange, kind: Kind) -> None:
        """The exchange is over and its answer written: report it, then take the next request or close."""
        self._forget(ex, kind)
        if self.lost or self.phase is CLOSING:
            return
        intake = self._intake
        if not ex.keep_alive or self._surplus or self.server.draining:
            self.close(linger=intake is not None)
        elif intake is not None and not intake.done:
            intake.plan = BodyPlan.NONE
            self.phase = BODY
            self.deadline = self.server.now + self.limits.body_timeout
            rest, self._buffer = self._buffer, b""
            if rest:
                self._body(rest)
        else:
            self._intake = None
            self._next()

    def broken(self, ex: Exchange, kind: Kind, *, reset: bool) -> None:
        """The exchange is over and its answer is not whole: make sure that the client can tell."""
        if reset:
            self.reset()
        else:
            self.close(linger=False)
        self._forget(ex, kind)

    def give_up(self, detail: str) -> None:
        """Cut off a client that doesn't do its part."""
        if self.exchange is not None:
            self.exchange.detail = detail
        self._left()
        self.transport.abort()

    def close_if_idle(self) -> None:
        """Close a connection on which no request has begun."""
        if self.phase is HEAD and not self._buffer:
            self.close(linger=False)

    # Inner workings.

    def _next(self) -> None:
        """Be ready for the next request; what of it is here already is in the buffer."""
        self.phase = HEAD
        self._active = False
        self.deadline = self.server.now + self.limits.idle_timeout
        if self._buffer and not self._parsing:
            self._heads(self._buffer)

    def _forget(self, ex: Exchange, kind: Kind) -> None:
        """Let go of an exchange that is over, and report it."""
        assert self.exchange is ex
        self.exchange = None
        self.pause_reading(paused=False)
        self.server.outcomes[kind] += 1
        ex.finished(kind)

    def _left(self) -> None:
        """The client is gone."""
        if ex := self.exchange:
            ex.left()
            self.phase = CLOSING
            self._forget(ex, Kind.CLIENT_GONE)

    def _refuse(self, error: BadRequest) -> None:
        """Answer a request that can't be served, and close."""
        self._surplus = True
        if self.exchange is not None:
            self.exchange.refuse(error)
            return
        self.server.refusals[error.code] += 1
        if self.phase is HEAD:  # else it is the end of a body that nobody wanted, its answer is out
            self.write(answers.error(error.status, error.code, error.message))
        self.close(linger=True)

    def sweep(self, now: float) -> None:
        """Look at the clock."""
        ex = self.exchange
        if ex is not None and ex.relay is not None and self.upload_done(ex):
            ex.relay.sweep(now)
            return
        if self.phase is BODY and self._active:
            self._active = False
            limit: float | None = self.limits.body_timeout
            if self.read_paused:  # not the client's fault: the upstream takes nothing, or isn't there yet
                limit = self.limits.stall_timeout if ex is not None and ex.relay is not None else None
            self.deadline = FOREVER if limit is None else now + limit
        if now < self.deadline:
            return
        if self.phase is CLOSING:
            self.transport.abort()
        elif self.phase is BODY and ex is not None:
            self._refuse(BadRequest(408, "body_timeout", "the body didn't come in time"))
        elif self.phase is HEAD and self._active:
            self._refuse(BadRequest(408, "head_timeout", "the head didn't come in time"))
        else:
            self.close(linger=False)
