"""A head that another connection has read comes to the same, keeps nobody's secrets, and lets nobody in."""

from __future__ import annotations

import gc
from collections.abc import Iterable

import pytest
from drover_proxy.wire import Forwarding, Limits
from drover_proxy.wire.forwarding import Mode
from drover_proxy.wire.head import BadRequest, HeadParser
from drover_proxy.wire.known import KNOWN_HEADS, KnownHeads
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.wire.rig import World, answer

SECRET = b"Bearer a-secret-of-mine"
NAMES = (
    b"Content-Length",
    b"content-length",
    b"CONTENT-LENGTH",
    b"Authorization",
    b"x-api-key",
    b"Cookie",
    b"X-Request-Id",
    b"Connection",
    b"Expect",
    b"Transfer-Encoding",
    b"Upgrade",
    b"Content-Encoding",
    b"X",
)
VALUES = (b"3", b"0", b"3 ", b"Bearer a", b"Bearer ab", b"", b"close", b"100-continue", b"chunked", b"h2c")
LINE = st.tuples(st.sampled_from(NAMES), st.sampled_from((b": ", b":", b":  ")), st.sampled_from(VALUES))
HEADS = st.tuples(
    st.sampled_from((b"POST /a?b HTTP/1.1", b"GET http://b/ HTTP/1.1", b"HEAD / HTTP/1.0")),
    st.lists(LINE, max_size=4),
    st.lists(LINE, max_size=4),
)


def head(line: bytes, fields: Iterable[tuple[bytes, bytes, bytes]]) -> bytes:
    """Write a head."""
    return b"\r\n".join((line, b"Host: a", *(b"".join(field) for field in fields), b"", b""))


def chat(key: bytes = SECRET, length: int = 3) -> bytes:
    """Write a head as clients do."""
    return b"POST /x HTTP/1.1\r\nHost: a\r\nAuthorization: %b\r\nContent-Length: %d\r\n\r\n" % (key, length)


def read(raw: bytes, heads: KnownHeads | None, *, before: bytes = b"") -> tuple[object, HeadParser]:
    """Read a head on a connection of its own: what it came to, and the parser."""
    parser = HeadParser()
    parser.heads = heads
    try:
        for one in (before, raw):
            if one:
                parser.parse(one, Limits())
    except BadRequest as error:
        return (error.status, error.code, error.message), parser
    told = (parser.method, parser.target, parser.fields, parser.length, parser.chunked)
    return (told, parser.http10, parser.keep_alive, parser.expects, parser.length_line()), parser


@given(HEADS, st.lists(st.sampled_from((b"3", b"0", b"017", b"x", b"", b"9" * 19)), min_size=1, max_size=4))
def test_a_known_head_comes_to_the_same(parts: tuple, lengths: list[bytes]) -> None:
    """Whoever has read it before, and with whatever length; the next one on the connection, too."""
    line, fields, others = parts
    heads = KnownHeads()
    for length in lengths:
        raw = head(line, [*fields, (b"Content-Length", b": ", length), *others])
        alone, _ = read(raw, None)
        known, parser = read(raw, heads)
        assert known == alone
        assert read(raw, heads)[0] == alone
        if not isinstance(alone[0], int) and parser.keep_alive:
            following = head(line, [*fields, (b"Content-Length", b": ", b"44"), *others])
            assert parser.again(following) in {0, len(following)}
            assert read(following, heads, before=raw)[0] == read(following, None, before=raw)[0]
        without = head(line, fields)
        assert read(without, heads)[0] == read(without, None)[0]


def test_what_was_decided_is_shared() -> None:
    """Of the same head, and of no other: one byte of a key is enough."""
    heads = KnownHeads()
    _, first = read(chat(), heads)
    _, second = read(chat(length=17), heads)
    _, other = read(chat(SECRET + b"!"), heads)
    assert second.memo is first.memo
    assert second.length == 17
    assert dict(second.fields)[b"authorization"] == SECRET
    assert other.memo is not first.memo
    assert len(heads) == 2


def test_no_secret_is_kept() -> None:
    """Nothing that the table holds on to has it, wherever in the head it stood."""
    heads = KnownHeads()
    for raw in (
        chat(),
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nX-Api-Key: %b\r\n\r\n" % SECRET,
        b"GET / HTTP/1.1\r\nHost: a\r\nX-Api-Key: %b\r\nAuthorization: %b\r\n\r\n" % (SECRET, SECRET),
        b"GET / HTTP/1.1\r\nHost: a\r\nCookie: %b\r\n\r\n" % SECRET,
        b"GET / HTTP/1.1\r\nHost: a\r\nProxy-Authorization: %b\r\n\r\n" % SECRET,
    ):
        read(raw, heads)
        assert read(raw, heads)[0] == read(raw, None)[0]
    assert len(heads) == 3
    held, todo = set(), [heads]
    while todo:
        thing = todo.pop()
        if id(thing) in held or isinstance(thing, type):
            continue
        held.add(id(thing))
        assert not isinstance(thing, bytes) or SECRET not in thing
        todo += gc.get_referents(thing)
    assert len(held) > 20


def test_what_passes_is_not_kept() -> None:
    """A head that is another with each request would only push others out."""
    heads = KnownHeads()
    read(b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: 1\r\n\r\n", heads)
    read(b"GET / HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n" % (b"y" * 5000), heads)
    read(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", heads)
    assert not len(heads)
    for number in range(KNOWN_HEADS + 1):
        read(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number, heads)
    assert len(heads) == 1


def test_only_a_connections_first_head_is_looked_for() -> None:
    """What follows on it mostly repeats that one."""
    heads = KnownHeads()
    read(b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n", heads, before=chat())
    assert len(heads) == 1


async def test_connections_know_each_others_heads() -> None:
    """What the handler decides by a head holds for others' too, until something changes; bytes are theirs."""
    async with World() as world:
        seen = []
        world.handler.on_head = lambda ex: seen.append((ex.memo, ex.header(b"authorization")))

        async def ask(key: bytes, number: int) -> None:
            client = await world.client(chat(key) + b"abc")
            if number == 0:
                (await world.origin.request(end=b"abc")).send(answer(b"fine"))
            else:
                upstream = await world.origin.peer()
                await upstream.until(b"abc")
                upstream.send(answer(b"fine"))
            await client.until(b"fine")
            client.transport.abort()

        await ask(SECRET, 0)
        await ask(SECRET, 1)
        assert seen[1] == seen[0]
        await ask(SECRET + b"!", 2)
        assert seen[2][0] is not seen[0][0]
        assert seen[2][1] == SECRET + b"!"
        world.server.change(world.limits, Forwarding())
        await ask(SECRET, 3)
        assert seen[3][0] is not seen[0][0]
        await world.outcome(4)


@pytest.mark.parametrize("forwarding", [Forwarding(Mode.APPEND), Forwarding(via="drover")])
async def test_not_where_upstreams_are_told_who_asks(forwarding: Forwarding) -> None:
    """Then the head that is made of it is each connection's own."""
    async with World(forwarding=forwarding) as world:
        assert world.server.heads is None
        world.server.change(world.limits, Forwarding())
        assert world.server.heads is not None
