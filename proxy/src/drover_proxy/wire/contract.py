r"""What the wire and the rest of the proxy promise each other.

The wire calls a `Handler` as a request goes through its life; the handler answers by calling methods of the
`Exchange` (exchange.py), at once or later, always on the event loop's thread. For one exchange the calls come
in this order, and `finished` comes exactly once, last:

    head -> ready -> (upstream_failed ...) -> answered -> finished
                  \-> gone -> finished, whenever the client leaves before the end
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from drover_proxy.wire.exchange import Exchange
    from drover_proxy.wire.fields import Fields


class BodyPlan(enum.IntEnum):
    """What is to be done with a request's body."""

    NONE = 0
    """Nobody wants it: it is thrown away (within bounds), and a forwarded request has none."""
    BUFFER = 1
    """Hold it whole; `ready` is called when `Exchange.body` has all of it."""
    STREAM = 2
    """Hold nothing: `ready` follows `head` at once, and the body flows through from `forward` on."""


class Kind(str, enum.Enum):
    """How an exchange ended."""

    __hash__ = str.__hash__  # counted once a request; Enum's own is slow

    COMPLETE = "complete"
    """The client was given a whole answer, of whatever status, by the upstream or by the proxy."""
    CLIENT_GONE = "client_gone"
    """The client left, or stopped reading, before the end. Never the upstream's fault."""
    UPSTREAM_FAILED = "upstream_failed"
    """No upstream gave a byte of an answer; the client was told so by the proxy."""
    UPSTREAM_BROKEN = "upstream_broken"
    """The answer broke off after it had begun, and so did the transfer, or an error event ended it."""
    REFUSED = "refused"
    """The wire turned the request down: its body was too long, too slow or malformed."""
    IN_BAND_ERROR = "in_band_error"
    """The answer came whole by its framing, and carried an error that the watch found."""


@dataclass(slots=True, init=False)
class Outcome:
    """The end of an exchange, as given to `Handler.finished`."""

    kind: Kind
    status: int
    """Status that went to the client; 0 when none did."""
    bytes_in: int
    """Body bytes received from the client."""
    bytes_out: int
    """Bytes given to the client's connection, heads included."""
    upstream_reused: bool
    """The (last) upstream connection had served another request before."""
    detail: str
    """Why, in words, for the log; empty when complete."""

    def __init__(
        self, kind: Kind, status: int, bytes_in: int, bytes_out: int, upstream_reused: bool, detail: str
    ) -> None:
        # Written out, since it is made once a request: see core/events.py.
        self.kind = kind
        self.status = status
        self.bytes_in = bytes_in
        self.bytes_out = bytes_out
        self.upstream_reused = upstream_reused
        self.detail = detail


class UpstreamFault(str, enum.Enum):
    """What went wrong with an upstream before any byte of its answer."""

    DIAL = "dial"
    """No connection: refused, no route, no such socket."""
    CONNECT_TIMEOUT = "connect_timeout"
    CLOSED = "closed"
    """The connection was closed or reset after the request had been sent."""
    FIRST_BYTE_TIMEOUT = "first_byte_timeout"
    BAD_ANSWER = "bad_answer"
    """What came is no HTTP/1.1 answer, or one with an ambiguous length."""
    BODY_LOST = "body_lost"
    """The request could not be sent again, since part of its streamed body had gone out already."""


LATE = frozenset((UpstreamFault.CONNECT_TIMEOUT, UpstreamFault.FIRST_BYTE_TIMEOUT))
"""Faults that are only too much time."""


class UpstreamError(Exception):
    """An upstream failed before any byte of its answer went to the client."""

    def __init__(self, fault: UpstreamFault, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.fault = fault
        self.retryable = retryable
        """The request was never sent, and its body is still at hand: `forward` again is safe."""
        self.code = f"upstream_{fault.value}"
        self.status = 504 if fault in LATE else 502
        """What to answer when nobody tries again."""


class Watch(Protocol):
    """Follows the body of an answer to know whether it is whole. Made by the dialect, one per forward."""

    def feed(self, data: bytes, /) -> None:
        """Take the next piece of the answer's body, without its chunk framing. Must be cheap: keep a tail."""

    def whole(self, status: int, /) -> bool:
        """Say whether the body, whose framing has ended, also ended as its dialect ends."""

    def error(self) -> str | None:
        """Name the error that the body itself reported, if it did."""

    def error_event(self) -> bytes:
        """Give the dialect's words for "this answer broke off", sent as the last thing; b"" for none."""


class Stranger(NamedTuple):
    """Somebody the wire turned away before there was an exchange."""

    client: str
    """The peer's address, as an exchange's `client`."""
    target: bytes
    """What was asked for, as far as that could be read, else b""."""


class Handler(Protocol):
    """What the wire calls. All of it on the event loop's thread; nothing may block; nothing should raise.

    A method that raises is a bug of the handler: the wire logs it through the loop's exception handler and
    answers 500, or breaks the transfer when an answer has begun.
    """

    def head(self, ex: Exchange, /) -> BodyPlan:
        """Take a request whose head is whole. May call `ex.respond` at once; the plan then doesn't matter."""

    def ready(self, ex: Exchange, /) -> None:
        """Take the request for work: `ex.body` is whole, or for STREAM `forward` may be called."""

    def answered(self, ex: Exchange, status: int, /) -> None:
        """Learn that the head of the upstream's answer has arrived. Called before it goes to the client."""

    def upstream_failed(self, ex: Exchange, error: UpstreamError, /) -> bool:
        """Decide after a failure before any byte of an answer.

        True says that the handler has taken it: it called `ex.forward` or `ex.respond`, or will do so later.
        False leaves it to the wire, which answers 502 or 504 with `error_answer`.
        """

    def error_answer(
        self, asked: Exchange | Stranger, status: int, code: str, message: str, /
    ) -> tuple[Fields, bytes]:
        """Put an error of the wire's own into the words of the target's clients: header fields and body.

        `asked` is a stranger where no head was whole, or it could not be read. `code` is stable, and goes out
        as X-Drover-Error. For an exchange that `head` raised on, there is no `context`.
        """

    def gone(self, ex: Exchange, /) -> None:
        """Learn that the client left before the end. The upstream's connection is already closed."""

    def finished(self, ex: Exchange, outcome: Outcome, /) -> None:
        """Learn how it ended. Exactly once for each exchange that `head` was called with.

        Where the handler had set `ex.follows`, and the upstream's connection was closed before the end of its
        answer, `ex.parting` tells when the upstream has stopped; `gone` may use it already.
        """
