"""One forwarded request: sends it to an upstream, and brings the answer to the client as it came."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final

from drover_proxy.wire import answers, headers
from drover_proxy.wire.answerhead import AnswerHead, BadAnswer, Framing
from drover_proxy.wire.contract import BodyPlan, Kind, UpstreamError, UpstreamFault, Watch
from drover_proxy.wire.fields import Fields
from drover_proxy.wire.limits import FOREVER, INTERIM_ANSWERS, KIB, STALE_SECONDS
from drover_proxy.wire.parting import Parting
from drover_proxy.wire.states import Event, State
from drover_proxy.wire.upstream import UpstreamConnection

if TYPE_CHECKING:
    from drover_proxy.wire.exchange import Exchange
    from drover_proxy.wire.pool import Upstream

TARGET = re.compile(rb"[!-~]+")
COPY_BYTES: Final = 16 * KIB
"""Above this, two writes are cheaper than one copy."""
WITH_BODY: Final = frozenset((b"POST", b"PUT", b"PATCH"))  # their length is told even when it is nothing
UNTOUCHED = frozenset((UpstreamFault.DIAL, UpstreamFault.CONNECT_TIMEOUT))  # the request was never sent

STREAM: Final = BodyPlan.STREAM  # as globals, cheap to look up
CONNECTED: Final = Event.CONNECTED
ANSWER: Final = Event.ANSWER
ANSWER_END: Final = Event.ANSWER_END
COMPLETE: Final = Kind.COMPLETE
BY_CHUNKS: Final = Framing.CHUNKED
BY_CLOSE: Final = Framing.CLOSE


class Relay:
    """Moves one exchange through one upstream. Made by `Exchange.forward`, gone when the answer ends."""

    __slots__ = (
        "_body",
        "_client",
        "_dialing",
        "_extra",
        "_head",
        "_interims",
        "_limits",
        "_retried",
        "_sent_at",
        "_upstream",
        "active",
        "connection",
        "deadline",
        "exchange",
        "transport",
        "watch",
    )

    def __init__(
        self,
        exchange: Exchange,
        upstream: Upstream,
        *,
        target: bytes | None,
        body: bytes,
        fields: Fields | None,
        extra: bytes,
        watch: Watch | None,
    ) -> None:
        if target is not None and target is not exchange.path and TARGET.fullmatch(target) is None:
            raise ValueError(f"a target must be free of white space and control bytes: {target!r}")
        self.exchange = exchange
        self.watch = watch
        self.connection: UpstreamConnection | None = None
        self.deadline = FOREVER
        self.active = False
        """Something moved since the last sweep."""
        self._client = exchange.connection
        self.transport = exchange.connection.transport
        """The client's."""
        self._limits = exchange.connection.limits
        self._upstream = upstream
        via = exchange.connection.server.via_line
        self._extra = extra + via if via else extra
        self._dialing: asyncio.Task[None] | None = None
        self._retried = False
        self._interims = 0
        self._sent_at = 0.0
        if exchange.plan is STREAM:
            framing, self._body = self._client.parser.length_line() + b"\r\n", b""
        elif body or exchange.method in WITH_BODY:
            framing, self._body = b"content-length: %d\r\n\r\n" % len(body), body
        else:
            framing, self._body = b"\r\n", b""
        self._head = self._make_head(target or exchange.target, fields) + framing

    def _make_head(self, target: bytes, fields: Fields | None) -> bytes:
        """Make the head to be sent, up to its framing; a client that repeats itself has it made only once."""
        exchange, host = self.exchange, self._upstream.host_header
        made = exchange.memo.forwarded
        if fields is None and (head := made.get((target, host))) is not None:
            return head
        head = headers.request_head(
            exchange.method,
            target,
            host,
            exchange.headers if fields is None else fields,
            http10=exchange.http10,
        )
        client = self._client
        forwarding = client.server.forwarding
        if forwarding.adds:
            head += forwarding.lines(
                client.peer, exchange.headers, trusted=client.trusted, tls=client.tls, http10=exchange.http10
            )
        if fields is None:
            made[target, host] = head
        return head

    # Sending.

    def start(self) -> None:
        """Send the request over an idle connection, or dial."""
        pool = self._upstream.pool
        if not pool.watched:
            self._client.server.watch(pool)
        connection = pool.take()
        if connection is not None:
            self.connected(connection)
        else:
            self.exchange.move(Event.FORWARD)
            self._dial()

    def _dial(self) -> None:
        self.deadline = self._client.server.clock() + self._limits.connect_timeout
        self._dialing = self._upstream.pool.dial(self)

    def dialed(self, connection: UpstreamConnection) -> None:
        """Take the connection that was dialled for, unless the request has ended meanwhile."""
        if self.exchange.relay is self:
            self.connected(connection)
        else:
            connection.close()

    def connected(self, connection: UpstreamConnection) -> None:
        """Send the request over this connection."""
        exchange = self.exchange
        self._dialing = None
        exchange.move(CONNECTED)
        self.connection = connection
        exchange.reused = connection.served > 0
        connection.begin(self, bodiless=exchange.method == b"HEAD")
        if self._client.write_paused:  # by an answer before this one
            connection.transport.pause_reading()
        self.sent()
        if len(self._body) < COPY_BYTES:
            connection.transport.write(self._head + self._body)
        else:
            connection.transport.write(self._head)
            connection.transport.write(self._body)
        if exchange.plan is STREAM:
            self._client.upload_ready(self)

    def sent(self) -> None:
        """The request has gone out as far as it is here: from now on the upstream is being waited for."""
        self._sent_at = now = self._client.server.clock()
        limit = self._limits.first_byte_timeout
        self.deadline = FOREVER if limit is None else now + limit

    def upload(self, data: bytes) -> None:
        """Send a piece of a streamed body, its framing included."""
        assert self.connection is not None
        self.exchange.body_began = True
        self.connection.transport.write(data)

    def upload_paused(self, *, paused: bool) -> None:
        """The upstream's connection is full, or has room again."""
        if self.exchange.plan is STREAM:
            self._client.upload_paused(paused=paused)

    def upload_stalled(self) -> None:
        """The upstream has taken nothing of a streamed body for too long."""
        connection = self.connection
        if connection is None:
            return
        why = "it took nothing more of the body within the time allowed"
        if self.exchange.state is State.SENT:
            self._part(connection)
            self.failed(UpstreamFault.FIRST_BYTE_TIMEOUT, why)
        else:
            self.broken(connection, why)

    # Answering.

    def interim(self, status: int, raw: bytes) -> None:
        """Pass a 1xx on; 100 is only about our own request, and HTTP/1.0 knows none of them."""
        self._retried = True  # the upstream has begun to work: it isn't to be tried again
        self._interims += 1
        if self._interims > INTERIM_ANSWERS:
            raise BadAnswer(f"more than {INTERIM_ANSWERS} answers of 1xx")
        if status != 100 and not self.exchange.http10:
            self._client.write(raw)

    def answer(self, connection: UpstreamConnection, answer: AnswerHead, data: bytes) -> None:
        """Relay the head of the answer, with whatever of its body came along."""
        exchange, client = self.exchange, self._client
        if exchange.http10 and connection.framing is BY_CHUNKS:
            connection.close()
            self.failed(UpstreamFault.BAD_ANSWER, "it answered HTTP/1.0 with chunks")
            return
        exchange.answered(answer.status)
        if exchange.relay is not self:
            return  # the handler thought otherwise
        client.decide_keep_alive(exchange)
        if connection.framing is BY_CLOSE:
            exchange.keep_alive = False
        exchange.move(ANSWER)
        end = b"\r\n" if exchange.keep_alive else b"connection: close\r\n\r\n"
        if not answer.dated:
            end = answers.date_header() + end  # whoever passes an answer on owes it one (RFC 9110, 6.6.1)
        head = b"%b%b%b" % (answer.relayed, self._extra, end)
        if connection.complete:
            self.last(connection, head, data)
        else:
            limit = self._limits.stall_timeout
            self.deadline = FOREVER if limit is None else client.server.now + limit
            self.piece(head + data)

    def piece(self, data: bytes) -> None:
        """Relay a piece of the answer. Tokens don't come this way: see UpstreamConnection.data_received."""
        self.active = True
        self.exchange.bytes_out += len(data)
        self.transport.write(data)

    def last(self, connection: UpstreamConnection, head: bytes, data: bytes) -> None:
        """Relay the last piece, if the watch agrees that it is; `head` when it came along with it."""
        exchange, watch = self.exchange, self.watch
        self._count(connection)
        kind = COMPLETE
        if watch is not None:
            error = watch.error() if exchange.status < 400 else None  # else the status tells it
            if error is not None:
                kind = Kind.IN_BAND_ERROR
                exchange.detail = error
            elif not watch.whole(exchange.status):
                self._not_whole(connection, head, data)
                return
        data = head + data
        if data:
            self.piece(data)
        if connection.reusable and not connection.full and self._client.upload_done(exchange):
            if self._client.write_paused:
                connection.transport.resume_reading()  # it was only paused for this client
            self._upstream.pool.put(connection, self._client.server.now)
        else:
            connection.close()
        self._end(kind)

    def _count(self, connection: UpstreamConnection) -> None:
        """Add what the connection has passed on by itself."""
        self.exchange.bytes_out += connection.passed_bytes
        connection.passed_bytes = 0

    def _end(self, kind: Kind) -> None:
        self.connection = None
        self.exchange.relay = None
        self.exchange.move(ANSWER_END)
        self._client.ended(self.exchange, kind)

    # Failing.

    def lost(self, connection: UpstreamConnection, why: str, *, untouched: bool) -> None:
        """The connection was closed before the answer's head was whole; `untouched`: not a byte had come."""
        stale = connection.served > 0 and untouched and not self._retried and not self.exchange.body_began
        if stale and self._client.server.clock() - self._sent_at < STALE_SECONDS:
            self._retried = True
            self.connection = None
            self._upstream.pool.clear()  # the others are as old
            self.exchange.move(Event.FAILED)
            self.exchange.move(Event.FORWARD)
            self._dial()
            return
        self.failed(UpstreamFault.CLOSED, why)

    def failed(self, fault: UpstreamFault, why: str) -> None:
        """No answer: let the exchange decide."""
        self.connection = self._dialing = None
        if self.exchange.relay is not self:
            return  # it has ended in this very turn of the loop
        retryable = fault in UNTOUCHED and not self.exchange.body_began
        self.exchange.failed(UpstreamError(fault, why, retryable=retryable))

    def broken(self, connection: UpstreamConnection, why: str) -> None:
        """The answer broke off in its middle."""
        can_add = self.watch is not None and connection.at_chunk_boundary()
        self._break(connection, why, can_add=can_add)

    def _not_whole(self, connection: UpstreamConnection, head: bytes, data: bytes) -> None:
        """The framing ended and the body didn't: keep the end from the client."""
        can_add = False
        if connection.framing is BY_CHUNKS:
            can_add = data[-7:] == b"\r\n0\r\n\r\n" or (data == b"0\r\n\r\n" and connection.line_end)
            data = data[:-5] if can_add else b""
        elif connection.framing is Framing.LENGTH:
            if not data:
                head = b""  # an answer of no length would be whole with its head
            data = data[:-1]
        if head + data:
            self.piece(head + data)
        self._break(connection, "the upstream ended its answer before it was whole", can_add=can_add)

    def _break(self, connection: UpstreamConnection, why: str, *, can_add: bool) -> None:
        """Break the client's transfer, after the dialect's own words for it where they fit in."""
        framing = connection.framing
        self._count(connection)
        self._part(connection)
        event = self.watch.error_event() if self.watch is not None else b""
        if framing is BY_CHUNKS:
            event = b"%x\r\n%b\r\n" % (len(event), event) if can_add and event else b""
        elif framing is not Framing.CLOSE:
            event = b""
        if event:
            self.piece(event)
        exchange = self.exchange
        exchange.detail = why
        exchange.relay = None
        self.connection = None
        exchange.move(ANSWER_END)
        unmarked = framing is not Framing.CHUNKED and framing is not Framing.LENGTH and not event
        self._client.broken(exchange, Kind.UPSTREAM_BROKEN, reset=unmarked)

    # What the client's connection calls.

    def cancel(self) -> None:
        """Close what there is, at once: the client has left, or was answered otherwise."""
        dialing, self._dialing = self._dialing, None
        if dialing is not None:
            dialing.cancel()
        connection, self.connection = self.connection, None
        if connection is not None:
            self._count(connection)
            self._part(connection)

    def _part(self, connection: UpstreamConnection) -> None:
        """Close a connection whose upstream may be at work, and see it stop if the handler wants to know."""
        if self.exchange.follows:
            self.exchange.parting = Parting.of(connection.transport)
        connection.close()

    def client_paused(self, *, paused: bool) -> None:
        """The client doesn't keep up with its answer, or has caught up."""
        connection = self.connection
        self.active = True
        if connection is None or connection.transport.is_closing():
            return
        if paused:
            connection.transport.pause_reading()
        else:
            connection.transport.resume_reading()

    def sweep(self, now: float) -> None:
        """Look at the clock."""
        connection = self.connection
        if connection is None:
            self._still_dialing(now)
            return
        sent = self.exchange.state is State.SENT  # what moved was the answer before this one
        if not sent and (self.active or connection.moved):
            self.active = connection.moved = False
            limit = self._limits.stall_timeout
            self.deadline = FOREVER if limit is None else now + limit
        if now < self.deadline:
            return
        if sent:
            self._part(connection)
            self.failed(UpstreamFault.FIRST_BYTE_TIMEOUT, "no answer within the time allowed")
        elif self._client.write_paused:
            self._client.give_up("the client reads nothing")
        else:
            self.broken(connection, "the upstream fell silent in the middle of its answer")

    def _still_dialing(self, now: float) -> None:
        """Give up a connection that doesn't come about."""
        dialing = self._dialing
        if dialing is None or now < self.deadline:
            return
        dialing.cancel()
        why = f"no connection to {self._upstream.name} within {self._limits.connect_timeout} s"
        self.failed(UpstreamFault.CONNECT_TIMEOUT, why)
