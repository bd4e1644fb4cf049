"""Bodies that would cost more than they are, in chunks or pieces; odd answers; handshakes without end."""

from __future__ import annotations

import asyncio
import ssl
import time
import tracemalloc

import pytest
from drover_proxy.wire import BodyPlan, Limits, UpstreamFault
from drover_proxy.wire.body import Intake
from drover_proxy.wire.limits import ANSWER_HEAD_BYTES, CHUNK_BYTES, FREE_CHUNKS

from tests.fuzz.fakes import on_turns
from tests.fuzz.target_answers import OPEN, relay
from tests.unit.wire.memory import ours
from tests.unit.wire.rig import FAST, PATIENCE, World, get

CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunks(count: int, size: int) -> bytes:
    """Write so many chunks of one size."""
    return (b"%x\r\n" % size + b"x" * size + b"\r\n") * count


@pytest.mark.parametrize("cut", [0, 4099])
def test_countless_chunks_are_refused(cut: int):
    """A body in more than a few thousand tiny chunks is a 400; the same content in larger ones is a body."""
    for count, size, good in (
        (FREE_CHUNKS, 1, True),
        (FREE_CHUNKS + 1, 1, False),
        (2 * FREE_CHUNKS, CHUNK_BYTES, True),
        (2 * FREE_CHUNKS, CHUNK_BYTES - 1, False),
    ):
        raw = CHUNKED + chunks(count, size) + b"0\r\n\r\n"
        pieces = [raw[i : i + cut] for i in range(0, len(raw), cut)] if cut else [raw]
        requests, transport = ours(pieces)
        assert [len(r[2]) for r in requests] == ([count * size] if good else [])
        assert transport.written.startswith(b"HTTP/1.1 200 " if good else b"HTTP/1.1 400 ")


def test_a_dripped_head_is_looked_at_once():
    """A head that comes byte by byte costs what its bytes cost, not the square of that."""

    def seconds(size: int) -> float:
        raw = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * size
        began = time.process_time()
        assert ours([raw[i : i + 1] for i in range(len(raw))])[1].written == b""
        return time.process_time() - began

    assert seconds(32_000) < 8 * min(seconds(8_000) for _ in range(3))


def test_a_dripped_head_of_an_answer_is_looked_at_once():
    """The same holds for an upstream's."""

    @on_turns
    def drip(raw: bytes) -> None:
        relay(raw, b"GET", None, OPEN, 255)

    def seconds(size: int) -> float:
        began = time.process_time()
        drip(b"HTTP/1.1 200 OK\r\nX: " + b"y" * size)
        return time.process_time() - began

    assert seconds(32_000) < 8 * min(seconds(8_000) for _ in range(3))


@pytest.mark.parametrize("chunked", [False, True])
def test_a_dripped_body_is_held_in_its_own_size(*, chunked: bool):
    """What comes in pieces of two bytes takes no more memory than what comes at once."""
    intake = Intake(0 if chunked else 400_000, chunked=chunked, awaits_continue=False)
    intake.follow(BodyPlan.BUFFER, Limits())
    if chunked:
        intake.take(b"61a80\r\n")
    tracemalloc.start()
    try:
        for number in range(200_000):
            intake.take(b"%02d" % (number % 100))
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
    finally:
        tracemalloc.stop()
    assert len(intake.release()) == 400_000


async def test_a_204_in_chunks_is_no_answer(world: World):
    """Transfer-Encoding has no place in a 204, and could make a client wait for chunks."""
    client = await world.client(get())
    upstream = await world.origin.request()
    upstream.send(b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert (await client.until(b"}")).startswith(b"HTTP/1.1 502 ")
    assert world.handler.story[-2][2] == UpstreamFault.BAD_ANSWER.value


async def test_chunks_of_http10_are_no_answer(world: World):
    """HTTP/1.0 knows no chunks: what comes so may have been put together by two that disagree."""
    client = await world.client(get())
    upstream = await world.origin.request()
    upstream.send(b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert (await client.until(b"}")).startswith(b"HTTP/1.1 502 ")


@pytest.mark.parametrize("size", [-1, 0, 1])
async def test_the_head_of_an_answer_has_its_limit(world: World, size: int):
    """To the byte, and also when it comes at once."""
    client = await world.client(get())
    upstream = await world.origin.request()
    start, end = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: ", b"\r\n\r\n"
    upstream.send(start + b"y" * (ANSWER_HEAD_BYTES + size - len(start + end)) + end)
    got = await client.until(b"\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 502 " if size > 0 else b"HTTP/1.1 200 ")


async def test_a_handshake_without_end(tmp_path):
    """Who connects for TLS and says nothing is cut when the time for a head is over."""
    async with World(Limits(**FAST, head_timeout=0.2)) as world:
        (bound,) = await world.server.listen(["127.0.0.1:0"], tls=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        reader, writer = await asyncio.open_connection("127.0.0.1", int(bound.split(":")[1]))
        try:
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
        finally:
            writer.close()
        world.problems.clear()  # the loop reports the handshake that wasn't
