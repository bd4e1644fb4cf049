"""The head of an upstream's answer: read strictly, and made ready for the client."""

from __future__ import annotations

import enum
import re

from drover_proxy.wire import fields
from drover_proxy.wire.fields import Fields, find_fault
from drover_proxy.wire.head import is_length
from drover_proxy.wire.headers import connection_tokens, without_hop_by_hop
from drover_proxy.wire.limits import ANSWER_HEAD_BYTES

STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: [\t -~\x80-\xff]*)?")
MEMO_HEADS = 64
"""Heads of answers that are kept: those of a second are few, and all of them go when there are more."""
MEMO_BYTES = 1024
"""A longer one isn't kept. Ollama's are under 300 bytes."""


class Framing(enum.IntEnum):
    """How the end of an answer's body is known (RFC 9112, 6.3)."""

    NONE = 0
    LENGTH = 1
    CHUNKED = 2
    CLOSE = 3


class BadAnswer(Exception):  # noqa: N818 - named after what it is
    """The upstream's answer can't be relayed: not HTTP/1.1, or its length is ambiguous."""


class AnswerHead:
    """What a head says, and the bytes of it that go to the client: no hop-by-hop fields, no empty line."""

    __slots__ = ("dated", "fields", "framing", "keep_alive", "length", "raw", "relayed", "size", "status")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.size = len(raw)
        lines = raw[:-4].split(b"\r\n")
        start = STATUS_LINE.fullmatch(lines[0])
        if start is None:
            raise BadAnswer(find_fault(raw) or "its status line is malformed")
        self.status = int(start[2])
        if self.status == 101:
            raise BadAnswer("it switches protocols, which nobody asked for")
        del lines[0]
        try:
            self.fields: Fields = fields.read(lines)
        except ValueError as error:
            raise BadAnswer(str(error)) from None
        self.length = 0
        self.framing = self._framing()
        if start[1] == b"0":
            if self.framing is Framing.CHUNKED:
                raise BadAnswer("HTTP/1.0 knows no chunks")
            raw = b"HTTP/1.1" + raw[8:]  # whoever relays speaks for itself (RFC 9110, 2.5)
        self.keep_alive = (
            start[1] == b"1"
            and self.framing is not Framing.CLOSE
            and b"close" not in connection_tokens(self.fields)
        )
        self.dated = any(name == b"date" for name, _ in self.fields)
        bodiless = self.status < 200 or self.status == 204  # of these RFC 9110, 8.6, forbids a length
        self.relayed = without_hop_by_hop(raw, self.fields, bodiless=bodiless)[:-2]

    def _framing(self) -> Framing:
        """Find out how the body ends; refuse what is ambiguous."""
        length: bytes | None = None
        chunked = False
        for name, value in self.fields:
            if name == b"content-length":
                if length is not None or not is_length(value):
                    raise BadAnswer("its Content-Length is not one plain number")
                length = value
            elif name == b"transfer-encoding":
                if chunked or value.lower() != b"chunked":
                    raise BadAnswer("its Transfer-Encoding is not just chunked")
                chunked = True
        if chunked and (self.status < 200 or self.status == 204):
            raise BadAnswer(f"its status {self.status} has no body to be chunked")
        if chunked and length is not None:
            raise BadAnswer("Content-Length and Transfer-Encoding together are ambiguous")
        if self.status < 200 or self.status in {204, 304}:
            return Framing.NONE
        if chunked:
            return Framing.CHUNKED
        if length is None:
            return Framing.CLOSE
        self.length = int(length)
        return Framing.LENGTH


class AnswerHeads:
    """Reads heads; one that came before, byte for byte, is read only once.

    The heads of streams differ in nothing but their Date, so under load most of a second's are the same.
    """

    __slots__ = ("_kept", "_size")

    def __init__(self) -> None:
        self._kept: dict[bytes, AnswerHead] = {}
        self._size = 0

    def again(self, data: bytes) -> AnswerHead | None:
        """Give the head that this begins with, where it came before and is as long as the last one."""
        return self._kept.get(data[: self._size])

    def read(self, raw: bytes) -> AnswerHead:
        """Read a head, its empty line included; raise BadAnswer if it can't be relayed."""
        self._size = len(raw)
        kept = self._kept.get(raw)
        if kept is not None:
            return kept
        if len(raw) > ANSWER_HEAD_BYTES:
            raise BadAnswer(f"a head of more than {ANSWER_HEAD_BYTES} bytes")
        head = AnswerHead(raw)
        if len(raw) <= MEMO_BYTES:
            if len(self._kept) >= MEMO_HEADS:
                self._kept.clear()
            self._kept[raw] = head
        return head
