"""Both ends of many slow streams, for bench/wire_quick.py: `serve PORT` and `load PORT STREAMS CHUNKS GAP`.

A stream is an answer of CHUNKS chunks, one every GAP seconds, as a model's tokens come. The load prints one
line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import uvloop

CHUNK = b'{"model":"m","message":{"role":"assistant","content":" token"},"done":false}\n'
FRAMED = b"%x\r\n%b\r\n" % (len(CHUNK), CHUNK)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"


class Source(asyncio.Protocol):
    """Answers each request with a stream; the request's target says how many chunks, how far apart."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = transport
        self.loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        """Take a request: it comes in one piece here."""
        _, chunks, gap = data.split(b" ", 2)[1].split(b"/")
        self.left, self.gap = int(chunks), float(gap)
        self.transport.write(HEAD)
        self.due = self.loop.time()
        self.tick()

    def tick(self) -> None:
        """Send a chunk, or the end."""
        if self.transport.is_closing():
            return
        if not self.left:
            self.transport.write(b"0\r\n\r\n")
            return
        self.left -= 1
        self.transport.write(FRAMED)
        self.due += self.gap
        self.loop.call_at(self.due, self.tick)


class Sink(asyncio.Protocol):
    """Asks for one stream and counts it."""

    def __init__(self, chunks: int, gap: float, done: asyncio.Future[None]) -> None:
        self.request = b"GET /%d/%.3f HTTP/1.1\r\nHost: bench\r\n\r\n" % (chunks, gap)
        self.done = done
        self.first = 0.0
        self.bytes = 0
        self.whole = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        self.transport = transport
        self.asked = time.perf_counter()
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        """Count."""
        self.first = self.first or time.perf_counter()
        self.bytes += len(data)
        if data.endswith(b"\r\n0\r\n\r\n") or data == b"0\r\n\r\n":
            self.whole = True
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Be done."""
        self.done.set_result(None)


async def serve(port: int) -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Source, "127.0.0.1", port, backlog=4096)
    async with server:
        await server.serve_forever()


async def load(port: int, streams: int, chunks: int, gap: float) -> None:
    """Open the streams, spread over one gap, and wait for all."""
    loop = asyncio.get_running_loop()
    sinks: list[Sink] = []
    dones: list[asyncio.Future[None]] = []
    for _ in range(streams):
        done = loop.create_future()
        _, sink = await loop.create_connection(lambda done=done: Sink(chunks, gap, done), "127.0.0.1", port)
        sinks.append(sink)
        dones.append(done)
        await asyncio.sleep(gap / streams)
    await asyncio.gather(*dones)
    firsts = sorted((s.first - s.asked) * 1000 for s in sinks)
    print(
        json.dumps(
            {
                "whole": sum(s.whole for s in sinks),
                "ttfb_p50_ms": round(firsts[len(firsts) // 2], 3),
                "ttfb_p99_ms": round(firsts[int(len(firsts) * 0.99)], 3),
            }
        )
    )


if sys.argv[1] == "serve":
    uvloop.run(serve(int(sys.argv[2])))
else:
    uvloop.run(load(int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])))
