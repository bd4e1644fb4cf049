"""Which header fields go through: hop-by-hop ones never, credentials never, the rest as it came."""

from __future__ import annotations

from drover_proxy.wire import answers

Fields = list[tuple[bytes, bytes]]

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

NOT_FORWARDED = HOP_BY_HOP | {
    b"transfer-encoding",  # framing is written anew
    b"content-length",
    b"expect",  # answered by the proxy itself
    b"host",  # the upstream's own: Ollama answers 403 to strangers
    b"origin",  # likewise
    b"authorization",  # credentials are for the proxy alone
    b"x-api-key",
}
"""What of a client's request never reaches an upstream."""


def connection_tokens(fields: Fields) -> set[bytes]:
    """Collect what all Connection fields name, in lower case."""
    tokens: set[bytes] = set()
    for name, value in fields:
        if name == b"connection":
            tokens.update(token.strip().lower() for token in value.split(b","))
    return tokens


def request_head(
    method: bytes, target: bytes, host: bytes, fields: Fields, *, framing: bytes, http10: bool = False
) -> bytes:
    """Build the head of a forwarded request; `framing` says how long its body is.

    A request of an HTTP/1.0 client goes out as HTTP/1.0, so that its answer comes without chunks.
    """
    drop: frozenset[bytes] | set[bytes] = NOT_FORWARDED
    for name, value in fields:
        if name == b"connection" and value.lower() not in {b"keep-alive", b"close"}:
            drop = drop | connection_tokens(fields)
            break
    lines = [b"%b: %b\r\n" % field for field in fields if field[0] not in drop]
    end = b" HTTP/1.0\r\nHost: " if http10 else b" HTTP/1.1\r\nHost: "
    return b"".join((method, b" ", target, end, host, b"\r\n", *lines, framing, b"\r\n"))


def answer_head(raw: bytes, fields: Fields, extra: Fields, *, close: bool) -> bytes:
    """Make the head that the client gets out of the upstream's, byte for byte but for hop-by-hop fields."""
    if not HOP_BY_HOP.isdisjoint([name for name, _ in fields]):
        raw = _without(
            raw, HOP_BY_HOP | connection_tokens(fields) - {b"transfer-encoding", b"content-length"}
        )
    end = b"connection: close\r\n\r\n" if close else b"\r\n"
    return b"".join((raw[:-2], answers.field_lines(extra) if extra else b"", end))


def _without(raw: bytes, drop: set[bytes] | frozenset[bytes]) -> bytes:
    """Leave the lines of these fields out of a head."""
    start, *lines = raw[:-4].split(b"\r\n")
    kept = [line for line in lines if line.partition(b":")[0].lower() not in drop]
    return b"\r\n".join((start, *kept, b"", b""))
