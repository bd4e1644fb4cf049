"""Upstreams that fail: before the first byte, in the middle, and in ways that look like success."""

from __future__ import annotations

import pytest
from drover_proxy.wire import BodyPlan, Kind, Limits, Upstream, UpstreamFault

from tests.support import eventually_async, free_port
from tests.unit.wire.rig import END, FAST, STREAM_HEAD, World, answer, chunk, get, post


class Dialect:
    """A watch that wants `[DONE]`, and finds `oops` to be an error."""

    def __init__(self) -> None:
        self.seen = b""

    def feed(self, data: bytes) -> None:
        """Keep it all."""
        self.seen += data

    def whole(self, status: int) -> bool:
        """Look for the terminator."""
        return status != 200 or self.seen.endswith(b"[DONE]")

    def error(self) -> str | None:
        """Look for the error."""
        return "oops" if b"oops" in self.seen else None

    def error_event(self) -> bytes:
        """Say it broke."""
        return b"data: broken"


class Silent(Dialect):
    """The same without words for a break."""

    def error_event(self) -> bytes:
        """Say nothing."""
        return b""


async def test_dial_error(world: World):
    """Nobody listens: the handler is told that it is safe to try again, and the client gets a 502."""
    world.handler.upstream = Upstream("none", "127.0.0.1", free_port())
    client = await world.client(post())
    got = await client.until(b"}")
    assert got.startswith(b"HTTP/1.1 502 ")
    assert b"x-drover-error: upstream_dial\r\n" in got
    assert ("failed", 1, "dial", True) in world.handler.story
    assert (await world.outcome()).kind is Kind.UPSTREAM_FAILED
    client.take()
    client.send(get())
    await client.until(b"502")


async def test_handler_tries_another_upstream(world: World):
    """After a dial error the handler may forward again, and the client never knows."""
    world.handler.upstream = Upstream("none", "127.0.0.1", free_port())

    def again(ex, error):
        ex.forward(world.upstream)
        return True

    world.handler.on_failed = again
    client = await world.client(post(b"body"))
    upstream = await world.origin.request(end=b"body")
    upstream.send(answer())
    assert await client.until(b"ok") == answer()
    assert (await world.outcome()).kind is Kind.COMPLETE


async def test_stale_connection_is_retried(world: World):
    """A kept connection that is closed at the next request, before any byte, is replaced once, silently."""
    client, first = await world.again()
    first.close()
    second = await world.origin.request(1, end=b"again")
    second.send(answer(b"two"))
    await client.until(b"two")
    assert not [step for step in world.handler.story if step[0] == "failed"]


async def test_fresh_connection_is_not_retried(world: World):
    """The upstream may have begun to work: whether to try again is the handler's decision."""
    client = await world.client(post())
    upstream = await world.origin.request(end=b"{}")
    upstream.close()
    await client.until(b"x-drover-error: upstream_closed")
    assert ("failed", 1, "closed", False) in world.handler.story
    assert len(world.origin.peers) == 1


async def test_stale_connection_after_a_partial_answer_is_not_retried(world: World):
    """Any byte of an answer, even of its head, forbids another try."""
    client, upstream = await world.again()
    upstream.send(b"HTTP")
    await eventually_async(lambda: any(c._buffer for c in world.upstream.pool.connections))
    upstream.close()
    await client.until(b"502")
    assert len(world.origin.peers) == 1


async def test_streamed_body_is_not_sent_twice(world: World):
    """A body that has begun to flow can't be had again."""
    world.handler.plan = BodyPlan.STREAM
    client, upstream = await world.again()
    upstream.close()
    await client.until(b"502")
    assert len(world.origin.peers) == 1
    assert ("failed", 2, "closed", False) in world.handler.story


async def test_streamed_body_can_not_be_forwarded_again(world: World):
    """A handler that tries all the same does no harm: no upstream gets the rest of a body as the whole."""
    world.handler.plan = BodyPlan.STREAM

    def again(ex, error):
        assert not error.retryable
        ex.forward(world.upstream)
        return True

    world.handler.on_failed = again
    client = await world.client(post(b"half and the other half")[:-10])
    upstream = await world.origin.request(end=b"half")
    upstream.close()
    assert b"x-drover-error: upstream_body_lost" in await client.until(b"}")
    assert len(world.origin.peers) == 1
    client.send(b"other half" + get(b"/next"))  # the rest is skipped, and the connection serves on
    await world.origin.request(1, end=b"/next")
    assert world.handler.outcomes[0].kind is Kind.UPSTREAM_FAILED


