"""What goes through, and how: framing both ways, heads, keep-alive, pipelining."""

from __future__ import annotations

import asyncio

import pytest
from drover_proxy.wire import BodyPlan, Kind, Upstream

from tests.unit.wire.rig import DATE, END, STREAM_HEAD, World, answer, chunk, get, post


async def test_runs_on_uvloop(world: World):
    """The rest of these tests means what it says only on the loop of production."""
    assert "uvloop" in type(asyncio.get_running_loop()).__module__


async def test_a_request_and_its_answer(world: World):
    """Both bodies go through; Host is the upstream's; credentials, Origin and hop-by-hop fields stay."""
    world.handler.forward = {"extra": b"X-Drover-Instance: gpu0\r\n"}
    extra = (
        b"Authorization: Bearer k\r\nX-Api-Key: k\r\nOrigin: http://evil\r\n"
        b"Connection: keep-alive, X-Mine\r\n"
        b"Keep-Alive: 3\r\nX-Mine: 1\r\nTE: trailers\r\nProxy-Authorization: x\r\nX-Other: Kept As It Is\r\n"
    )
    client = await world.client(post(b'{"model":"m"}', extra=extra))
    upstream = await world.origin.request(end=b'{"model":"m"}')
    assert upstream.received == (
        b"POST /api/chat HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nx-other: Kept As It Is\r\n"
        b"content-length: 13\r\n\r\n"
        b'{"model":"m"}' % world.origin.port
    )
    upstream.send(answer(b"hello", extra=b"X-Up: 1\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\n"))
    got = await client.until(b"hello")
    assert got == answer(b"hello", extra=b"X-Up: 1\r\nX-Drover-Instance: gpu0\r\n")
    outcome = await world.outcome()
    assert outcome.kind is Kind.COMPLETE
    assert (outcome.status, outcome.bytes_in, outcome.bytes_out) == (200, 13, len(got))
    assert world.handler.story == [
        ("head", 1),
        ("ready", 1),
        ("answered", 1, 200),
        ("finished", 1, "complete"),
    ]


