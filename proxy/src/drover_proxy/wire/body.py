"""Finds the exact end of a request's body, which llhttp doesn't tell, and takes chunks apart strictly."""

from __future__ import annotations

import re

from drover_proxy.wire.contract import BodyPlan
from drover_proxy.wire.fields import find_fault
from drover_proxy.wire.head import BadRequest, bad
from drover_proxy.wire.headers import NOT_FORWARDED
from drover_proxy.wire.limits import (
    BODY_RATE_BYTES,
    CHUNK_BYTES,
    CHUNK_LINE_BYTES,
    DISCARD_BYTES,
    EARLY_BODY_BYTES,
    FREE_CHUNKS,
    TRAILER_BYTES,
    Limits,
)

CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t -~\x80-\xff]*)?\r\n")
"""Of 15 digits at most: Go refuses more than 16, and with 15 no reader overflows."""
TRAILER = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t -~\x80-\xff]*\r\n)*\r\n")


class ChunkedBody:
    """Takes a chunked body apart. Strict: CRLF only, no space around sizes, bounded lines and trailers."""

    __slots__ = ("_chunks", "_expect_crlf", "_left", "_line", "_size", "_trailers", "done")

    def __init__(self) -> None:
        self.done = False
        self._left = 0
        self._line = b""  # the beginning of a line (or of the trailers) that isn't whole yet
        self._expect_crlf = False
        self._trailers = False
        self._chunks = 0
        self._size = 0

    def take(self, data: bytes, content: bytearray | None) -> int:
        """Take what belongs to the body, framing included; return how many bytes that is.

        The content is added to `content`, where it is given.
        """
        at, end = 0, len(data)
        while at < end and not self.done:
            if self._left:
                size = min(self._left, end - at)
                if content is not None:
                    content += data[at : at + size]
                self._left -= size
                at += size
                self._expect_crlf = self._left == 0
            elif self._trailers:
                at = self._take_trailers(data, at)
            elif self._line or self._expect_crlf:
                at = self._take_line(data, at)
            else:
                at = self._take_chunks(data, at, content)
        return at

    def _take_chunks(self, data: bytes, at: int, content: bytearray | None) -> int:
        """Take the chunks that are here whole, without a detour; leave the first that isn't to its parts."""
        began = at
        while (line := CHUNK_LINE.match(data, at)) and line.end() - at <= CHUNK_LINE_BYTES:
            start = line.end()
            size = int(line[1], 16)
            stop = start + size
            if not size or data[stop : stop + 2] != b"\r\n":
                break
            if content is not None:
                content += data[start:stop]
            self._count(size)
            at = stop + 2
        return at if at > began else self._take_line(data, at)

    def _count(self, size: int) -> None:
        """Refuse a body in countless chunks: each costs as much as a short request."""
        self._chunks += 1
        self._size += size
        if self._chunks > FREE_CHUNKS and self._size < self._chunks * CHUNK_BYTES:
            raise bad(f"more than {FREE_CHUNKS} chunks, of less than {CHUNK_BYTES} bytes each")

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
        size = CHUNK_LINE.fullmatch(line)
        if size is None:
            raise bad("a chunk's size is malformed")
        self._left = int(size[1], 16)
        self._trailers = self._left == 0
        if self._left:
            self._count(self._left)
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
        for line in section[:end].split(b"\r\n"):
            if line.partition(b":")[0].lower() in NOT_FORWARDED:
                raise bad("a field stands in the trailers that has no place there")
        self.done = True
        self._line = b""
        return at + end - before


class Intake:
    """The body of one request on its way in: what belongs to it, how much is allowed, what is held."""

    __slots__ = (
        "_chunks",
        "_limit",
        "awaits_continue",
        "began",
        "done",
        "held",
        "plan",
        "received",
        "remaining",
    )

    def __init__(self, length: int, *, chunked: bool, awaits_continue: bool) -> None:
        self.remaining = length
        """Of a body whose length was told."""
        self._chunks = ChunkedBody() if chunked else None
        self._limit: int | None = None
        self.awaits_continue = awaits_continue
        """The client waits for a 100 before it sends anything."""
        self.done = False
        self.began = 0.0
        """As of the sweep before it."""
        self.plan = BodyPlan.NONE
        self.received = 0
        self.held = bytearray()
        """BUFFER: the content so far. STREAM: what no upstream has taken yet, framing included.

        One run of bytes: a list of what each read brought could be many times its content.
        """

    def follow(self, plan: BodyPlan, limits: Limits) -> None:
        """Learn what is to be done with the body; raise BadRequest if it is known to be too long for that."""
        self.plan = plan
        if plan is not BodyPlan.NONE:
            self._limit = limits.body_bytes if plan is BodyPlan.BUFFER else limits.stream_body_bytes
        self._check(self.remaining)

    def _check(self, size: int) -> None:
        if self._limit is not None and size > self._limit:
            raise too_long(self._limit)

    def take(self, data: bytes) -> int:
        """Take what belongs to the body, keep it if it is to be kept; return how many bytes that was."""
        buffer = self.plan is BodyPlan.BUFFER
        if self._chunks is not None:
            taken = self._chunks.take(data, self.held if buffer else None)
            self.done = self._chunks.done
        else:
            taken = min(len(data), self.remaining)
            self.remaining -= taken
            self.done = self.remaining == 0
            if buffer:
                self.held += data if taken == len(data) else data[:taken]
        self.received += taken
        self._check(len(self.held) if buffer else self.received)
        return taken

    def hold(self, piece: bytes) -> bool:
        """Keep a streamed piece until somebody takes it; say whether that is as much as may be kept."""
        self.held += piece
        return len(self.held) > EARLY_BODY_BYTES

    def release(self) -> bytes:
        """Hand over what is held."""
        held, self.held = self.held, bytearray()
        return bytes(held)

    def too_slow(self, now: float, limits: Limits) -> bool:
        """Say whether a body to be held whole drips in, byte by byte, only to hold its place."""
        seconds = now - self.began
        slow = seconds > limits.body_timeout and self.received < BODY_RATE_BYTES * seconds
        return slow and self.plan is BodyPlan.BUFFER

    def skippable(self) -> bool:
        """Say whether the rest can be read and thrown away, so that the connection stays of use."""
        return self.done or (
            self._chunks is None and not self.awaits_continue and self.remaining <= DISCARD_BYTES
        )


def too_long(limit: int) -> BadRequest:
    """Make the 413."""
    return BadRequest(413, "body_too_long", f"a body of more than {limit} bytes")
