"""A client's connection: reads requests one after the other, and gives each its turn."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from drover_proxy.wire.body import Intake
from drover_proxy.wire.bodyreader import BodyReader
from drover_proxy.wire.contract import BodyPlan, Kind
from drover_proxy.wire.exchange import Exchange
from drover_proxy.wire.fields import find_fault
from drover_proxy.wire.head import BadRequest, bad
from drover_proxy.wire.limits import FOREVER, LINGER_SECONDS, PIPELINED_BYTES, TURN_REQUESTS
from drover_proxy.wire.link import Phase
from drover_proxy.wire.states import State

if TYPE_CHECKING:
    from drover_proxy.wire.server import Server

HEAD: Final = Phase.HEAD  # as globals, they are cheap to look up
BODY: Final = Phase.BODY
BUSY: Final = Phase.BUSY
CLOSING: Final = Phase.CLOSING
HEAD_TAKEN: Final = State.BODY


class ClientConnection(BodyReader):
    """One client.

    A client that shuts down its sending side before its answer has ended is taken for one that left: HTTP/1.1
    clients don't do that, a vanished one looks the same, and what it had asked for costs a GPU.
    """

    __slots__ = ("_known", "_parsing", "handler")

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.handler = server.handler
        self._parsing = False  # requests are being taken from one read: see _heads
        self._known = 0  # bytes of an unfinished head that were looked at: each is, once, however it drips

    def __repr__(self) -> str:
        """Tell where it stands."""
        return f"<ClientConnection {self.peer} {self.phase.name} {self.exchange!r}>"

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, or turn the client away when there are too many."""
        super().connection_made(transport)
        if not self.certificate:  # which lets in by itself what a head alone would not
            self.parser.heads = self.server.heads
        if refusal := self.server.admit(self):
            self.write(self.server.error(self.peer, b"", BadRequest(503, "too_many_connections", refusal)))
            self.close(linger=False)  # lingering would let the cap be exceeded
        elif self.tls and not self.server.vouches(transport.get_extra_info("sslcontext")):
            self.reset()  # the authorities have changed while it shook hands
        elif self.tls:
            self.server.hangups.watch(self)

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
        if self.read_paused or self.tls:
            self.server.hangups.forget(self)
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
        elif self.phase is HEAD and not self._parsing:
            self._go_on()
        elif self.phase is CLOSING and not self.transport.is_closing():  # it lingers
            self.deadline = self.server.clock() + LINGER_SECONDS

    # Reading requests.

    def _heads(self, data: bytes) -> None:
        """Take requests from what was read, as long as each is answered at once and its answer read."""
        self._parsing = True
        turn = TURN_REQUESTS
        try:
            while data and self.phase is HEAD:
                if self.write_paused or not turn:
                    self._buffer = data
                    self.pause_reading(paused=True)
                    if not turn:
                        self.server.soon(self._go_on)
                    break
                turn -= 1
                self._buffer = b""
                self._one_head(data)
                if self.phase is not HEAD or self._known:
                    break
                data = self._buffer
        except BadRequest as error:
            self._refuse(error, data)
        finally:
            self._parsing = False

    def _go_on(self) -> None:
        """Go on with what was read, after others had their turn, or the client has read its answers."""
        if self.phase is HEAD and not self.write_paused:
            self.pause_reading(paused=False)
            if self._buffer:
                self._heads(self._buffer)

    def _one_head(self, data: bytes) -> None:
        """Take one head and begin its exchange, or keep what there is of it."""
        read = data
        if data.startswith(b"\r\n") and len(data) > 2:
            data = data[2:]  # the one empty line that RFC 9112 asks to ignore
        limits, parser = self.limits, self.parser
        known = 0
        end = again = parser.again(data)
        if not again:
            if self._known > 2:  # else it may have been the empty line
                known = min(self._known, len(data))
            place = data.find(b"\r\n\r\n", known - 3 if known > 3 else 0)
            end = place + 4 if place >= 0 else 0  # 0: the head isn't whole yet
        self._known = 0
        if (end or len(data)) > limits.header_bytes:
            raise BadRequest(431, "head_too_long", f"a head of more than {limits.header_bytes} bytes")
        if not end:
            if fault := find_fault(data, known):
                raise bad(fault)
            self._known = len(data)
            if not self._active and data != b"\r\n":  # which some send behind a body: no head has begun yet
                self._active = True
                self.deadline = self.server.clock() + limits.head_timeout
            self._buffer = read
            return
        if not again:
            parser.parse(data[:end], limits)
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
        if self.trusted:
            ex.client = server.forwarding.client(self.peer, parser.fields)
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

    # Answering.

    def ended(self, ex: Exchange, kind: Kind) -> None:
        """The exchange is over and its answer written: report it, then take the next request or close."""
        self._forget(ex, kind)
        if self.lost or self.phase is CLOSING:
            return
        intake = self._intake
        if not ex.keep_alive or self._surplus or self.server.draining:
            self.close(linger=self._sends_on())
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
            self.close(linger=self._sends_on())
        self._forget(ex, kind)

    def give_up(self, detail: str) -> None:
        """Cut off a client that doesn't do its part."""
        if self.exchange is not None:
            self.exchange.detail = detail
        self._left()
        self.transport.abort()

    def hung_up(self) -> None:
        """Learn that the client has left, though nothing is read that would tell."""
        if self.exchange is not None:
            self.give_up("the client has left")

    def retire(self) -> None:
        """Take no more requests: close after the answer under way, or at once where there is none."""
        if self.exchange is not None:
            self.exchange.keep_alive = False
        elif self.phase is not CLOSING:
            self.close(linger=False)

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

    def _sends_on(self) -> bool:
        """Whether more came than the request, or is to come: closing with that unread is a reset."""
        return self._intake is not None or self._surplus or bool(self._buffer)

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

    def _refuse(self, error: BadRequest, raw: bytes = b"") -> None:
        """Answer a request that can't be served, in the words of its target's clients, and close."""
        self._surplus = True
        if self.exchange is not None:
            self.exchange.refuse(error)
            return
        self.server.refusals[error.code] += 1
        if self.phase is HEAD:  # else it is the end of a body that nobody wanted, its answer is out
            self.write(self.server.error(self.peer, raw, error))
        self.close(linger=True)

    def sweep(self, now: float) -> None:
        """Look at the clock."""
        ex = self.exchange
        if ex is not None and ex.relay is not None and (ex.relay.connection is None or self.upload_done(ex)):
            ex.relay.sweep(now)
            return
        if self.phase is BODY and self._active:
            self._active = False
            if self._intake is not None and self._intake.too_slow(now, self.limits):
                self._refuse(BadRequest(408, "body_timeout", "the body comes too slowly"))
                return
            limit: float | None = self.limits.body_timeout
            if self.read_paused:  # not the client's fault: the upstream takes nothing, or isn't there yet
                limit = self.limits.stall_timeout if ex is not None and ex.relay is not None else None
            self.deadline = FOREVER if limit is None else now + limit
        if now < self.deadline:
            return
        if self.phase is CLOSING:
            self.transport.abort()
        elif self.phase is BODY and self.read_paused and ex is not None and ex.relay is not None:
            ex.relay.upload_stalled()
        elif self.phase is BODY and ex is not None:
            self._refuse(BadRequest(408, "body_timeout", "the body didn't come in time"))
        elif self.phase is HEAD and self._active:
            late = BadRequest(408, "head_timeout", "the head didn't come in time")
            self._refuse(late, self._buffer)
        else:
            self.close(linger=False)
            if not self.write_paused:  # TLS waits for the other end's word, which may never come
                self.deadline = now + LINGER_SECONDS
