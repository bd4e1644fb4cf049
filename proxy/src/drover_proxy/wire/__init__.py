"""HTTP/1.1 in and out: asyncio protocols on uvloop, framing by httptools, bytes passed on as they came.

limits.py     every limit, with its reason                 contract.py   what the wire and its handler promise
states.py     the life of a request, as a table            exchange.py   one request and its answer
server.py     listeners, counts, the clock, the end        link.py       a client's socket, and its end
client.py     its requests, one after the other            bodyreader.py their bodies, held or streamed
head.py       strict checks and parsing of a head          body.py       the exact end of a request's body
fields.py     header fields, read line by line             answerhead.py the same for an upstream's answer
upstream.py   a connection to an upstream, its framing     pool.py       an upstream and its idle connections
relay.py      one forwarded request                        headers.py    what goes through and what doesn't
forwarding.py X-Forwarded-*, Via, trusted proxies          hangups.py    who leaves while not being read
answers.py    answers that the proxy makes itself          parting.py    when an upstream has stopped
chunks.py     whole chunks of an answer                    pieces.py     long writes to TLS, in pieces
handshake.py  connections before TLS is agreed on          certificate.py what a client's certificate calls it
known.py      heads that were read before

docs/explanation/wire.md goes through them with a request.
"""

from __future__ import annotations

from drover_proxy.wire.contract import (
    BodyPlan,
    Handler,
    Kind,
    Outcome,
    Stranger,
    UpstreamError,
    UpstreamFault,
    Watch,
)
from drover_proxy.wire.exchange import Exchange
from drover_proxy.wire.forwarding import Forwarding
from drover_proxy.wire.limits import Limits
from drover_proxy.wire.pool import Upstream
from drover_proxy.wire.server import Server
from drover_proxy.wire.states import IllegalTransition

__all__ = [
    "BodyPlan",
    "Exchange",
    "Forwarding",
    "Handler",
    "IllegalTransition",
    "Kind",
    "Limits",
    "Outcome",
    "Server",
    "Stranger",
    "Upstream",
    "UpstreamError",
    "UpstreamFault",
    "Watch",
]
