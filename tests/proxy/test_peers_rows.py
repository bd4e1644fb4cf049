"""What was seen of two good peers, row by row: none of it happens here.

One test a row of the table "Behaviour" in the measurements of llama-swap and olla, in the table's order, its
long waits made short by limits, or by an Ollama that waits for the test's word.
"""

from __future__ import annotations

import asyncio
import json
import signal
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from drover_proxy.config import parse

from tests.proxy.stage import DONE, HEAD, KEY, MODEL, TOKEN, Stage, chunk, stage
from tests.support import eventually_async, until_still

pytestmark = pytest.mark.asyncio(loop_scope="module")
MIB = 1 << 20
END = b"0\r\n\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n" + KEY


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory, nvml: Path) -> AsyncIterator[Stage]:
    """A proxy with its defaults, for all tests that leave it as it was."""
    async with stage(tmp_path_factory.mktemp("rows"), nvml) as made:
        await made.served()
        yield made


async def latencies(house: Stage, *, begun: bool) -> list[float]:
    """Let clients leave, and measure how long it takes Ollama to see it."""
    seen = []
    for _ in range(20):
        client, asked = await (house.streaming() if begun else house.asked())
        left = time.monotonic()
        client.close()
        await asyncio.wait_for(asked.closed.wait(), 10)
        assert asked.closed_at is not None
        seen.append(asked.closed_at - left)
    return seen


async def gone_since(house: Stage, count: int) -> bool:
    """Whether so many clients are known to have left."""
    return await house.metrics("client_gone") == count


async def test_client_leaves_before_first_byte(house: Stage):
    """Ollama sees it at once: half of the times within 50 ms, however busy this machine is."""
    assert statistics.median(await latencies(house, begun=False)) < 0.05


async def test_client_leaves_mid_stream(house: Stage):
    """As before the first byte, though the stream is silent at that moment."""
    assert statistics.median(await latencies(house, begun=True)) < 0.05


async def test_five_clients_leave_and_the_next_is_served(house: Stage):
    """Clients that leave are held against nobody: no breaker opens, the next is served at once."""
    before = await house.metrics("client_gone")
    for _ in range(10):
        client, asked = await house.asked()
        client.reset()
        await asyncio.wait_for(asked.closed.wait(), 10)
    await house.served()
    await eventually_async(lambda: gone_since(house, before + 10))
    state = house.rig.admin("/readyz")
    assert state.status_code == 200


@pytest.mark.parametrize("way", ["RST", "FIN", "FIN within a chunk"])
async def test_upstream_dies_mid_stream(house: Stage, way: str):
    """The transfer breaks off, after the dialect's error where there is room for it; never a clean end."""
    broken = await house.metrics("upstream_broken")
    client, asked = await house.streaming()
    if way == "FIN within a chunk":
        asked.send(b"20\r\ndata: ")
        await client.until(b"20\r\ndata: ")
    if way == "RST":
        asked.talk.transport.abort()
    else:
        asked.talk.transport.close()
    got = await client.until_closed()
    assert not got.endswith(END)
    assert (b'data: {"error"' in got) is (way != "FIN within a chunk")
    assert await house.metrics("upstream_broken") == broken + 1


