"""Heads of requests that were read before, on whatever connection, and what they came to.

Many clients open a connection for each request and send the same head each time, but for its length. Reading
it anew, asking who that is, and making the head for the upstream are a third of what such a request costs. A
head is known again by its SHA-256, so that nothing but the very same bytes counts, and of credentials nothing
is kept: they are put back from the head at hand.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from drover_proxy.wire.fields import CREDENTIALS, PASSING, Fields

if TYPE_CHECKING:
    from drover_proxy.wire.head import HeadParser, Memo

KNOWN_HEADS = 256
"""As many sorts of client, keys included; all are forgotten when there are more. Each is a few KiB."""
LENGTHS: Final = (b"\r\nContent-Length: ", b"\r\ncontent-length: ")
"""As clients spell it. Who spells it otherwise is read each time."""

SHA256: Final = hashlib.sha256

Place = tuple[int, bool, int, int]
"""Where a credential stands: which field it is, whether it is behind the length, and from where to where."""


def cut(raw: bytes) -> tuple[bytes, bytes, bytes]:
    """Cut a head around the digits of its length: before, digits, behind; all is before where it has none."""
    at = raw.find(LENGTHS[0])
    if at < 0:
        at = raw.find(LENGTHS[1])
        if at < 0:
            return raw, b"", b""
    start = at + 18
    end = raw.find(b"\r\n", start)
    return raw[:start], raw[start:end], raw[end:]


def digest_of(before: bytes, behind: bytes) -> bytes:
    """Give by what a head is known; NUL stands in none, so the cut is part of it."""
    return SHA256(b"%b\0%b" % (before, behind)).digest()


class Known:
    """What a head came to."""

    __slots__ = (
        "credentials",
        "expects",
        "fields",
        "http10",
        "keep_alive",
        "length_at",
        "memo",
        "method",
        "target",
    )

    def __init__(self, parser: HeadParser, fields: Fields, credentials: list[Place], length_at: int) -> None:
        self.method: bytes = parser.method
        self.target: bytes = parser.target
        self.http10: bool = parser.http10
        self.keep_alive: bool = parser.keep_alive
        self.expects: bool = parser.expects
        self.memo: Memo = parser.memo
        self.fields = fields
        """With nothing where credentials stand."""
        self.credentials = credentials
        self.length_at = length_at

    def fields_of(self, before: bytes, digits: bytes, behind: bytes) -> Fields:
        """Give the fields of a head that is the same but for these digits."""
        fields = self.fields.copy()
        for at, is_behind, start, stop in self.credentials:
            part = behind if is_behind else before
            fields[at] = (fields[at][0], part[start:stop])
        if behind:
            fields[self.length_at] = (b"content-length", digits)
        return fields


class KnownHeads:
    """What a server's connections know of each other's heads."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[bytes, Known] = {}

    def __len__(self) -> int:
        """Count them."""
        return len(self._known)

    def get(self, digest: bytes) -> Known | None:
        """Find what a head came to."""
        return self._known.get(digest)

    def keep(self, digest: bytes, parser: HeadParser, before: bytes, behind: bytes, length_at: int) -> None:
        """Keep what a parser has just read, unless it is of the kind that doesn't come again."""
        fields = parser.fields.copy()
        credentials: list[Place] = []
        for at, (name, value) in enumerate(fields):
            if name in PASSING:
                return
            if name in CREDENTIALS:
                # Wherever the same bytes stand, the next one with this digest has its own there.
                start = before.find(value)
                is_behind = start < 0
                if is_behind:
                    start = behind.find(value)
                credentials.append((at, is_behind, start, start + len(value)))
                fields[at] = (name, b"")
        if len(self._known) >= KNOWN_HEADS:
            self._known.clear()
        self._known[digest] = Known(parser, fields, credentials, length_at)
