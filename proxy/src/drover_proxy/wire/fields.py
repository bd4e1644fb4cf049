"""Header fields, read line by line with a strict grammar; lines seen before are read only once.

The lines of heads recur: every request of one client carries the same User-Agent, Accept and Content-Type,
every answer of one server the same Server. So what a line means is kept, by its exact bytes, in a bounded
table.
Credentials, and lines that change with every message, are not kept.
"""

from __future__ import annotations

import re
from typing import Final

Fields = list[tuple[bytes, bytes]]

FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([\t -~\x80-\xff]*)")
"""RFC 9110, 5.5: a token, a colon directly behind it, and visible bytes. A bare CR or LF fits nowhere."""

KEPT_LINES = 1024
"""A hundred clients with ten lines each; all of them go when there are more."""
KEPT_BYTES = 256
"""A longer line isn't kept: so all of them together are under half a megabyte."""
CREDENTIALS = frozenset((b"authorization", b"x-api-key"))
"""Secrets, which have no place in a table that outlives their request."""
PASSING = frozenset((b"proxy-authorization", b"cookie", b"date", b"x-request-id", b"traceparent"))
"""Other secrets, and what is another with every message."""
NOT_KEPT = CREDENTIALS | PASSING | {b"content-length"}

CONTROL = bytes(byte for byte in range(32) if byte not in b"\t\r\n") + b"\x7f"
"""Bytes that have no place anywhere in a head."""

_kept: Final[dict[bytes, tuple[bytes, bytes]]] = {}


def read(lines: list[bytes]) -> Fields:
    """Read a head's lines after the first, each without its CRLF; raise ValueError for a malformed one."""
    return [_kept.get(line) or _read(line) for line in lines]


def _read(line: bytes) -> tuple[bytes, bytes]:
    """Read a line that wasn't seen before."""
    match = FIELD.fullmatch(line)
    if match is None:
        raise ValueError(find_fault(line) or "a header field is malformed")
    name = match[1].lower()
    field = (name, match[2].strip(b" \t"))
    if name not in NOT_KEPT and len(line) <= KEPT_BYTES:
        if len(_kept) >= KEPT_LINES:
            _kept.clear()
        _kept[line] = field
    return field


def find_fault(raw: bytes, known: int = 0) -> str | None:
    """Say what is wrong with the bytes of a head, or of its beginning; so many are known to be good."""
    begun = known > 0
    while known and raw[known - 1] in b"\r\n":
        known -= 1
    raw = raw[known:]
    if len(raw.translate(None, CONTROL)) != len(raw):
        return "a control character stands in the head"
    ends = raw.count(b"\r\n")
    if raw.count(b"\n") != ends:
        return "a line ends in LF without CR"
    if raw.count(b"\r") - raw.endswith(b"\r") != ends:
        return "a CR stands without LF"
    if b"\n " in raw or b"\n\t" in raw or (not begun and raw.startswith((b" ", b"\t"))):
        return "a line begins with white space (obsolete line folding)"
    return None
