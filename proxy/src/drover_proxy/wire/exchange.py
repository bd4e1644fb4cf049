"""One request and its answer: what the handler sees of it, and what it may do with it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from drover_proxy.wire import answers
from drover_proxy.wire.contract import BodyPlan, Kind, Outcome, UpstreamError, UpstreamFault, Watch
from drover_proxy.wire.fields import Fields
from drover_proxy.wire.head import BadRequest
from drover_proxy.wire.relay import Relay
from drover_proxy.wire.states import NEXT, Event, State, illegal

if TYPE_CHECKING:
    from drover_proxy.wire.client import ClientConnection
    from drover_proxy.wire.parting import Parting
    from drover_proxy.wire.pool import Upstream

HEAD_TAKEN: Final = State.BODY  # as globals, cheap to look up
DONE: Final = State.DONE
RELAYING: Final = State.RELAYING
MAKING: Final = State.MAKING
HELD: Final = State.HELD
READY: Final = Event.READY
NO_BODY: Final = BodyPlan.NONE


class Exchange:
    """A request that is being served.

    The methods may be called at any time, also later from other callbacks. Once the exchange is `over`, which
    a client that leaves can bring about at any moment, they do nothing.
    """

    __slots__ = (
        "arrived_at",
        "body",
        "body_began",
        "bytes_in",
        "bytes_out",
        "client",
        "connection",
        "context",
        "detail",
        "failure",
        "follows",
        "headers",
        "http10",
        "id",
        "keep_alive",
        "memo",
        "method",
        "parting",
        "path",
        "plan",
        "query",
        "relay",
        "reused",
        "state",
        "status",
        "target",
    )

    def __init__(
        self,
        number: int,
        connection: ClientConnection,
        method: bytes,
        target: bytes,
        headers: Fields,
        arrived_at: float,
        *,
        http10: bool,
        keep_alive: bool,
    ) -> None:
        self.id = number
        self.method = method
        self.memo = connection.parser.memo
        """Shared by exchanges that have the same head, but for its length, also of other connections."""
        self.target = target
        """In origin-form, as the client wrote it otherwise: nothing is decoded or normalised."""
        self.path, self.query = target, b""
        if target.find(b"?") >= 0:  # `in` is four times as slow where bytes are searched for bytes
            self.path, _, self.query = target.partition(b"?")
        self.headers = headers
        """Names in lower case, in the order they came. To be read only: `forward` takes others."""
        self.client = connection.peer
        """The client's address, without its port; "unix" for a Unix socket."""
        self.http10: bool = http10
        self.keep_alive = keep_alive
        """Whether the connection may serve another request; final once the answer's head has gone out."""
        self.arrived_at = arrived_at
        """When the head was whole, in seconds of time.monotonic()."""
        self.body = b""
        """The whole body, where the plan was BUFFER, without its framing."""
        self.context: Any = None
        """The handler's own; the wire never looks at it."""
        self.follows = False
        """The handler wants to know when the upstream has stopped, should this end before its answer has: it
        sets this, and awaits `parting`, where there is one, once the exchange is over."""
        self.parting: Parting | None = None
        self.status = 0
        self.bytes_in = 0
        self.bytes_out = 0
        # The rest is the wire's own.
        self.connection: ClientConnection = connection
        self.plan: BodyPlan = NO_BODY
        self.state: State = HEAD_TAKEN
        self.relay: Relay | None = None
        self.reused = False
        self.body_began = False  # a streamed body has begun to flow: it can't be had again
        self.failure: Kind | None = None  # what an answer of the proxy's own then is the end of
        self.detail = ""

    def __repr__(self) -> str:
        """Tell the story as far as it goes; never with a header or a body in it."""
        return (
            f"<Exchange {self.id} {self.method.decode('latin-1')} {self.path.decode('latin-1')} "
            f"{self.state.name} status={self.status} in={self.bytes_in} out={self.bytes_out}>"
        )

    @property
    def over(self) -> bool:
        """Whether the outcome was reported: whatever is called now does nothing."""
        return self.state is DONE

    @property
    def writable(self) -> bool:
        """Whether the client keeps up; a handler that makes a stream should wait while it doesn't."""
        return not self.connection.write_paused

    @property
    def certificate(self) -> tuple[str, ...]:
        """By what names the client's certificate may be known, the surest first; none without one."""
        return self.connection.certificate

    def header(self, name: bytes) -> bytes | None:
        """Give the first value of a field; the name in lower case."""
        for field, value in self.headers:
            if field == name:
                return value
        return None

    def move(self, event: Event) -> None:
        """Make a step in the table of states; raise IllegalTransition where it has none."""
        following = NEXT[self.state][event]
        if following is None:
            raise illegal(self.state, event, repr(self))
        self.state = following

    # Answers of the proxy's own.

    def respond(self, status: int, headers: Fields | tuple[()] = (), body: bytes = b"") -> None:
        """Answer, all at once. Content-Length and Date are added; for HEAD the body is left out."""
        if self.state is DONE:
            return
        connection = self.connection
        connection.decide_keep_alive(self)
        data = answers.whole(
            status, headers, body, close=not self.keep_alive, bodiless=self.method == b"HEAD"
        )
        self.move(Event.RESPOND)
        self.drop_relay()
        self.status = status
        self.bytes_out += len(data)
        connection.write(data)
        connection.ended(self, self.failure or Kind.COMPLETE)

    def start_stream(self, status: int, headers: Fields | tuple[()] = ()) -> None:
        """Begin an answer of the proxy's own whose end isn't known yet: `write`, then `end` or `abort`."""
        if self.state is DONE:
            return
        self.connection.decide_keep_alive(self)
        framing = b"" if self.http10 else b"transfer-encoding: chunked\r\n"
        data = answers.head(status, headers, framing=framing, close=not self.keep_alive)
        self.move(Event.START)
        self.status = status
        self.bytes_out += len(data)
        self.connection.write(data)

    def write(self, data: bytes) -> None:
        """Send a piece of the stream; look at `writable` before making much more."""
        if self.state is DONE or not data:
            return
        if self.state is not MAKING:
            raise illegal(self.state, Event.END, repr(self))
        if self.method == b"HEAD":
            return
        framed = data if self.http10 else b"%x\r\n%b\r\n" % (len(data), data)
        self.bytes_out += len(framed)
        self.connection.write(framed)

    def end(self) -> None:
        """End the stream; the client can tell that it is whole."""
        if self.state is DONE:
            return
        self.move(Event.END)
        if not self.http10 and self.method != b"HEAD":
            self.bytes_out += len(answers.LAST_CHUNK)
            self.connection.write(answers.LAST_CHUNK)
        self.connection.ended(self, Kind.COMPLETE)

    def abort(self, detail: str = "aborted by the proxy") -> None:
        """Break the stream off; the client can tell that it isn't whole."""
        if self.state is DONE:
            return
        self.move(Event.END)
        self.detail = detail
        self.connection.broken(self, Kind.UPSTREAM_BROKEN, reset=self.http10)

    # To an upstream.

    def forward(
        self,
        upstream: Upstream,
        *,
        target: bytes | None = None,
        body: bytes | None = None,
        headers: Fields | None = None,
        extra: bytes = b"",
        watch: Watch | None = None,
    ) -> None:
        """Send the request to an upstream and relay the answer, byte for byte, with back-pressure.

        Args:
            upstream: Where to; its pool of idle connections is used.
            target: Replaces the target. Must be free of white space and control bytes.
            body: Replaces the body (BUFFER and NONE).
            headers: Replaces the client's fields. Either way Host is the upstream's, and hop-by-hop fields,
                framing, Origin and credentials (Authorization, X-Api-Key) don't go through.
            extra: Lines for the head of the answer, each `name: value` and CRLF; made by the caller alone.
            watch: Follows the answer's body. When that isn't whole, the client's transfer is broken.
        """
        if self.state is DONE:
            return
        if self.relay is not None:
            raise illegal(self.state, Event.FORWARD, repr(self))
        if self.body_began:
            why = "a part of the body had gone to an upstream that failed; it can't be had again"
            self._fail(Kind.UPSTREAM_FAILED, 502, f"upstream_{UpstreamFault.BODY_LOST.value}", why)
            return
        self.failure = None
        self.detail = ""
        self.relay = Relay(
            self,
            upstream,
            target=target,
            body=self.body if body is None else body,
            fields=headers,
            extra=extra,
            watch=watch,
        )
        self.relay.start()

    def drop_relay(self) -> None:
        """Let go of the upstream, if there is one, by closing its connection at once."""
        relay, self.relay = self.relay, None
        if relay is not None:
            relay.cancel()

    # What the wire calls: steps that the handler is told of, and must not be able to upset.

    def begin(self) -> None:
        """Ask the handler for its plan."""
        try:
            self.plan = self.connection.handler.head(self)
        except Exception as trouble:  # noqa: BLE001 - the client gets an answer, the log a trace
            self._handler_raised(trouble)

    def ready(self) -> None:
        """Hand the request to the handler."""
        self.move(READY)
        try:
            self.connection.handler.ready(self)
        except Exception as trouble:  # noqa: BLE001 - as in begin
            self._handler_raised(trouble)

    def answered(self, status: int) -> None:
        """Tell the handler that an upstream answers."""
        self.status = status
        try:
            self.connection.handler.answered(self, status)
        except Exception as trouble:  # noqa: BLE001 - as in begin
            self._handler_raised(trouble)

    def failed(self, error: UpstreamError) -> None:
        """No upstream answered: let the handler, or else the wire, decide what follows."""
        self.move(Event.FAILED)
        self.relay = None
        self.failure = Kind.UPSTREAM_FAILED
        self.detail = str(error)
        try:
            taken = self.connection.handler.upstream_failed(self, error)
        except Exception as trouble:  # noqa: BLE001 - as in begin
            self._handler_raised(trouble)
            return
        if not taken and self.state is HELD:
            self._fail(Kind.UPSTREAM_FAILED, error.status, error.code, f"the upstream failed: {error}")

    def left(self) -> None:
        """The client is gone: so is the upstream's connection, before anything else is done."""
        self.move(Event.LEFT)
        self.drop_relay()
        try:
            self.connection.handler.gone(self)
        except Exception as trouble:  # noqa: BLE001 - as in begin
            self._report(trouble)

    def finished(self, kind: Kind) -> None:
        """Report the outcome. Whoever moves the state to DONE calls this, once."""
        outcome = Outcome(kind, self.status, self.bytes_in, self.bytes_out, self.reused, self.detail)
        try:
            self.connection.handler.finished(self, outcome)
        except Exception as trouble:  # noqa: BLE001 - as in begin
            self._report(trouble)
        self.context = None  # it knows this exchange: without the circle both go at once

    def refuse(self, error: BadRequest) -> None:
        """Answer a request whose body can't be served; too late for that, cut the client off."""
        if self.state is RELAYING or self.state is MAKING:
            self.connection.give_up(error.message)
        elif self.state is not DONE:
            self._fail(Kind.REFUSED, error.status, error.code, error.message)

    def _fail(self, kind: Kind, status: int, code: str, message: str) -> None:
        """Answer with an error of the wire's own, in the words of the target's clients."""
        self.failure = kind
        self.detail = message
        headers, body = self.connection.server.error_parts(self, status, code, message)
        self.respond(status, headers, body)

    def _handler_raised(self, trouble: Exception) -> None:
        self._report(trouble)
        self.refuse(BadRequest(500, "internal", "the proxy failed; its log says why"))

    def _report(self, trouble: Exception) -> None:
        asyncio.get_running_loop().call_exception_handler(
            {"message": f"the wire's handler raised on {self!r}", "exception": trouble}
        )