async def test_idle_connections_that_close_are_forgotten(world: World):
    """An upstream that closes its idle connections costs nobody anything."""
    client = await world.client(post())
    upstream = await world.origin.request(end=b"{}")
    upstream.send(answer(b"one"))
    await client.until(b"one")
    upstream.close()
    await eventually_async(lambda: not world.upstream.pool.connections)
    client.send(post())
    second = await world.origin.request(1, end=b"{}")
    second.send(answer(b"two"))
    await client.until(b"two")


@pytest.mark.parametrize("way", ["close", "reset"])
@pytest.mark.parametrize(
    "begun",
    [
        STREAM_HEAD,
        STREAM_HEAD + chunk(b"token"),
        STREAM_HEAD + b"5\r\ntok",
        answer(b"x" * 100)[:-50],
    ],
)
async def test_upstream_dies_in_its_answer(world: World, begun: bytes, way: str):
    """The client's transfer breaks off where the upstream's did: no last chunk, no full length."""
    client = await world.client(post())
    upstream = await world.origin.request(end=b"{}")
    upstream.send(begun)
    await client.until(begun)
    getattr(upstream, way)()
    assert await client.until_closed() == begun
    assert (await world.outcome()).kind is Kind.UPSTREAM_BROKEN


async def test_close_delimited_answer_that_is_reset(world: World):
    """Where only the end of the connection marks the end, a broken answer must end in a reset."""
    client = await world.client(get())
    upstream = await world.origin.request()
    upstream.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
    await client.until(b"half")
    upstream.reset()
    await client.until_closed()
    assert isinstance(client.error, ConnectionResetError)
    assert (await world.outcome()).kind is Kind.UPSTREAM_BROKEN


@pytest.mark.parametrize("end_with_body", [False, True])
@pytest.mark.parametrize("watch", [Dialect, Silent])
async def test_clean_end_of_a_stream_that_is_not_whole(world: World, watch: type, end_with_body: bool):
    """An upstream that ends its framing without its dialect's end doesn't get its last chunk through."""
    world.handler.watch = watch
    client = await world.client(post())
    upstream = await world.origin.request(end=b"{}")
    upstream.send(STREAM_HEAD + chunk(b"data: 1"))
    await client.until(b"data: 1")
    upstream.send(chunk(b"data: 2") + END if end_with_body else END)
    got = await client.until_closed()
    tail = chunk(b"data: 2") if end_with_body else b""
    event = chunk(b"data: broken") if watch is Dialect else b""
    assert got == STREAM_HEAD + chunk(b"data: 1") + tail + event
    assert (await world.outcome()).kind is Kind.UPSTREAM_BROKEN


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
async def test_clean_end_that_comes_in_pieces(world: World, cut: int):
    """Also a last chunk that was half relayed isn't finished."""
    world.handler.watch = Dialect
    client = await world.client(post())
    upstream = await world.origin.request(end=b"{}")
    upstream.send(STREAM_HEAD + chunk(b"data: 1") + END[:cut])
    await client.until(END[:cut])
    await client.until(lambda got: got.endswith(END[:cut]))
    upstream.send(END[cut:])
    got = await client.until_closed()
    assert not got.endswith(END)
    assert (await world.outcome()).kind is Kind.UPSTREAM_BROKEN


async def test_upstream_dies_between_chunks_with_words(world: World):
    """Between chunks there is room for the dialect's error event, as a chunk of its own."""
    world.handler.watch = Dialect
    client = await world.client(post())
    upstream = await world.origin.request(end=b"{}")
    upstream.send(STREAM_HEAD + chunk(b"data: 1\r\n"))
    await client.until(b"data: 1")
    upstream.reset()
    got = await client.until_closed()
    assert got == STREAM_HEAD + chunk(b"data: 1\r\n") + chunk(b"data: broken")


@pytest.mark.parametrize("begun", [b"9\r\ndata", b"9\r\n", b"9", b"9\r\ndata: 1\r\n", b"9\r\ndata: 1\r\n\r"])
async def test_upstream_dies_within_a_chunk_with_words(world: World, begun: bytes):
    """Within a chunk there is no room for the event: the break alone has to do."""
    world.handler.watch = Dialect
    client = await world.client(post())
    upstream = await world.origin.request(end=b"{}")
    upstream.send(STREAM_HEAD + begun)
    await client.until(STREAM_HEAD + begun)
    upstream.reset()
    assert await client.until_closed() == STREAM_HEAD + begun


async def test_whole_stream_with_a_watch(world: World):
    """A stream that ends as its dialect ends is relayed to its last byte."""
    world.handler.watch = Dialect
    client = await world.client(post())
    upstream = await world.origin.request(end=b"{}")
    raw = STREAM_HEAD + chunk(b"data: 1") + chunk(b"[DO") + chunk(b"NE]") + END
    upstream.send(raw)
    assert await client.until(END) == raw
    assert (await world.outcome()).kind is Kind.COMPLETE


