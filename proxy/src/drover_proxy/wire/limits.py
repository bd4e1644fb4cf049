"""The limits that clients and upstreams run into: each a named number, its unit, and where it comes from.

A limit that is `None` is off. Times are in seconds and are checked by one sweep over all connections
every `sweep_seconds`, so each of them is exact to that interval and costs nothing per request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

FOREVER: Final = float("inf")
"""The deadline of what may take as long as it likes."""

HELD_BYTES: Final = 256 * KIB
"""The most that one direction of one exchange holds in the proxy for a slow reader.

It is the sum of `WRITE_HIGH_BYTES` and of one read, which is 250 KiB on uvloop.
"""

WRITE_HIGH_BYTES: Final = 4 * KIB
"""High-water mark of a transport's write buffer: beyond it, the other side isn't read until all is written.

Writes below it are gathered until the turn of the loop ends: the tokens of many streams are first all read,
and then all written. Measured at a sixth less CPU a chunk than writing each at once.
"""

PIPELINED_BYTES: Final = 64 * KIB
"""What a client may send ahead while its request is being answered.

More is thrown away and the connection closes after the answer. Reading is never paused in that state, for
a paused socket doesn't say that its peer has left. nginx holds one buffer (8 to 32 KiB) of it.
"""

TURN_REQUESTS: Final = 16
"""Pipelined requests that are answered at once, out of one read, before other connections have their turn.

Each costs some 30 us, so a turn is half a millisecond; wrk pipelines that deep, browsers not at all.
"""

EARLY_BODY_BYTES: Final = 64 * KIB
"""How much of a streamed body is read while the request still waits for its upstream; then reading pauses."""

DISCARD_BYTES: Final = 64 * KIB
"""A body nobody wants is read and thrown away up to this length, so that the connection can be used again.

Longer ones are answered with `Connection: close` and a lingering close. Go's net/http draws it at 256 KiB.
"""

LINGER_SECONDS: Final = 2.0
"""How long a client that still sends is given to read our last answer, before the connection is cut.

Closing at once would reset the connection and could destroy that answer on its way. nginx: 5 s.
"""

SILENT_SECONDS: Final = 30
PROBE_SECONDS: Final = 15
PROBES: Final = 4
"""A client that says nothing for so long is asked by the kernel (TCP's keep-alive), so often, so many times.

One whose machine or network is gone doesn't leave, it is only silent, and what it waits for costs a GPU. So
it is noticed after a minute and a half. Go's servers ask after 15 s, 9 times.
"""

CHUNK_LINE_BYTES: Final = 256
"""Longest line of a chunk's size with its extensions. Nothing uses extensions; node allows 16 KiB of them."""

BODY_RATE_BYTES: Final = 500
"""A body that is held whole must come in so many bytes a second on average, once `body_timeout` has passed.

Else a byte a minute would hold a connection, and what came before it, for a year. Apache's mod_reqtimeout
draws it there too. A body that streams through holds nothing, and may come as slowly as it likes.
"""

FREE_CHUNKS: Final = 4096
CHUNK_BYTES: Final = 64
"""A body may have so many chunks of any size; with more, they must have so many bytes on average.

Taking a chunk apart costs 2 us, and one read can bring 40,000 of a byte each, which would stall everybody. Go
bounds the bytes of framing in the same way, since 2023.
"""

TRAILER_BYTES: Final = 8 * KIB
"""Longest trailer section of a request. Trailers are checked, and passed on in streamed bodies only."""

ANSWER_HEAD_BYTES: Final = 64 * KIB
"""Longest head of an upstream's answer. Ollama's are under 300 bytes; nginx gives up at 4 or 8 KiB."""

INTERIM_ANSWERS: Final = 128
"""Answers of 1xx to one request: one every few seconds for ten minutes. One read has room for 10,000, each of
which copies what is behind it. Go's client took 5.
"""

POOL_IDLE_CONNECTIONS: Final = 256
"""Idle connections kept per upstream: as many as an instance could ever have slots, and then some."""

POOL_IDLE_SECONDS: Final = 60.0
"""How long an idle upstream connection is kept. Go's server (Ollama) keeps them for ever, nginx for 60 s."""

STALE_SECONDS: Final = 1.0
"""A reused connection closed this soon after the request, and before any byte came, was already dead.

It is the race every keep-alive client knows, and the request goes out once more on a fresh connection.
Later than this the upstream may have begun to work, and only the handler may decide to try again.
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits an operator may set; the constants above are fixed."""

    header_bytes: int = 64 * KIB
    """Bytes of a request's head. Precedents: nginx 32 KiB in all, Go 1 MiB, node 16 KiB."""
    header_count: int = 128
    """Fields of a request's head. Precedents: Apache 100, Envoy 100, aiohttp 128."""
    body_bytes: int = 64 * MIB
    """Bytes of a body that is held whole (BodyPlan.BUFFER); beyond: 413. A dozen photographs in base64."""
    stream_body_bytes: int | None = None
    """Bytes of a body that streams through (BodyPlan.STREAM): model files have many GB; nothing is held."""
    head_timeout: float = 30.0
    """From the first byte of a head to its end (slowloris). Precedents: Apache 20-40 s, nginx 60 s."""
    body_timeout: float = 60.0
    """Longest silence while a body is being read, and the time until BODY_RATE_BYTES counts. nginx: 60 s."""
    idle_timeout: float = 120.0
    """Keep-alive without a request. Clients should close first: Go keeps its own for 90 s, httpx for 5."""
    connect_timeout: float = 5.0
    """To an upstream on the same host or in the same rack."""
    first_byte_timeout: float | None = None
    """From the request sent to the first byte of the answer. Off: a long prompt takes minutes to read."""
    stall_timeout: float | None = 300.0
    """Longest silence in an answer that has begun, also of a client that doesn't read."""
    max_connections: int = 20_000
    """Client connections in all, those that shake hands for TLS too; beyond: 503 and closed, or closed before
    the handshake. Keep it below the limit of file descriptors."""
    max_connections_per_client: int | None = None
    """Client connections from one address, of IPv6 from one network of /64. Off: a gateway in front is one
    address for everybody."""
    sweep_seconds: float = 1.0
    """How often times are looked at."""
