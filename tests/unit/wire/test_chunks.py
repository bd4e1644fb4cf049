"""Stepping over whole chunks: llhttp must have seen the same in what was stepped over."""

from __future__ import annotations

import httptools
import pytest
from drover_proxy.wire.chunks import step_over
from hypothesis import given
from hypothesis import strategies as st

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Watching:
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def feed(self, data: bytes, /) -> None:
        """Take a piece."""
        self.seen.append(data)


class Llhttp:
    """What llhttp makes of an answer's chunks."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.complete = False
        self.parser = httptools.HttpResponseParser(self)
        self.parser.feed_data(HEAD)

    def on_body(self, data: bytes) -> None:
        """Take a piece."""
        self.seen.append(data)

    def on_message_complete(self) -> None:
        """Take note of the end."""
        self.complete = True


def chunk(data: bytes, size: str) -> bytes:
    """Write a chunk."""
    return (size % len(data)).encode() + b"\r\n" + data + b"\r\n"


CHUNKS = st.builds(chunk, st.binary(min_size=1, max_size=40), st.sampled_from(("%x", "%X", "%04x", "0%x")))
ODD = st.sampled_from(
    (
        b"0\r\n\r\n",
        b"0\r\nX: y\r\n\r\n",
        b"00\r\n\r\n",
        b"5;x=y\r\nabcde\r\n",
        b"5 \r\nabcde\r\n",
        b"5\nabcde\n",
        b"+5\r\nabcde\r\n",
        b"0x5\r\nabcde\r\n",
        b"5\r\nabcdefg\r\n",
        b"5\r\nabc",
        b"5\r\nabcde\r",
        b"\r\n",
        b"1_0\r\n",
        b"g\r\n",
        b"00000005\r\nabcde\r\n",
        b"fffffff\r\nab",
        b"ffffffffffffffffff\r\n",
        b"HTTP/1.1 200 OK",
    )
)
PIECES = st.lists(CHUNKS | ODD | st.binary(max_size=6), max_size=6).map(b"".join)


@given(PIECES)
def test_what_is_stepped_over_is_what_llhttp_sees_there(data: bytes):
    """The same bytes of the body, the same end, and between chunks where there was none."""
    watching, llhttp = Watching(), Llhttp()
    at, last = step_over(data, watching)
    llhttp.parser.feed_data(data[:at])
    assert b"".join(llhttp.seen) == b"".join(watching.seen)
    assert llhttp.complete is last
    if not last:
        llhttp.parser.feed_data(b"0\r\n\r\n")
        assert llhttp.complete, "stopped within a chunk"


@pytest.mark.parametrize(
    ("data", "taken", "last"),
    [
        (b"", 0, False),
        (b"5\r\nabcde\r\n", 10, False),
        (b"5\r\nabcde\r\n1\r\nf\r\n", 16, False),
        (b"5\r\nabcde\r\n1\r\nf", 10, False),
        (b"1\r\nf\r\n0\r\n\r\n", 11, True),
        (b"1\r\nf\r\n0\r\n\r\nmore", 11, True),
        (b"0\r\nX: y\r\n\r\n", 0, False),
        (b"1;x\r\nf\r\n", 0, False),
    ],
)
def test_whole_plain_chunks_are_stepped_over(data: bytes, taken: int, last: bool):
    """Anything else is left to llhttp, from there on."""
    assert step_over(data, None) == (taken, last)