async def test_connections_are_kept_on_both_sides(world: World):
    """Ten requests, one connection to each side, also when only the length of the body changes."""
    client = await world.client()
    for n in range(10):
        body = b"x" * n
        client.send(post(body, path=b"/%d" % (n // 3), extra=b"X-A: 1\r\n"))
        upstream = await world.origin.request(end=b"\r\n\r\n" + body)
        head = upstream.take()
        assert head.startswith(b"POST /%d HTTP/1.1\r\n" % (n // 3))
        assert b"content-length: %d\r\n" % n in head
        assert world.handler.exchanges[-1].header(b"content-length") == b"%d" % n
        upstream.send(answer(b"%d" % n))
        await client.until(b"\r\n\r\n%d" % n)
        client.take()
    assert len(world.origin.peers) == 1
    assert (await world.outcome(10)).upstream_reused


async def test_chunks_pass_as_they_came(world: World):
    """An answer in chunks is relayed at once, chunk by chunk, with its trailers, byte for byte."""
    client = await world.client(post())
    upstream = await world.origin.request()
    sent = STREAM_HEAD
    upstream.send(STREAM_HEAD)
    await client.until(STREAM_HEAD)
    for piece in (chunk(b"one"), b"3;ext=1\r\ntwo\r\n", b"5\r\nth", b"ree\r\n0\r\nX-Trailer: t\r\n", b"\r\n"):
        upstream.send(piece)
        sent += piece
        assert await client.until(lambda got, sent=sent: len(got) >= len(sent)) == sent
    assert (await world.outcome()).kind is Kind.COMPLETE
    client.send(post())
    await upstream.until(lambda got: got.count(b"POST") == 2)


async def test_close_delimited_answer(world: World):
    """An answer that ends with its connection ends ours too, and says so."""
    client = await world.client(get())
    upstream = await world.origin.request()
    upstream.send(b"HTTP/1.1 200 OK\r\n%b\r\nall" % DATE)
    await client.until(b"all")
    upstream.send(b" of it")
    await client.until(b"of it")
    upstream.close()
    assert await client.until_closed() == b"HTTP/1.1 200 OK\r\n%bconnection: close\r\n\r\nall of it" % DATE
    assert client.error is None
    assert (await world.outcome()).kind is Kind.COMPLETE


@pytest.mark.parametrize(
    ("request_", "reply"),
    [
        (b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"),
        (b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ],
)
async def test_answers_without_a_body(world: World, request_: bytes, reply: bytes):
    """HEAD, 204, 304 and empty answers end with their head, and both connections serve the next request."""
    client = await world.client(request_)
    upstream = await world.origin.request()
    reply = reply[:-2] + DATE + b"\r\n"
    upstream.send(reply)
    assert await client.until(b"\r\n\r\n") == reply
    await world.outcome()
    client.take()
    client.send(get(b"/next"))
    await upstream.until(b"/next")
    upstream.send(answer(b"next"))
    await client.until(b"next")
    assert len(world.origin.peers) == 1


async def test_interim_answers(world: World):
    """103 goes through, 100 doesn't, and neither is the answer."""
    client = await world.client(get())
    upstream = await world.origin.request()
    upstream.send(b"HTTP/1.1 100 Continue\r\n\r\n" * 9 + b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n")
    await client.until(b"103")
    upstream.send(answer(b"end"))
    assert await client.until(b"end") == b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + answer(b"end")
    assert world.handler.story[2] == ("answered", 1, 200)


async def test_pipelined_requests_are_answered_in_order(world: World):
    """Three requests in one write: each is forwarded when the one before is answered."""
    client = await world.client(post(b"1", path=b"/1") + get(b"/2") + post(b"3", path=b"/3"))
    for n in (b"1", b"2", b"3"):
        upstream = await world.origin.request(end=b"/" + n)
        assert upstream.take().count(b"HTTP/1.1") == 1
        upstream.send(answer(b"answer " + n))
        await client.until(b"answer " + n)
    assert client.received.index(b"answer 1") < client.received.index(b"answer 2")
    assert len(world.origin.peers) == 1


async def test_a_request_byte_by_byte(world: World):
    """Where the network cuts makes no difference."""
    client = await world.client()
    raw = post(b"body", extra=b"Transfer-Hint: x\r\n")
    for at in range(len(raw)):
        client.send(raw[at : at + 1])
        await asyncio.sleep(0)
    upstream = await world.origin.request(end=b"body")
    reply = STREAM_HEAD + chunk(b"tok") + END
    for at in range(len(reply)):
        upstream.send(reply[at : at + 1])
        await asyncio.sleep(0)
    assert await client.until(END) == reply


async def test_chunked_request_is_held_whole(world: World):
    """A chunked body that is buffered is decoded, and goes on with its length."""
    raw = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"abc") + chunk(b"de")
    client = await world.client(raw + b"0\r\nX-T: 1\r\n\r\n" + get(b"/next"))
    upstream = await world.origin.request(end=b"abcde")
    assert b"content-length: 5\r\n\r\nabcde" in upstream.take()
    upstream.send(answer(b"1"))
    await upstream.until(b"/next")
    upstream.send(answer(b"2"))
    await client.until(answer(b"2"))


@pytest.mark.parametrize("chunked", [False, True])
async def test_streamed_request(world: World, chunked: bool):
    """A streamed body flows through as it comes, framed as it came, before its end is here."""
    world.handler.plan = BodyPlan.STREAM
    if chunked:
        pieces = [chunk(b"a" * 1000), b"5\r\nhel", b"lo\r\n0\r\nX-T: 1\r\n\r\n"]
        head = b"Transfer-Encoding: chunked\r\n\r\n"
    else:
        pieces = [b"a" * 1000, b"hel", b"lo"]
        head = b"Content-Length: 1005\r\n\r\n"
    client = await world.client(b"POST /blob HTTP/1.1\r\nHost: a\r\n" + head)
    upstream = await world.origin.request()
    seen = upstream.received
    assert head.lower() in seen
    for piece in pieces:
        client.send(piece)
        seen += piece
        assert await upstream.until(lambda got, seen=seen: len(got) >= len(seen)) == seen
    upstream.send(answer(b"stored"))
    await client.until(b"stored")
    client.send(get(b"/next"))
    await upstream.until(b"/next")
    assert (await world.outcome()).bytes_in == len(b"".join(pieces))


async def test_streamed_request_waits_for_its_turn(world: World):
    """What comes of a streamed body before `forward` is held within bounds, and sent in order."""
    world.handler.plan = BodyPlan.STREAM
    world.handler.on_ready = lambda ex: None
    body = bytes(range(256)) * 4096
    client = await world.client(post(body))
    await world.client()
    await client.until(
        lambda _: world.handler.exchanges and world.handler.exchanges[0].connection.read_paused
    )
    held = world.handler.exchanges[0].bytes_in
    assert held < 400_000
    world.handler.send_on(world.handler.exchanges[0])
    upstream = await world.origin.request()
    await upstream.until(lambda got: got.endswith(body))
    upstream.send(answer(b"stored"))
    await client.until(b"stored")


async def test_expect_continue(world: World):
    """A client that waits is told to go on, by us and once; the expectation isn't passed on."""
    client = await world.client(
        b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
    )
    assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.take()
    client.send(b"body")
    upstream = await world.origin.request(end=b"body")
    assert b"xpect" not in upstream.received
    upstream.send(answer())
    assert await client.until(b"ok") == answer()


async def test_expect_continue_of_a_streamed_body(world: World):
    """A streamed body is asked for when its upstream is there, not before."""
    world.handler.plan = BodyPlan.STREAM
    world.handler.on_ready = lambda ex: None
    client = await world.client(
        b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
    )
    await client.until(lambda _: bool(world.handler.exchanges))
    assert client.received == b""
    world.handler.send_on(world.handler.exchanges[0])
    await client.until(b"100 Continue")
    client.send(b"body")
    upstream = await world.origin.request(end=b"body")
    upstream.send(answer())
    await client.until(b"ok")


async def test_expect_continue_refused(world: World):
    """A refusal at once asks for no body, and the connection closes: nobody knows whether the body comes."""
    world.handler.on_head = lambda ex: ex.respond(401, [], b"no")
    client = await world.client(
        b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
    )
    got = await client.until_closed()
    assert got.startswith(b"HTTP/1.1 401")
    assert b"connection: close" in got


async def test_http10_client(world: World):
    """HTTP/1.0 goes on as HTTP/1.0, so that its answer comes without chunks, and ends with the connection."""
    client = await world.client(b"GET /old HTTP/1.0\r\n\r\n")
    upstream = await world.origin.request()
    assert upstream.received.startswith(b"GET /old HTTP/1.0\r\nHost: ")
    upstream.send(b"HTTP/1.0 200 OK\r\nConnection: close\r\n%b\r\nfine" % DATE)
    upstream.close()
    # The version of an answer is that of who relays it (RFC 9110, 2.5).
    assert await client.until_closed() == b"HTTP/1.1 200 OK\r\n%bconnection: close\r\n\r\nfine" % DATE


async def test_absolute_target(world: World):
    """An absolute target is brought into origin-form, and its authority counts."""
    await world.client(b"GET http://other:1/a?b=c HTTP/1.1\r\nHost: drover\r\n\r\n")
    upstream = await world.origin.request()
    assert upstream.received.startswith(b"GET /a?b=c HTTP/1.1\r\n")
    ex = world.handler.exchanges[0]
    assert (ex.path, ex.query, ex.header(b"host")) == (b"/a", b"b=c", b"other:1")


async def test_h2c_offer_is_declined_and_served(world: World):
    """Java's client offers HTTP/2 with its first request; it is served as HTTP/1.1, also with a body."""
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n"
    client = await world.client(post(b"abc", extra=offer) + get(b"/next"))
    upstream = await world.origin.request(end=b"abc")
    assert b"pgrade" not in upstream.take()
    upstream.send(answer(b"1"))
    await upstream.until(b"/next")
    upstream.send(answer(b"2"))
    await client.until(answer(b"2"))


async def test_answers_made_here(world: World):
    """`respond` and a stream of the proxy's own, with keep-alive between them."""

    def own(ex):
        if ex.path == b"/stream":
            ex.start_stream(200, [(b"content-type", b"text/event-stream")])
            ex.write(b"data: 1\n\n")
            ex.end()
        else:
            ex.respond(404, [(b"x-drover-error", b"nope")], b"{}")

    world.handler.on_ready = own
    client = await world.client(
        post() + get(b"/stream") + b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n" + get(b"/end")
    )
    got = await client.until(lambda got: got.count(b"404") == 3)
    assert b"9\r\ndata: 1\n\n\r\n0\r\n\r\n" in got
    assert got.count(b"content-length: 2\r\n") == 3
    assert got.count(b"\r\n\r\n{}") == 2
    assert [o.kind for o in world.handler.outcomes] == [Kind.COMPLETE] * 4


async def test_refused_by_its_head(world: World):
    """A short body of a request that was refused by its head is skipped; a long one costs the connection."""
    world.handler.on_head = lambda ex: ex.respond(401, [], b"no")
    client = await world.client(post(b"x" * 1000)[:-500])
    await client.until(b"401")
    client.send(b"x" * 500 + get())
    await client.until(lambda got: got.count(b"401") == 2)
    client.send(post(b"x" * 1_000_000)[:100])
    got = await client.until_closed()
    assert got.count(b"401") == 3
    assert got.count(b"connection: close") == 1


async def test_handler_overrides(world: World):
    """The handler may replace target, body and fields; what must not pass still doesn't."""
    world.handler.forward = {
        "target": b"/v1/other",
        "body": b"other body",
        "headers": [(b"x-new", b"1"), (b"authorization", b"secret"), (b"content-length", b"999")],
    }
    await world.client(post(extra=b"X-Old: 1\r\n"))
    upstream = await world.origin.request(end=b"other body")
    assert upstream.received == (
        b"POST /v1/other HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nx-new: 1\r\ncontent-length: 10\r\n\r\nother body"
        % world.origin.port
    )


@pytest.mark.parametrize("bad", [b"/a b", b"/a\r\nX: y", b"", b"/\x00"])
async def test_handler_cannot_inject(world: World, bad: bytes):
    """Neither a target nor a field of the handler's can break out of its place."""
    found: list[bool] = []

    def try_it(ex):
        for call in (
            lambda: ex.forward(world.upstream, target=bad),
            lambda: ex.respond(200, [(b"x", b"a\nb")]),
        ):
            with pytest.raises(ValueError, match=r"must be free|line break"):
                call()
            found.append(True)
        ex.respond(200)

    world.handler.on_ready = try_it
    client = await world.client(get())
    await client.until(b"200 OK")
    assert found == [True] * 2


async def test_unix_sockets_both_ways(world: World, tmp_path):
    """Unix sockets serve as listener and as upstream."""
    path = str(tmp_path / "up")
    loop = asyncio.get_running_loop()
    origin = await loop.create_unix_server(_Echo, path)
    world.handler.upstream = Upstream("unix", path=path)
    (bound,) = await world.server.listen([f"unix:{tmp_path / 'down'}"])
    assert bound == f"unix:{tmp_path / 'down'}"
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "down"))
    writer.write(get())
    assert await reader.readuntil(b"ok") == answer()
    assert world.handler.exchanges[0].client == "unix"
    writer.close()
    await writer.wait_closed()
    origin.close()
    world.handler.upstream.close()


class _Echo(asyncio.Protocol):
    """Answers anything with ok."""

    def connection_made(self, transport):
        """Begin."""
        self.transport = transport

    def data_received(self, data):
        """Answer."""
        self.transport.write(answer())
