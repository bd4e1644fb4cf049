"""Whole chunks of an answer, which is how tokens come: one chunk a token, and one read a chunk.

They are stepped over here, by a grammar that accepts less than RFC 9112 does: a plain size, the bytes, CRLF.
Whatever doesn't fit, a chunk that came in part, an extension, a trailer, is left to llhttp, which goes on
where the last whole chunk ended. That costs a third of showing each chunk to llhttp, and a stream needs no
parser.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from drover_proxy.wire.contract import Watch

SIZE_DIGITS: Final = 7
"""More would be a chunk of 256 MiB: none comes in one read."""
CR: Final = 0x0D
LF: Final = 0x0A
ZERO: Final = 0x30
NINE: Final = 0x39
UPPER_A: Final = 0x41
UPPER_F: Final = 0x46
LOWER_A: Final = 0x61
LOWER_F: Final = 0x66


def step_over(data: bytes, watch: Watch | None) -> tuple[int, bool]:
    """Step over the whole chunks that a piece begins with, and show their bytes to the watch.

    Args:
        data: A piece of a body that begins where a chunk begins.
        watch: Follows the body.

    Returns:
        How many bytes they take, and whether the last of them was the last chunk, with nothing behind it.
    """
    at, end = 0, len(data)
    while at < end:
        size, place = 0, at
        most = min(end, at + SIZE_DIGITS)
        while place < most:
            byte = data[place]
            if ZERO <= byte <= NINE:
                size = size * 16 + byte - ZERO
            elif LOWER_A <= byte <= LOWER_F:
                size = size * 16 + byte - LOWER_A + 10
            elif UPPER_A <= byte <= UPPER_F:
                size = size * 16 + byte - UPPER_A + 10
            else:
                break
            place += 1
        start = place + 2
        stop = start + size
        if (
            place == at
            or stop + 2 > end
            or data[place] != CR
            or data[place + 1] != LF
            or data[stop] != CR
            or data[stop + 1] != LF
        ):
            break
        at = stop + 2
        if not size:
            return at, True
        if watch is not None:
            watch.feed(data[start:stop])
    return at, False
