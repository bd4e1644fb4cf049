"""Nothing to smuggle through: what is ambiguous or malformed is refused, and never seen upstream."""

from __future__ import annotations

import itertools
import re

import pytest
from drover_proxy.wire import Limits
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.unit.wire.memory import ours, theirs
from tests.unit.wire.rig import World, answer, get, post

START = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = START + b"Transfer-Encoding: chunked\r\n\r\n"

REFUSED = {
    # lengths
    "length and chunked": (400, START + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "chunked and length": (400, START + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n"),
    "two lengths": (400, START + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
    "the same length twice": (400, START + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc"),
    "length list": (400, START + b"Content-Length: 3, 3\r\n\r\nabc"),
    "length with a sign": (400, START + b"Content-Length: +3\r\n\r\nabc"),
    "negative length": (400, START + b"Content-Length: -3\r\n\r\nabc"),
    "hexadecimal length": (400, START + b"Content-Length: 0x3\r\n\r\nabc"),
    "empty length": (400, START + b"Content-Length:\r\n\r\nabc"),
    "length with a gap": (400, START + b"Content-Length: 3 3\r\n\r\nabc"),
    "length in other digits": (400, START + b"Content-Length: \xb2\r\n\r\nabc"),
    "huge length": (400, START + b"Content-Length: 99999999999999999999\r\n\r\nabc"),
    "xchunked": (400, START + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    "chunked twice": (400, START + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n0\r\n\r\n"),
    "chunked, chunked": (400, START + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    "gzip, chunked": (400, START + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "chunked, identity": (400, START + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
    "chunked behind a tab": (400, START + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
    "empty coding": (400, START + b"Transfer-Encoding:\r\n\r\n0\r\n\r\n"),
    "chunked in HTTP/1.0": (400, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    # fields
    "space before the colon": (400, START + b"Content-Length : 3\r\n\r\nabc"),
    "tab before the colon": (400, START + b"Content-Length\t: 3\r\n\r\nabc"),
    "no colon": (400, START + b"Content-Length\r\n\r\n"),
    "no name": (400, START + b": 3\r\n\r\n"),
    "folded line": (400, START + b"X: a\r\n b\r\n\r\n"),
    "folded by a tab": (400, START + b"X: a\r\n\tb\r\n\r\n"),
    "fold first": (400, b"GET / HTTP/1.1\r\n Host: a\r\n\r\n"),
    "NUL in a value": (400, START + b"X: a\0b\r\n\r\n"),
    "control byte in a value": (400, START + b"X: a\x01b\r\n\r\n"),
    "DEL in a value": (400, START + b"X: a\x7fb\r\n\r\n"),
    "bare CR in a value": (400, START + b"X: a\rb\r\n\r\n"),
    "bare LF": (400, b"GET / HTTP/1.1\nHost: a\n\n"),
    "bare LF in one line": (400, START + b"X: a\nContent-Length: 3\r\n\r\nabc"),
    "CR CR LF": (400, START + b"X: a\r\r\n\r\n"),
    "odd name": (400, START + b"X(Y): a\r\n\r\n"),
    "high byte in a name": (400, START + b"X\xff: a\r\n\r\n"),
    "no Host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two Hosts": (400, START + b"Host: b\r\n\r\n"),
    "odd Host": (400, b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
    "Host with a path": (400, b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    # request line
    "two spaces": (400, b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "two spaces behind": (400, b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n"),
    "trailing space": (400, b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n"),
    "leading space": (400, b" GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "two empty lines first": (400, b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "no version": (400, b"GET /\r\nHost: a\r\n\r\n"),
    "HTTP/0.9": (505, b"GET / HTTP/0.9\r\nHost: a\r\n\r\n"),
    "HTTP/2.0": (505, b"GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
    "HTTP/1.2": (505, b"GET / HTTP/1.2\r\nHost: a\r\n\r\n"),
    "HTTP/1.10": (400, b"GET / HTTP/1.10\r\nHost: a\r\n\r\n"),
    "lower-case version": (400, b"GET / http/1.1\r\nHost: a\r\n\r\n"),
    "RTSP": (400, b"OPTIONS / RTSP/1.0\r\nHost: a\r\n\r\n"),
    "HTTP/2 preface": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "TLS": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "control byte in the target": (400, b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "high byte in the target": (400, b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n"),
    "fragment": (400, b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n"),
    "no slash": (400, b"GET a HTTP/1.1\r\nHost: a\r\n\r\n"),
    "other scheme": (400, b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "credentials in the target": (400, b"GET http://u:p@a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    "star": (400, b"GET * HTTP/1.1\r\nHost: a\r\n\r\n"),
    "unknown method": (501, b"FOO / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "lower-case method": (501, b"get / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "CONNECT": (501, b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "websocket": (501, START + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n"),
    "unknown expectation": (417, START + b"Expect: miracles\r\n\r\n"),
    # chunks
    "bare LF chunks": (400, CHUNKED + b"3\nabc\n0\n\n"),
    "LF behind a chunk": (400, CHUNKED + b"3\r\nabc\n0\r\n\r\n"),
    "space before a size": (400, CHUNKED + b" 3\r\nabc\r\n0\r\n\r\n"),
    "space behind a size": (400, CHUNKED + b"3 \r\nabc\r\n0\r\n\r\n"),
    "0x size": (400, CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n"),
    "negative size": (400, CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n"),
    "empty size": (400, CHUNKED + b"\r\nabc\r\n0\r\n\r\n"),
    "huge size": (400, CHUNKED + b"fffffffffffffffff\r\nabc"),
    "short size": (400, CHUNKED + b"2\r\nabc\r\n0\r\n\r\n"),
    "control byte in an extension": (400, CHUNKED + b"3;a\x01\r\nabc\r\n0\r\n\r\n"),
    "LF in an extension": (400, CHUNKED + b"3;a\nabc\r\n0\r\n\r\n"),
    "endless extension": (400, CHUNKED + b"3;" + b"a" * 300),
    "folded trailer": (400, CHUNKED + b"0\r\nX: a\r\n b\r\n\r\n"),
    "bare LF trailer": (400, CHUNKED + b"0\r\nX: a\n\r\n"),
    "length in a trailer": (400, CHUNKED + b"0\r\nContent-Length: 5\r\n\r\n"),
    "coding in a trailer": (400, CHUNKED + b"0\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "key in a trailer": (400, CHUNKED + b"3\r\nabc\r\n0\r\nX: y\r\nAuthorization: Bearer z\r\n\r\n"),
    "other key in a trailer": (400, CHUNKED + b"0\r\nX-API-Key: z\r\n\r\n"),
    "Host in a trailer": (400, CHUNKED + b"0\r\nHost: b\r\n\r\n"),
    "address in a trailer": (400, CHUNKED + b"0\r\nx-forwarded-for: ::1\r\n\r\n"),
    "hop-by-hop trailer": (400, CHUNKED + b"0\r\nConnection: x\r\n\r\n"),
    "endless trailers": (431, CHUNKED + b"0\r\n" + b"X: aaaaaaaaaaaaaaaa\r\n" * 500),
    # floods
    "many fields": (431, b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 200 + b"\r\n"),
    "long field": (431, b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 70_000 + b"\r\n\r\n"),
    "endless field": (431, b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 70_000),
    "endless target": (431, b"GET /" + b"y" * 70_000),
}


def status(written: bytes) -> int:
    """Find the status of the (last) answer."""
    return int(re.findall(rb"HTTP/1\.1 (\d+)", written)[-1])


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("cut", [0, 1, 7])
def test_refused(name: str, cut: int):
    """Refused with its status, the connection closes, and no request gets as far as the handler's `ready`."""
    expected, raw = REFUSED[name]
    pieces = [raw[i : i + cut] for i in range(0, len(raw), cut)] if cut and len(raw) < 9000 else [raw]
    requests, transport = ours(pieces)
    assert requests == []
    assert status(transport.written) == expected, transport.written
    assert transport.ended
    assert b"connection: close\r\n" in transport.written


@pytest.mark.parametrize("name", REFUSED)
def test_refused_behind_a_good_one(name: str):
    """Also behind a good request on the same connection, whose head is remembered, and never a second one."""
    good = b"GET /good HTTP/1.1\r\nHost: a\r\n\r\n"
    requests, transport = ours([good + REFUSED[name][1] + good])
    assert [r[1] for r in requests] == [b"/good"]
    assert transport.ended


async def test_refused_on_the_wire(world: World):
    """On real sockets: the error arrives whole, the connection closes, the upstream has seen nothing."""
    for name, (expected, raw) in REFUSED.items():
        client = await world.client(raw + get(b"/smuggled"))
        got = await client.until_closed()
        assert status(got) == expected, name
        client.close()
    assert world.origin.peers == []


ACCEPTED = {
    "space behind a value": START + b"Content-Length: 3 \t\r\n\r\nabc",
    "no space": b"POST / HTTP/1.1\r\nHost:a\r\nContent-Length:3\r\n\r\nabc",
    "leading zeros": START + b"Content-Length: 003\r\n\r\nabc",
    "one empty line first": b"\r\n" + START + b"Content-Length: 3\r\n\r\nabc",
    "high bytes in a value": START + b"X: \xe4\xf6\r\nContent-Length: 3\r\n\r\nabc",
    "empty value": START + b"X:\r\nContent-Length: 3\r\n\r\nabc",
    "chunked in capitals": START + b"Transfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "extension": CHUNKED + b'3;a=b;c="d e"\r\nabc\r\n0;x\r\n\r\n',
    "zeros": CHUNKED + b"0003\r\nabc\r\n000\r\n\r\n",
    "trailers": CHUNKED + b"3\r\nabc\r\n0\r\nX: y\r\nZ: \r\n\r\n",
}


@pytest.mark.parametrize("name", ACCEPTED)
@pytest.mark.parametrize("cut", [0, 1, 5])
def test_accepted(name: str, cut: int):
    """What the standard allows is served, however it is cut, and so is what follows it."""
    raw = ACCEPTED[name] + b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"
    requests, transport = ours([raw[i : i + cut] for i in range(0, len(raw), cut)] if cut else [raw])
    assert requests == [(b"POST", b"/", b"abc"), (b"GET", b"/next", b"")]
    assert not transport.ended


def test_a_repeated_head_is_read_anew_where_it_differs():
    """The shortcut for repeated heads takes other digits for the length, and nothing else."""
    one = START + b"Content-Length: 3\r\nX: y\r\n\r\n"
    for other, expected in (
        (b"Content-Length: 5\r\nX: y\r\n\r\nabcde", [b"abcde"]),
        (b"Content-Length: 0\r\nX: y\r\n\r\n", [b""]),
        (b"Content-Length: 3\r\nX: z\r\n\r\nabc", [b"abc"]),
        (b"Content-Length: +3\r\nX: y\r\n\r\nabc", []),
        (b"Content-Length: \r\nX: y\r\n\r\nabc", []),
        (b"Content-Length: 3,3\r\nX: y\r\n\r\nabc", []),
        (b"Content-Length: 3\r\nContent-Length: 3\r\nX: y\r\n\r\nabc", []),
        (b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n0\r\n\r\n", []),
        (b"Content-Length: 3\nX: y\r\n\r\nabc", []),
        (b"Content-Length: " + b"0" * 18 + b"3\r\nX: y\r\n\r\nabc", []),
    ):
        requests, transport = ours([one + b"abc" + START + other])
        assert [r[2] for r in requests] == [b"abc", *expected], other
        assert transport.ended is (not expected)


NAMES = [b"Content-Length", b"Transfer-Encoding", b"Host", b"X", b"Connection", b"Expect", b"content-length"]
VALUES = [
    b"3",
    b"0",
    b"chunked",
    b"a",
    b"",
    b"3, 3",
    b"gzip, chunked",
    b"close",
    b"keep-alive",
    b"+3",
    b"\x0bchunked",
]
ENDS = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\r\n", b"\r\n ", b"\n\r\n"])
LINES = st.builds(
    lambda name, colon, value, end: name + colon + value + end,
    st.sampled_from(NAMES),
    st.sampled_from([b": "] * 6 + [b":", b" : ", b":\t", b"\t:", b"", b": \x00"]),
    st.sampled_from(VALUES),
    ENDS,
)
STARTS = st.sampled_from(
    [b"POST / HTTP/1.1\r\nHost: a\r\n"] * 6
    + [b"GET /x HTTP/1.1\r\nHost: a\r\n", b"POST / HTTP/1.0\r\n", b"POST  / HTTP/1.1\r\nHost: a\r\n"]
)
BODIES = st.sampled_from(
    [
        b"",
        b"abc",
        b"3\r\nabc\r\n0\r\n\r\n",
        b"0\r\n\r\n",
        b"3\nabc\n0\n\n",
        b"3;x\r\nabc\r\n0\r\nX: y\r\n\r\n",
        b"0\r\n\r\nGET",
    ]
)
MESSAGES = st.builds(
    lambda start, lines, end, body: start + b"".join(lines) + end + body,
    STARTS,
    st.lists(LINES, max_size=3),
    ENDS,
    BODIES,
)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(MESSAGES, min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=2)), max_size=2),
    st.lists(st.integers(0, 400), max_size=4),
)
@example([CHUNKED + b"3\r\nabc\r\n0\r\n\r\n", START + b"Content-Length: 3\r\n\r\nabc"], [], [])
def test_we_accept_nothing_that_h11_refuses(
    messages: list[bytes], edits: list[tuple[int, bytes]], cuts: list[int]
):
    """The requests that we see are the first of those that h11 sees: the same ones, or fewer, never others.

    And where the network cuts the bytes makes no difference.
    """
    data = b"".join(messages)
    for at, replacement in edits:
        data = data[:at] + replacement + data[at + 1 :]
    requests, transport = ours([data])
    expected, _ = theirs(data)
    assert requests == expected[: len(requests)], (data, requests, expected)
    marks = sorted({0, *(cut % (len(data) + 1) for cut in cuts), len(data)})
    pieces = [data[a:b] for a, b in itertools.pairwise(marks)]
    again, cut_transport = ours(pieces)
    assert again == requests
    assert cut_transport.ended is transport.ended


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_rubbish_is_never_a_request(data: bytes):
    """Arbitrary bytes either wait for more or are refused; nothing raises."""
    requests, _ = ours([data])
    assert requests == theirs(data)[0][: len(requests)]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(1, 50), max_size=8))
def test_chunked_bodies_round_trip(body: bytes, sizes: list[int]):
    """A body in chunks of any sizes is the body."""
    raw, at = b"", 0
    for size in [*sizes, len(body) or 1]:
        piece = body[at : at + size]
        if piece:
            raw += b"%x\r\n%b\r\n" % (len(piece), piece)
        at += size
    requests, _ = ours([CHUNKED + raw + b"0\r\n\r\n"])
    assert requests == [(b"POST", b"/", body)]


async def test_one_request_or_none(world: World):
    """On the wire, the upstream of a smuggling attempt sees exactly one request, or none."""
    hidden = b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
    client = await world.client(post(hidden))
    upstream = await world.origin.request(end=hidden)
    upstream.send(answer())
    await client.until(b"ok")
    assert len(world.handler.exchanges) == 1
    assert upstream.received.count(b"Host: 127.0.0.1") == 1


def test_limits_are_the_operators():
    """Header bytes and count follow the limits given."""
    raw = b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n\r\n"
    for limits, expected in (
        (Limits(header_bytes=len(raw), header_count=2), 200),
        (Limits(header_bytes=len(raw) - 1), 431),
        (Limits(header_count=1), 431),
    ):
        assert status(ours([raw], limits)[1].written) == expected
