"""What streams through is never held: uploads and pulls of any length, in either direction, at any speed.

The real proxy over an Ollama whose every byte is the test's; its memory is read from /proc.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.proxy.stage import KEY, Stage, chunk, post, stage
from tests.support import eventually_async, until_still

pytestmark = pytest.mark.asyncio(loop_scope="module")
MIB = 1 << 20
END = b"0\r\n\r\n"
GROWTH = 4 * MIB
"""Of the whole process, when 256 KiB may be held a direction: the rest is the allocator's."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory, nvml: Path) -> AsyncIterator[Stage]:
    """A proxy for all tests here."""
    async with stage(tmp_path_factory.mktemp("memory"), nvml) as made:
        await made.served()
        yield made


def blob(digest: str, size: int) -> bytes:
    """Write the head of an upload."""
    path = b"/api/blobs/sha256:" + digest.rjust(64, "0").encode()
    return b"POST %b HTTP/1.1\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n" % (path, KEY, size)


async def test_a_large_upload_streams_through(house: Stage):
    """A blob of 256 MB reaches Ollama whole, and the proxy doesn't grow by more than a few buffers."""
    size, piece = 256 * MIB, b"x" * MIB
    client = await house.connect()
    before = peak = house.resident_bytes()
    client.send(blob("a1", size))
    asked = await house.ollama.request("a1")
    for _ in range(size // MIB):
        client.send(piece)
        await eventually_async(lambda: client.transport.get_write_buffer_size() < MIB, every=0.001)
        peak = max(peak, house.resident_bytes())
    await eventually_async(lambda: asked.body_bytes == size, timeout=30)
    assert peak - before < GROWTH
    asked.finish(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
    assert (await client.until(b"201 Created")).count(b"HTTP/1.1") == 1


async def test_an_upload_that_ollama_does_not_take(house: Stage):
    """When Ollama reads nothing, the client is stopped, and the proxy doesn't grow; then all arrives."""
    size, piece = 512 * MIB, b"x" * MIB
    client = await house.connect()
    before = house.resident_bytes()
    client.send(blob("a2", size))
    asked = await house.ollama.request("a2")
    asked.talk.transport.pause_reading()
    sent = 0

    def pour() -> int:
        nonlocal sent
        if sent < size and client.transport.get_write_buffer_size() < MIB:
            client.send(piece)
            sent += MIB
        return sent

    await until_still(pour, looks=50, every=0.002)
    assert sent < size // 2  # what it sent lies in the kernel's buffers, however large those are here
    assert house.resident_bytes() - before < GROWTH
    asked.talk.transport.resume_reading()
    client.send(piece)
    sent += MIB
    await eventually_async(lambda: asked.body_bytes == sent, timeout=30)
    client.close()
    await asyncio.wait_for(asked.closed.wait(), 10)


async def test_a_pull_that_talks_without_end(house: Stage):
    """Megabytes of progress lines go through one by one, and leave nothing behind, in the watch neither."""
    tag = house.tag()
    client = await house.connect()
    client.send(post("/api/pull", b'{"model":"other","note":"<<%b>>"}' % tag.encode()))
    asked = await house.ollama.request(tag)
    asked.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    await client.until(b"\r\n\r\n")
    before = peak = house.resident_bytes()
    lines = chunk(b'{"status":"pulling","digest":"sha256:0","total":1,"completed":1}\n') * 1000
    for _ in range(20 * MIB // len(lines)):
        asked.send(lines)
        await eventually_async(lambda: asked.unsent < MIB, every=0.001)
        client.take()
        peak = max(peak, house.resident_bytes())
    assert peak - before < GROWTH
    asked.finish(chunk(b'{"status":"success"}\n') + END)
    assert (await client.until(b"success")).endswith(END)
