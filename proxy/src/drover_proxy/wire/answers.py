"""Answers that the proxy makes itself, and the few bytes they are made of."""

from __future__ import annotations

import http
import json
import time
from collections.abc import Iterable
from email.utils import formatdate

from drover_proxy.wire.fields import Fields

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"

STATUS_LINES = {s.value: b"HTTP/1.1 %d %b\r\n" % (s.value, s.phrase.encode()) for s in http.HTTPStatus}

_date = (0, b"")


def date_header() -> bytes:
    """Give the Date field for this second; made once a second."""
    global _date
    now = int(time.time())
    if _date[0] != now:
        _date = (now, b"date: " + formatdate(now, usegmt=True).encode() + b"\r\n")
    return _date[1]


def field_lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Write header fields as they stand on the wire; refuse any that would break out of its line."""
    fields = list(headers)
    lines = b"".join([b"%b: %b\r\n" % field for field in fields])
    count = len(fields)
    if lines.count(b"\n") != count or lines.count(b"\r") != count:
        raise ValueError(f"a header field contains a line break: {lines!r}")
    return lines


def no_body(status: int) -> bool:
    """Say whether answers of this status never have a body, whatever their headers say (RFC 9112, 6.3)."""
    return status in {204, 304} or status < 200


def head(status: int, headers: Iterable[tuple[bytes, bytes]], *, framing: bytes, close: bool) -> bytes:
    """Build the head of an answer; `framing` is the line that says how long the body is, or empty."""
    return b"".join(
        (
            STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status,
            field_lines(headers),
            framing,
            date_header(),
            b"connection: close\r\n\r\n" if close else b"\r\n",
        )
    )


def whole(
    status: int,
    headers: Iterable[tuple[bytes, bytes]],
    body: bytes,
    *,
    close: bool,
    bodiless: bool = False,
) -> bytes:
    """Build a whole answer; `bodiless` leaves the body out but tells its length, as HEAD asks for."""
    if no_body(status):
        return head(status, headers, framing=b"", close=close)
    start = head(status, headers, framing=b"content-length: %d\r\n" % len(body), close=close)
    return start if bodiless else start + body


def plain_error(code: str, message: str) -> tuple[Fields, bytes]:
    """Give headers and body of an error where the handler, which knows its clients' words, fails to."""
    headers = [(b"content-type", b"application/json"), (b"x-drover-error", code.encode())]
    return headers, json.dumps({"error": message}).encode()
