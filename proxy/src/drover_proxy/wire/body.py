"""Readers that find the exact end of a request's body, which llhttp doesn't tell, and take chunks apart strictly."""

from __future__ import annotations

import re

from drover_proxy.wire.head import BadRequest, bad, find_fault
from drover_proxy.wire.limits import CHUNK_LINE_BYTES, TRAILER_BYTES

CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t -~\x80-\xff]*)?")
TRAILER = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t -~\x80-\xff]*\r\n)*\r\n")


class LengthBody:
    """A body whose length was told."""

    __slots__ = ("remaining",)

    def __init__(self, length: int) -> None:
        self.remaining = length

    @property
    def done(self) -> bool:
        """Say whether all of it was taken."""
        return self.remaining == 0

    def take(self, data: bytes) -> int:
        """Take what belongs to the body; return how many bytes that is."""
        taken = min(len(data), self.remaining)
        self.remaining -= taken
        return taken

    @staticmethod
    def decode(data: bytes) -> bytes:
        """Give the content in what was taken: all of it."""
        return data


class ChunkedBody:
    """A body in chunks. Strict: CRLF only, no white space around sizes, bounded lines, bounded trailers.

    Taking and decoding are one pass: `take` notes the pieces of content where they are to be kept, and `decode`
    hands them over.
    """

    __slots__ = ("_expect_crlf", "_keep", "_left", "_line", "_pieces", "_trailers", "done")

    def __init__(self, *, keep: bool) -> None:
        self.done = False
        self._keep = keep
        self._left = 0
        self._line = b""  # the beginning of a line (or of the trailers) that isn't whole yet
        self._expect_crlf = False
        self._trailers = False
        self._pieces: list[bytes] = []

    def take(self, data: bytes) -> int:
        """Take what belongs to the body, framing included; return how many bytes that is."""
        at, end = 0, len(data)
        while at < end and not self.done:
            if self._left:
                size = min(self._left, end - at)
                if self._keep:
                    self._pieces.append(data[at : at + size])
                self._left -= size
                at += size
                self._expect_crlf = self._left == 0
            elif self._trailers:
                at = self._take_trailers(data, at)
            else:
                at = self._take_line(data, at)
        return at

    def _take_line(self, data: bytes, at: int) -> int:
        found = data.find(b"\n", at)
        stop = len(data) if found < 0 else found + 1
        line = self._line + data[at:stop]
        if len(line) > CHUNK_LINE_BYTES:
            raise bad(f"the line of a chunk's size is longer than {CHUNK_LINE_BYTES} bytes")
        if found < 0:
            self._line = line
            return stop
        self._line = b""
        if not line.endswith(b"\r\n"):
            raise bad("a line of the chunked body ends in LF without CR")
        if self._expect_crlf:
            if line != b"\r\n":
                raise bad("a chunk is longer than its size says")
            self._expect_crlf = False
            return stop
        size = CHUNK_LINE.fullmatch(line[:-2])
        if size is None:
            raise bad("a chunk's size is malformed")
        self._left = int(size[1], 16)
        self._trailers = self._left == 0
        return stop

    def _take_trailers(self, data: bytes, at: int) -> int:
        before = len(self._line)
        section = self._line + data[at:]
        end = 2 if section.startswith(b"\r\n") else section.find(b"\r\n\r\n") + 4
        if (end if end > 3 else len(section)) > TRAILER_BYTES:
            raise BadRequest(431, "trailers_too_long", f"the trailers are longer than {TRAILER_BYTES} bytes")
        if end == 3:
            fault = find_fault(section)
            if fault:
                raise bad(fault)
            self._line = section
            return len(data)
        fault = find_fault(section[:end])
        if fault or TRAILER.fullmatch(section[:end]) is None:
            raise bad(fault or "a trailer is malformed")
        self.done = True
        self._line = b""
        return at + end - before

    def decode(self, data: bytes) -> bytes:  # noqa: ARG002 - the pieces were noted while taking
        """Give the content in what was just taken."""
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)
