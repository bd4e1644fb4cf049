"""Which header fields go through: hop-by-hop ones never, credentials never, the rest as it came."""

from __future__ import annotations

from drover_proxy.wire.fields import Fields
from drover_proxy.wire.forwarding import FORWARDED

HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"upgrade",
        b"http2-settings",
    )
)
"""Fields about one connection only (RFC 9110, 7.6.1). Transfer-Encoding is dealt with as framing."""

FRAMING = frozenset((b"transfer-encoding", b"content-length"))
"""Relayed with the body's framing, whatever Connection may name."""

NOT_FORWARDED = HOP_BY_HOP | {
    b"transfer-encoding",  # framing is written anew
    b"content-length",
    b"expect",  # answered by the proxy itself
    b"host",  # the upstream's own: Ollama answers 403 to strangers
    b"origin",  # likewise
    b"authorization",  # credentials are for the proxy alone
    b"x-api-key",
    *FORWARDED,  # who may say what of a request's way is for forwarding.py to decide
}
"""What of a client's request never reaches an upstream."""


def connection_tokens(fields: Fields) -> set[bytes]:
    """Collect what all Connection fields name, in lower case."""
    tokens: set[bytes] = set()
    for name, value in fields:
        if name == b"connection":
            tokens.update(token.strip().lower() for token in value.split(b","))
    return tokens


def request_head(method: bytes, target: bytes, host: bytes, fields: Fields, *, http10: bool = False) -> bytes:
    """Build the head of a forwarded request, but for its framing and the empty line.

    A request of an HTTP/1.0 client goes out as HTTP/1.0, so that its answer comes without chunks.
    """
    drop: frozenset[bytes] | set[bytes] = NOT_FORWARDED
    for name, value in fields:
        if name == b"connection" and value.lower() not in {b"keep-alive", b"close"}:
            drop = drop | connection_tokens(fields)
            break
    lines: list[bytes] = []
    for name, value in fields:
        if name not in drop:
            lines.append(b"%b: %b\r\n" % (name, value))
    end = b" HTTP/1.0\r\nHost: " if http10 else b" HTTP/1.1\r\nHost: "
    return b"".join((method, b" ", target, end, host, b"\r\n", *lines))


def without_hop_by_hop(raw: bytes, fields: Fields, *, bodiless: bool = False) -> bytes:
    """Leave out of a head what is about the upstream's connection only; the rest stays byte for byte.

    Out of a `bodiless` one also its length: whoever believed it would wait, or take the next answer for it.
    """
    unwanted = HOP_BY_HOP | {b"content-length"} if bodiless else HOP_BY_HOP
    if not any(name in unwanted for name, _ in fields):
        return raw
    drop = unwanted | connection_tokens(fields) - FRAMING
    start, *lines = raw[:-4].split(b"\r\n")
    kept = [line for line, field in zip(lines, fields, strict=True) if field[0] not in drop]
    return b"\r\n".join((start, *kept, b"", b""))
