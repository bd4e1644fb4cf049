"""The body of a request on its way in: held whole, streamed to an upstream, or thrown away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from drover_proxy.wire import answers
from drover_proxy.wire.body import Intake, too_long
from drover_proxy.wire.contract import BodyPlan
from drover_proxy.wire.head import BadRequest, HeadParser
from drover_proxy.wire.limits import FOREVER
from drover_proxy.wire.link import Link, Phase
from drover_proxy.wire.states import State

if TYPE_CHECKING:
    from drover_proxy.wire.exchange import Exchange
    from drover_proxy.wire.relay import Relay
    from drover_proxy.wire.server import Server

BODY: Final = Phase.BODY  # as globals, they are cheap to look up
BUSY: Final = Phase.BUSY
BUFFER: Final = BodyPlan.BUFFER
STREAM: Final = BodyPlan.STREAM
HEAD_TAKEN: Final = State.BODY


class BodyReader(Link):
    """What a client's connection does between the head of a request and the end of its body."""

    __slots__ = ("_active", "_buffer", "_intake", "_surplus", "exchange", "parser")

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.exchange: Exchange | None = None
        self.parser = HeadParser()
        self._intake: Intake | None = None
        self._buffer = b""  # part of a head, or what came behind the request under way
        self._active = False  # HEAD: a head has begun; BODY: something came since the last sweep
        self._surplus = False  # more came than will be looked at: the connection ends with this answer

    def _next(self) -> None:
        """Be ready for the next request."""
        raise NotImplementedError

    def _refuse(self, error: BadRequest, raw: bytes = b"") -> None:
        """Answer a request that can't be served, in the words of its target's clients, and close."""
        raise NotImplementedError

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
        intake.began = self.server.now
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

    def decide_keep_alive(self, ex: Exchange) -> None:
        """Decide, before the answer's head goes out, whether the connection can serve another request."""
        intake = self._intake
        if self._surplus or self.server.draining or (intake is not None and not intake.skippable()):
            ex.keep_alive = False
