"""Nobody's slowness fills the proxy: slow readers, slow takers of uploads, gigabytes that pass."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.proxy import probed
from tests.proxy.desk import Desk, authorization, opened, post
from tests.proxy.matrix import DIALECTS, Case, in_the_answer, reading_slowly
from tests.support import eventually_async, until_still
from tests.unit.wire.rig import chunk

HELD_BYTES = 256 << 10
SLOW = 200 if os.environ.get("MATRIX_REPEAT") else 48
THROUGH_BYTES = (4 << 30) if os.environ.get("MATRIX_REPEAT") else (300 << 20)
FLAT_BYTES = 12 << 20
"""What the proxy's memory may grow by while gigabytes pass: allocators keep some."""
PIECE = 1 << 20


@pytest.fixture
async def desk(tmp_path: Path, nvml: Path) -> AsyncIterator[Desk]:
    """The proxy over a scripted Ollama, with more slots than there are slow readers."""
    async with opened(tmp_path, nvml, slots=SLOW) as made:
        yield made


def resident(desk: Desk) -> int:
    """Return the proxy's resident memory."""
    assert desk.rig.proxy is not None
    for line in Path(f"/proc/{desk.rig.proxy.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmRSS")


def tell(**figures: object) -> None:
    """Print what was measured."""
    print(json.dumps(figures))


class Sink(asyncio.Protocol):
    """A client that sends as fast as it is let, and counts what comes."""

    def __init__(self) -> None:
        self.received = 0
        self.tail = b""
        self.writable = asyncio.Event()
        self.writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport: asyncio.Transport = transport  # type: ignore[assignment] # a stream's

    def data_received(self, data: bytes) -> None:
        """Count, and keep the end."""
        self.received += len(data)
        self.tail = (self.tail + data[-64:])[-64:]

    def pause_writing(self) -> None:
        """The proxy doesn't keep up."""
        self.writable.clear()

    def resume_writing(self) -> None:
        """It has caught up."""
        self.writable.set()


async def sink(desk: Desk) -> Sink:
    """Connect."""
    loop = asyncio.get_running_loop()
    _, made = await loop.create_connection(Sink, "127.0.0.1", desk.rig.port)
    made.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
    return made


@pytest.mark.timeout(180)
async def test_slow_readers_hold_little(desk: Desk) -> None:
    """Streams that nobody reads stand still; each holds at most 256 KiB in the proxy."""
    dialect = DIALECTS[0]
    await Case(desk, -1, in_the_answer, dialect, "close", desk.lanes[0]).served("w0")
    before = resident(desk)
    cases = [Case(desk, n, reading_slowly, dialect, "close", desk.lanes[0]) for n in range(SLOW)]
    for case in cases:
        case.client = await desk.connect(small=True)
        await reading_slowly(case)

    counted = await asyncio.to_thread(probed.ask, desk.rig.window)
    each = (resident(desk) - before) / SLOW
    tell(slow_readers=SLOW, held_bytes=counted["held_bytes"], resident_bytes_each=round(each))
    assert counted["Relay"] == SLOW
    assert 0 < counted["held_bytes"] <= HELD_BYTES
    assert each <= HELD_BYTES

    for case in cases:
        case.client.reset()
    await eventually_async(
        lambda: all(a.closed.is_set() for a in desk.ollama.seen.values() if a.unsent), timeout=20
    )


@pytest.mark.timeout(60)
async def test_an_upload_that_nobody_takes_stands_still(desk: Desk) -> None:
    """The client is made to wait, and the proxy holds at most 256 KiB of what it sent."""
    client = await sink(desk)
    digest = "a" * 64
    head = post(f"/api/blobs/sha256:{digest}", b"").replace(
        b"Content-Length: 0", b"Content-Length: %d" % (1 << 40)
    )
    client.transport.write(head)
    asked = await desk.ollama.request(digest)
    asked.talk.transport.pause_reading()
    sent = 0

    def pour() -> tuple[int, int]:
        nonlocal sent
        if client.writable.is_set():
            client.transport.write(b"z" * PIECE)
            sent += PIECE
        return sent, client.transport.get_write_buffer_size()

    await until_still(pour, looks=5, every=0.02)
    counted = await asyncio.to_thread(probed.ask, desk.rig.window)
    tell(upload_held_bytes=counted["held_bytes"])
    assert 0 < counted["held_bytes"] <= HELD_BYTES
    client.transport.abort()
    asked.talk.transport.resume_reading()
    await asyncio.wait_for(asked.closed.wait(), 20)


async def highest(desk: Desk, work: asyncio.Task[None]) -> int:
    """Return the most memory that the proxy had while this was going on."""
    most = 0
    while not work.done():
        most = max(most, resident(desk))
        await asyncio.wait([work], timeout=0.1)
    await work
    return most


@pytest.mark.timeout(600)
async def test_an_upload_of_gigabytes_passes_through(desk: Desk) -> None:
    """A blob reaches Ollama whole, and the proxy's memory doesn't grow with it."""
    client = await sink(desk)
    digest = "b" * 64

    async def upload(total: int) -> None:
        for _ in range(0, total, PIECE):
            client.transport.write(b"z" * PIECE)
            await client.writable.wait()

    head = post(f"/api/blobs/sha256:{digest}", b"")
    client.transport.write(
        head.replace(b"Content-Length: 0", b"Content-Length: %d" % (THROUGH_BYTES + PIECE))
    )
    asked = await desk.ollama.request(digest)
    await upload(PIECE)
    before, began = resident(desk), time.monotonic()

    most = await highest(desk, asyncio.create_task(upload(THROUGH_BYTES)))

    await eventually_async(lambda: asked.body_bytes == THROUGH_BYTES + PIECE, timeout=60)
    tell(uploaded=THROUGH_BYTES, seconds=round(time.monotonic() - began, 1), grown_bytes=most - before)
    asked.finish(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
    await eventually_async(lambda: b"\r\n\r\n" in client.tail)
    assert most - before <= FLAT_BYTES
    client.transport.abort()


@pytest.mark.timeout(600)
async def test_a_progress_of_gigabytes_passes_through(desk: Desk) -> None:
    """A pull that tells its progress for ever is passed on as it comes, and nothing of it is kept."""
    client = await sink(desk)
    body = json.dumps({"model": "llama3.2", "x": "<<pull>>"}).encode()
    client.transport.write(b"POST /api/pull HTTP/1.1\r\nHost: a\r\n" + authorization())
    client.transport.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
    asked = await desk.ollama.request("pull")
    line = b'{"status":"pulling 6a0746a1ec1a","digest":"sha256:6a07","total":4661211424,"completed":%d}\n' % (
        1 << 30
    )
    piece = chunk(line) * (PIECE // len(chunk(line)))
    asked.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    await asked.stream(piece, PIECE)
    before, began, total = resident(desk), time.monotonic(), THROUGH_BYTES // 4

    most = await highest(desk, asyncio.create_task(asked.stream(piece, total)))

    asked.finish(chunk(b'{"status":"success"}\n') + b"0\r\n\r\n")
    await eventually_async(lambda: client.tail.endswith(b"\r\n0\r\n\r\n"), timeout=60)
    tell(progress=client.received, seconds=round(time.monotonic() - began, 1), grown_bytes=most - before)
    assert client.received >= total
    assert most - before <= FLAT_BYTES
    client.transport.abort()
