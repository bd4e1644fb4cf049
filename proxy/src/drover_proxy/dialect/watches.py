"""Watches follow a streamed answer to know whether it ended as its dialect ends, and what error it carried.

Ollama reports errors inside a clean 200: a last line with `error` (native), an odd empty chunk and no
`[DONE]` (/v1/chat/completions), or simply nothing more (/v1/responses, /v1/messages). Only the dialect's own
last record proves that an answer is whole. So the start of the last record is all that is kept of a stream.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from drover_proxy.dialect.errors import error_event
from drover_proxy.dialect.routes import Shape

BLANK: Final = 0x20
CHAT: Final = Shape.CHAT  # as a global, cheap to look up
KEPT_BYTES: Final = 4096
"""Of the last record. Its fields that matter come first; what follows may be megabytes (`context`)."""

SEPARATOR = {
    Shape.DONE: b"\n",
    Shape.STATUS: b"\n",
    Shape.CHAT: b"\n\n",
    Shape.RESPONSES: b"\n\n",
    Shape.MESSAGES: b"\n\n",
}
TERMINATOR = {
    Shape.DONE: re.compile(rb'"done"\s*:\s*true'),
    Shape.STATUS: re.compile(rb'"status"\s*:\s*"success"'),
    Shape.CHAT: re.compile(rb"\Adata:\s*\[DONE\]\s*\Z"),
    Shape.RESPONSES: re.compile(rb"\Aevent:\s*(response\.(completed|incomplete|failed)|error)\r?\n"),
    Shape.MESSAGES: re.compile(rb"\Aevent:\s*(message_stop|error)\r?\n"),
}
"""Found at the end; of native lines only where the line is too long to be kept and read."""
NATIVE_ERROR = re.compile(rb'\A\{\s*"error"\s*:')
EVENT_ERROR = re.compile(rb"\Aevent:\s*(error|response\.failed)\r?\n")

QUOTED = re.compile(r"['\"`{\[<\n]")
"""Begins what an error's message quotes: a part of the answer, or of the prompt. Neither goes into a log."""

LAST = {Shape.DONE: ("done", b"true"), Shape.STATUS: ("status", b'"success"')}
"""What a native line says that is the last."""

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


class StreamWatch:
    """Keeps the start of the last record of a stream."""

    __slots__ = ("_ended", "_last", "_last_of", "_record", "_separator", "_shape")

    def __init__(self, shape: Shape) -> None:
        self._separator = SEPARATOR[shape]
        self._record = b""
        self._ended = False
        """The record ends with its separator. Kept, since the next piece comes when it is in no cache."""
        self._shape = shape
        self._last = self._last_of = b""

    def feed(self, data: bytes) -> None:
        """Take the next piece of the body."""
        if self._ended and len(data) <= KEPT_BYTES and ((data and data[0] > BLANK) or not data.isspace()):
            # What was before is over, as with most tokens; the rest is seen to at the end.
            self._record = data
            self._ended = data.endswith(self._separator)
        else:
            self._keep_last(self._record + data)

    def _keep_last(self, record: bytes) -> None:
        """Keep the start of the last record of these."""
        separator = self._separator
        cut = record.rfind(separator, 0, len(record.rstrip(b"\n")))
        if cut >= 0:
            record = record[cut + len(separator) :]
        if len(record) > KEPT_BYTES:
            # Its last two bytes are enough to see the separator when it comes, also in two pieces.
            record = record[: KEPT_BYTES - 3] + b"." + record[-2:]
        self._record = record
        self._ended = record.endswith(separator)

    def _last_record(self) -> bytes:
        """Give the last record, without the white space around it; asked for at the end, and then twice."""
        if self._last_of is not self._record or not self._last:
            self._keep_last(self._record)
            self._last_of = self._record
            self._last = self._record.strip()
        return self._last

    def whole(self, status: int) -> bool:
        """Whether the stream ended as its dialect ends; other statuses than 200 end by their framing."""
        if status != 200:
            return True
        record = self._last_record()
        if self._separator == b"\n":
            return self._ends_natively(record)
        if self._shape is CHAT and record == b"data: [DONE]":  # as good as always
            return True
        return bool(TERMINATOR[self._shape].match(record))

    def _ends_natively(self, record: bytes) -> bool:
        """Whether the last line itself says that it is the last: what stands deeper in it says nothing."""
        if NATIVE_ERROR.match(record):
            return True
        if len(self._record) >= KEPT_BYTES - 8:
            return bool(TERMINATOR[self._shape].search(record))
        try:
            fields = _fields.decode(record)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        field, value = LAST[self._shape]
        return bytes(fields.get(field, b"")) == value

    def error(self) -> str | None:
        """Name the error that the stream itself told its client.

        The odd empty chunk isn't one: no client understands it. It only makes the stream not whole.
        """
        record = self._last_record()
        if self._separator == b"\n":
            return _native_error(record) if NATIVE_ERROR.match(record) else None
        if record.startswith(b"event:") and EVENT_ERROR.match(record):
            return "the stream ended with an error event"
        if record.startswith(b'data: {"error"'):
            return "the stream carried an error"
        return None

    def error_event(self) -> bytes:
        """Give the stream's own words for an answer that broke off."""
        return error_event(self._shape, "the answer broke off before its end; ask again")


def _native_error(record: bytes) -> str:
    try:
        message = str(msgspec.json.decode(record)["error"])
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError, RecursionError):
        return "an error that is too long to be shown"
    told = QUOTED.split(message, maxsplit=1)[0].strip()[:200]
    # JSON writes 0x80 to 0x9f and such as they are, and a terminal may obey them.
    return "".join([char if char.isprintable() else "?" for char in told]) or "an error"