async def test_in_band_error(world: World):
    """An error that the body itself reports goes through as it is, and is told apart from success."""
    world.handler.watch = Dialect
    client = await world.client(post())
    upstream = await world.origin.request(end=b"{}")
    raw = STREAM_HEAD + chunk(b"oops") + END
    upstream.send(raw)
    assert await client.until(END) == raw
    outcome = await world.outcome()
    assert (outcome.kind, outcome.detail) == (Kind.IN_BAND_ERROR, "oops")


async def test_short_json_that_is_not_whole(world: World):
    """An answer of told length whose watch objects is cut short of its length."""
    world.handler.watch = Dialect
    client = await world.client(post())
    upstream = await world.origin.request(end=b"{}")
    upstream.send(answer(b"nothing"))
    assert await client.until_closed() == answer(b"nothing")[:-1]


@pytest.mark.parametrize(
    "bad",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_answers_that_are_none(world: World, bad: bytes):
    """An ambiguous or malformed answer is a 502, and its connection is not used again."""
    client = await world.client(post())
    upstream = await world.origin.request(end=b"{}")
    upstream.send(bad)
    assert b"x-drover-error: upstream_bad_answer" in await client.until(b"}")
    await upstream.until_closed()


async def test_surplus_behind_an_answer(world: World):
    """What an upstream sends beyond its answer's length reaches nobody, and ends the connection's use."""
    client = await world.client(post())
    upstream = await world.origin.request(end=b"{}")
    upstream.send(answer(b"one") + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
    await client.until(b"one")
    client.send(post())
    second = await world.origin.request(1, end=b"{}")
    second.send(answer(b"two"))
    await client.until(b"two")
    assert b"poison" not in client.received


async def test_unasked_bytes_on_an_idle_connection(world: World):
    """An idle upstream connection that speaks is closed."""
    client = await world.client(post())
    upstream = await world.origin.request(end=b"{}")
    upstream.send(answer(b"one"))
    await client.until(b"one")
    upstream.send(answer(b"poison"))
    await upstream.until_closed()
    client.send(post())
    second = await world.origin.request(1, end=b"{}")
    second.send(answer(b"two"))
    await client.until(b"two")


async def test_early_answer_to_an_upload(world: World):
    """An upstream that answers before the body has ended is relayed, and neither connection is used again."""
    world.handler.plan = BodyPlan.STREAM
    client = await world.client(post(b"x" * 1_000_000)[:1000])
    upstream = await world.origin.request(end=b"xxx")
    upstream.send(answer(b"too much", status=b"413 Content Too Large"))
    got = await client.until_closed()
    assert b"connection: close" in got
    assert got.endswith(b"too much")
    await upstream.until_closed()


async def test_abort_of_our_own_stream(world: World):
    """A stream that the proxy makes and breaks off has no last chunk."""

    def make(ex):
        ex.start_stream(200)
        ex.write(b"half")
        ex.abort()

    world.handler.on_ready = make
    client = await world.client(post())
    got = await client.until_closed()
    assert got.endswith(chunk(b"half"))


@pytest.mark.parametrize("where", ["head", "ready", "answered", "upstream_failed"])
async def test_handler_that_raises(where: str):
    """A bug of the handler is reported, and the client gets a 500."""
    async with World() as world:

        def raises(*_args):
            raise ZeroDivisionError

        setattr(world.handler, {"answered": "answered"}.get(where, where), raises)
        if where in {"head", "ready"}:
            setattr(world.handler, f"on_{where}", raises)
        if where == "upstream_failed":
            world.handler.upstream = Upstream("none", "127.0.0.1", free_port())
        real_head = type(world.handler).head
        if where == "head":

            def head(ex):
                real_head(world.handler, ex)

            world.handler.head = head
        client = await world.client(post())
        if where == "answered":
            (await world.origin.request(end=b"{}")).send(answer())
        got = await client.until(b"}")
        assert got.startswith(b"HTTP/1.1 500 ")
        assert len(world.problems) == 1
        world.problems.clear()


@pytest.mark.parametrize("plan", [BodyPlan.BUFFER, BodyPlan.STREAM])
async def test_connect_timeout(plan: BodyPlan):
    """An upstream that doesn't take the connection in time is a 504, also of a body that still comes."""
    from tests.unit.wire.test_leaving import while_dialing

    async with World(Limits(connect_timeout=0.05, **FAST)) as world:
        world.handler.plan = plan
        client, _ = await while_dialing(world, post() if plan is BodyPlan.BUFFER else post(b"halfhalf")[:-4])
        got = await client.until(b"}")
        assert got.startswith(b"HTTP/1.1 504 ")
        assert ("failed", 1, UpstreamFault.CONNECT_TIMEOUT.value, True) in world.handler.story
        for sock in (world.full, *world.fillers):
            sock.close()
