"""Streams that don't end as their dialect ends: an error, or a broken transfer, never a clean end; counted.

The real proxy over an Ollama whose every byte is the test's.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.proxy.stage import Stage, chunk, post, stage
from tests.support import eventually_async
from tests.unit.wire.rig import Peer

pytestmark = pytest.mark.asyncio(loop_scope="module")
END = b"0\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Stream:
    """How a dialect's stream goes on, ends, and tells of an error."""

    path: str
    token: bytes
    last: bytes
    error: bytes
    """As Ollama itself tells it."""
    broken: bytes
    """How the proxy's own error event begins."""

    def body(self, tag: str) -> bytes:
        """Write a request."""
        asked: dict[str, object] = {"model": "one:latest", "stream": True}
        text = f"<<{tag}>>"
        if self.path.endswith(("chat", "chat/completions", "messages")):
            asked |= {"messages": [{"role": "user", "content": text}], "max_tokens": 9}
        else:
            asked["input" if self.path == "/v1/responses" else "prompt"] = text
        return json.dumps(asked, separators=(",", ":")).encode()


def sse(event: str, data: str = "{}") -> bytes:
    """Write a named event."""
    return f"event: {event}\ndata: {data}\n\n".encode()


CHAT = (b'data: {"choices":[]}\n\n', b"data: [DONE]\n\n", b'data: {"error":{"message":"x"}}\n\n')
STREAMS = [
    Stream(
        "/api/generate",
        b'{"response":"a","done":false}\n',
        b'{"response":"","done":true}\n',
        b'{"error":"x"}\n',
        b'{"error":"',
    ),
    Stream(
        "/api/chat",
        b'{"message":{},"done":false}\n',
        b'{"message":{},"done":true}\n',
        b'{"error":"x"}\n',
        b'{"error":"',
    ),
    Stream("/v1/chat/completions", *CHAT, b'data: {"error":{'),
    Stream("/v1/completions", *CHAT, b'data: {"error":{'),
    Stream(
        "/v1/responses",
        sse("response.output_text.delta"),
        sse("response.completed"),
        sse("response.failed"),
        b'event: error\ndata: {"type":"error"',
    ),
    Stream(
        "/v1/messages",
        sse("content_block_delta"),
        sse("message_stop"),
        sse("error"),
        b'event: error\ndata: {"type":"error"',
    ),
]
each = pytest.mark.parametrize("stream", STREAMS, ids=lambda stream: stream.path)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(tmp_path_factory: pytest.TempPathFactory, nvml: Path) -> AsyncIterator[Stage]:
    """A proxy for all tests here."""
    async with stage(tmp_path_factory.mktemp("streams"), nvml) as made:
        await made.served()
        yield made


async def begun(house: Stage, stream: Stream) -> tuple[Peer, object]:
    """Have a stream begin; it carries two tokens."""
    tag = house.tag()
    client = await house.connect()
    client.send(post(stream.path, stream.body(tag)))
    asked = await house.ollama.request(tag)
    asked.send(HEAD + chunk(stream.token) + chunk(stream.token))
    await client.until(chunk(stream.token) * 2)
    return client, asked


async def counted(house: Stage, kind: str, before: int) -> None:
    """See that the metric tells it, once."""

    async def once() -> bool:
        return await house.metrics(kind) == before + 1

    await eventually_async(once)


@each
async def test_a_whole_stream(house: Stage, stream: Stream):
    """It is relayed to its last byte, and the connection serves on."""
    before = await house.metrics("complete")
    client, asked = await begun(house, stream)
    asked.finish(chunk(stream.last) + END)
    assert (await client.until(chunk(stream.last) + END)).endswith(chunk(stream.last) + END)
    assert not client.eof
    await counted(house, "complete", before)


@each
async def test_an_error_of_the_stream_itself(house: Stage, stream: Stream):
    """Ollama's own error goes through as it is, whole, and is counted as an error."""
    before = await house.metrics("in_band_error")
    client, asked = await begun(house, stream)
    asked.finish(chunk(stream.error) + END)
    assert (await client.until(chunk(stream.error) + END)).endswith(chunk(stream.error) + END)
    await counted(house, "in_band_error", before)


@each
@pytest.mark.parametrize("way", ["no end", "FIN", "RST"])
async def test_a_stream_without_its_end(house: Stage, stream: Stream, way: str):
    """A clean end of the transfer, or a break, before the dialect's own end: an error event, and a break."""
    before = await house.metrics("upstream_broken")
    client, asked = await begun(house, stream)
    if way == "no end":
        asked.finish(END)
    elif way == "FIN":
        asked.talk.transport.close()
    else:
        asked.talk.transport.abort()
    got = await client.until_closed()
    assert not got.endswith(END)
    told = got.rpartition(chunk(stream.token))[2].partition(b"\r\n")[2]
    assert told.startswith(stream.broken), told
    assert b"broke off" in told
    await counted(house, "upstream_broken", before)


@each
async def test_an_empty_chunk_instead_of_the_end(house: Stage, stream: Stream):
    """What /v1/chat/completions does when its runner dies, an empty record, is no end for any dialect."""
    before = await house.metrics("upstream_broken")
    client, asked = await begun(house, stream)
    asked.finish(chunk(b"\n") + END)
    got = await client.until_closed()
    assert not got.endswith(END)
    assert stream.broken in got
    await counted(house, "upstream_broken", before)


@each
async def test_the_runner_dies_before_its_first_token(house: Stage, stream: Stream):
    """A failure before the answer is a status and a body of the dialect's, and nothing is asked twice."""
    before = await house.metrics("complete")
    tag = house.tag()
    client = await house.connect()
    client.send(post(stream.path, stream.body(tag)))
    asked = await house.ollama.request(tag)
    seen = len(house.ollama.seen)
    asked.finish(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 13\r\n\r\n" + b'{"error":"x"}')
    assert (await client.until(b'{"error":"x"}')).startswith(b"HTTP/1.1 500 ")
    await counted(house, "complete", before)
    assert len(house.ollama.seen) == seen