async def test_upstream_short_of_its_length(house: Stage):
    """The client's transfer is as short."""
    client, asked = await house.asked(stream=False)
    asked.send(b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n" + b"x" * 20)
    await client.until(b"x" * 20)
    asked.talk.transport.close()
    got = await client.until_closed()
    assert len(got.partition(b"\r\n\r\n")[2]) < 40


REFUSED = {
    "length_and_transfer_encoding": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two_different_lengths": b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    "unknown_transfer_encoding": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "bare_lf_chunks": b"Transfer-Encoding: chunked\r\n\r\n2\n{}\n0\n\n",
}


@pytest.mark.parametrize("name", REFUSED)
async def test_ambiguous_framing(house: Stage, name: str):
    """Refused with 400 and words about the framing, in the dialect's body; nothing gets to Ollama."""
    seen = len(house.ollama.seen)
    client = await house.connect()
    client.send(POST + REFUSED[name])
    head, _, body = (await client.until_closed()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"x-drover-error: bad_request" in head
    error = json.loads(body)["error"]
    assert error["type"] == "invalid_request_error"
    assert any(word in error["message"] for word in ("Content-Length", "Transfer-Encoding", "LF without CR"))
    assert len(house.ollama.seen) == seen


async def test_a_body_of_20_mb(house: Stage):
    """It is held once, and once more while it is read: not ten times over."""
    before = house.resident_bytes()
    client, asked = await house.asked(stream=False, pad=20_000_000)
    await eventually_async(lambda: asked.body_bytes >= 20_000_000)
    assert house.resident_bytes() - before < 70 * MIB
    asked.finish(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    await client.until(b"{}")
    client.close()


async def test_a_stream_of_195_mb_to_a_fast_client(house: Stage):
    """Nothing of it piles up."""
    client, asked = await house.streaming()
    before = house.resident_bytes()
    piece = chunk(b"data: " + b"x" * 65_000 + b"\n\n")
    sent = got = peak = 0
    while got < 195 * MIB:
        if sent < 195 * MIB and asked.unsent < MIB:
            asked.send(piece * 8)
            sent += len(piece) * 8
        await asyncio.sleep(0)
        got += len(client.take())
        peak = max(peak, house.resident_bytes())
    assert peak - before < 8 * MIB
    asked.finish(chunk(DONE) + END)
    await client.until(chunk(DONE) + END)
    client.close()


async def test_a_client_that_reads_nothing(house: Stage):
    """Ollama is stopped behind a few buffers, and the proxy doesn't grow."""
    client, asked = await house.streaming()
    client.transport.pause_reading()
    before = house.resident_bytes()
    piece = chunk(b"data: " + b"x" * 65_000 + b"\n\n")
    sent = 0

    def pour() -> int:
        nonlocal sent
        if asked.unsent < MIB:
            asked.send(piece)
            sent += len(piece)
        return sent

    await until_still(pour, looks=50, every=0.002)
    assert sent < 256 * MIB  # in the kernel's buffers, however large those are here; it would go on for ever
    assert house.resident_bytes() - before < 4 * MIB
    client.transport.abort()
    await asyncio.wait_for(asked.closed.wait(), 10)


async def test_expect_100_continue(house: Stage):
    """100 at once, since the proxy itself reads the body; the expectation isn't passed on."""
    body = house.chat("expect", stream=False).partition(b"\r\n\r\n")[2]
    client = await house.connect()
    client.send(POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
    assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(body)
    asked = await house.ollama.request("expect")
    assert b"expect" not in asked.head.lower()
    asked.finish(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    await client.until(b"{}")
    client.close()


async def test_sigterm_with_streams_that_end(tmp_path: Path, nvml: Path):
    """All of them finish, and then the process ends with 0."""
    async with stage(tmp_path, nvml, drain_seconds=60) as house:
        streams = [await house.streaming() for _ in range(8)]
        house.rig.signal(signal.SIGTERM)
        await eventually_async(lambda: house.rig.lines("draining"))
        for _, asked in streams:
            asked.finish(chunk(TOKEN) + chunk(DONE) + END)
        for client, _ in streams:
            assert (await client.until_closed()).endswith(chunk(DONE) + END)
        assert house.rig.proxy is not None
        assert await asyncio.to_thread(house.rig.proxy.wait, 20) == 0


async def test_sigterm_with_streams_that_do_not_end(tmp_path: Path, nvml: Path):
    """They have as long as the configuration says, which has no ceiling; cut then, none has a clean end."""
    assert parse("instances: [{name: a, url: 'http://127.0.0.1:1', gpus: []}]\ndrain_seconds: 86400\n")
    async with stage(tmp_path, nvml, drain_seconds=1) as house:
        streams = [await house.streaming() for _ in range(8)]
        house.rig.signal(signal.SIGTERM)
        for client, asked in streams:
            assert not (await client.until_closed()).endswith(END)
            await asyncio.wait_for(asked.closed.wait(), 10)


async def test_reload_with_streams_in_flight(house: Stage):
    """SIGHUP cuts none of them, and touches no model."""
    streams = [await house.streaming() for _ in range(5)]
    loads = dict(house.ollama.loads)
    reloads = len(house.rig.lines("reloaded"))
    house.rig.signal(signal.SIGHUP)
    await eventually_async(lambda: len(house.rig.lines("reloaded")) > reloads)
    for client, asked in streams:
        asked.send(chunk(TOKEN))
        asked.finish(chunk(DONE) + END)
        assert (await client.until(chunk(DONE) + END)).count(TOKEN) == 2
        client.close()
    await house.served()
    assert dict(house.ollama.loads) == loads


async def test_200_requests_for_a_cold_model(tmp_path: Path, nvml: Path):
    """One load, and everybody is served: none is refused for being one of many."""
    async with stage(tmp_path, nvml) as house:
        house.ollama.gates[MODEL] = gate = asyncio.Event()
        house.ollama.loading[MODEL] = asyncio.Event()
        clients = [await house.connect() for _ in range(200)]
        for number, client in enumerate(clients):
            client.send(house.chat(f"cold-{number}", stream=False))
        await asyncio.wait_for(house.ollama.loading[MODEL].wait(), 20)
        await eventually_async(
            lambda: asyncio.to_thread(lambda: house.rig.core()["waiting"] == 200), timeout=20
        )
        gate.set()

        async def serve(number: int) -> None:
            asked = await house.ollama.request(f"cold-{number}")
            asked.finish(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

        await asyncio.gather(*(serve(number) for number in range(200)))
        for client in clients:
            assert (await client.until(b"{}")).startswith(b"HTTP/1.1 200 ")
        assert house.ollama.loads == {MODEL: 1}
        for client in clients:
            client.close()


async def test_200_requests_at_once_upstream(tmp_path: Path, nvml: Path):
    """As many as the instance has slots are with it at the same time: there is no cap that nobody set."""
    async with stage(tmp_path, nvml, slots=200) as house:
        both = await asyncio.gather(*(house.asked(stream=False) for _ in range(200)))
        assert all(not asked.closed.is_set() for _, asked in both)
        for client, asked in both:
            asked.finish(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            assert (await client.until(b"{}")).startswith(b"HTTP/1.1 200 ")
            client.close()


async def test_200_sequential_requests_with_the_defaults(house: Stage):
    """Nobody is refused for being quick: there is no rate that nobody set."""
    client = await house.connect()
    for number in range(200):
        client.send(house.chat(f"row-{number}", stream=False))
        (await house.ollama.request(f"row-{number}")).finish(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
        )
        assert (await client.until(b"{}")).startswith(b"HTTP/1.1 200 ")
        client.take()
    client.close()


IMPATIENT = {"head_seconds": 0.2, "body_seconds": 0.2, "idle_seconds": 0.2, "connect_seconds": 0.2}


async def until_limits_have_struck(house: Stage) -> None:
    """Wait until connections that do nothing were closed, more than once: time has passed."""
    for _ in range(2):
        await (await house.connect()).until_closed()


@pytest.mark.timeout(120)
async def test_first_byte_and_silence_have_no_hidden_limit(tmp_path: Path, nvml: Path):
    """Neither a late first byte nor silence in mid-stream is bounded by any other limit."""
    defaults = parse("instances: [{name: a, url: 'http://127.0.0.1:1', gpus: []}]\n").limits
    assert defaults.first_byte_seconds is None
    assert defaults.stall_seconds == 300
    async with stage(tmp_path, nvml, limits=IMPATIENT) as house:
        client, asked = await house.asked()
        await until_limits_have_struck(house)
        asked.send(HEAD + chunk(TOKEN))
        await client.until(TOKEN)
        await until_limits_have_struck(house)
        asked.finish(chunk(DONE) + END)
        assert (await client.until(chunk(DONE) + END)).startswith(b"HTTP/1.1 200 ")
        client.close()


async def test_read_timeout_is_enforced_and_no_clean_end(tmp_path: Path, nvml: Path):
    """Silence of more than limits.stall_seconds breaks the stream off, with an error and no last chunk."""
    async with stage(tmp_path, nvml, limits={"stall_seconds": 0.3}) as house:
        client, asked = await house.streaming()
        got = await client.until_closed()
        assert b'data: {"error"' in got
        assert not got.endswith(END)
        await asyncio.wait_for(asked.closed.wait(), 10)
        assert await house.metrics("upstream_broken") == 1


async def test_response_timeout_is_enforced(tmp_path: Path, nvml: Path):
    """limits.first_byte_seconds gives a 504 that names it, and Ollama's connection is closed."""
    async with stage(tmp_path, nvml, limits={"first_byte_seconds": 0.3}) as house:
        client, asked = await house.asked()
        head, _, body = (await client.until(b"}}")).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 504 ")
        assert b"x-drover-error: upstream_first_byte_timeout" in head
        assert json.loads(body)["error"]["code"] == "upstream_first_byte_timeout"
        await asyncio.wait_for(asked.closed.wait(), 10)
        client.close()
