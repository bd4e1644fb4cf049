"""A small HTTP/1.1 server on asyncio: keep-alive, pipelining, chunked bodies both ways.

It notices at once when a client leaves, which is what half of Ollama's habits are about.
"""

from __future__ import annotations

import asyncio
import json
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from email.utils import formatdate
from typing import Any
from urllib.parse import unquote

from lab.ollama import log
from lab.ollama.packed import unpack

HEAD_LIMIT_BYTES = 1 << 20
HIGH_WATER_BYTES = 4 << 20
JSON_UTF8 = "application/json; charset=utf-8"
REASONS = {
    100: "Continue", 200: "OK", 201: "Created", 204: "No Content", 301: "Moved Permanently",
    307: "Temporary Redirect", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 431: "Request Header Fields Too Large", 499: "status code 499",
    500: "Internal Server Error", 501: "Not Implemented", 503: "Service Unavailable",
}  # fmt: skip


class Gone(Exception):  # noqa: N818 - not an error: it happens
    """The client closed its side of the connection."""


class BadRequest(Exception):  # noqa: N818 - HTTP's own name for it
    """What came in is no HTTP request; carries the status to answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Request:
    """One request: its head, and its body read when a handler asks for it."""

    def __init__(self, connection: Connection, method: str, target: str, version: str) -> None:
        self.connection = connection
        self.method = method
        self.target = target
        self.version = version
        raw_path, _, self.query = target.partition("?")
        self.path = unquote(raw_path)
        self.headers: dict[str, str] = {}
        self.parameters: dict[str, str] = {}
        self.in_handler = True  # false while a dialect's own middleware looks at the request

    @property
    def gone(self) -> asyncio.Event:
        """Set as soon as the client has left."""
        return self.connection.gone

    async def body(self) -> bytes:
        """The whole body, unpacked where Ollama unpacks it."""
        body = b"".join([piece async for piece in self.pieces()])
        if body and self.path.startswith("/v1/") and self.headers.get("content-encoding") == "zstd":
            return unpack(body)
        return body

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it arrives."""
        connection = self.connection
        connection.body_pending = False
        if self.headers.get("expect", "").lower() == "100-continue":
            connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            while size := int((await connection.line()).partition(b";")[0], 16):
                async for piece in connection.take(size):
                    yield piece
                await connection.line()
            while await connection.line():
                pass
            return
        async for piece in connection.take(int(self.headers.get("content-length", "0"))):
            yield piece


class Answer:
    """One answer: either whole, or chunk by chunk."""

    def __init__(self, connection: Connection, request: Request) -> None:
        self.connection = connection
        self.request = request
        self.status = 0
        self.extra: list[tuple[str, str]] = []
        self.ended = False
        self._chunked = False

    def _head(self, status: int, content_type: str | None, framing: str | None) -> bytes:
        self.status = status
        lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}"]
        if content_type is not None:
            lines.append(f"Content-Type: {content_type}")
        lines += [f"{name}: {value}" for name, value in self.extra]
        lines.append(f"Date: {formatdate(time.time(), usegmt=True)}")
        if framing is not None:
            lines.append(framing)
        if self.connection.closing:
            lines.append("Connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def whole(self, status: int, body: bytes = b"", content_type: str | None = None) -> None:
        """Answer with everything at once."""
        framing = None if status in {204, 304} else f"Content-Length: {len(body)}"
        head = self._head(status, content_type, framing)
        self.connection.transport.write(head if self.request.method == "HEAD" else head + body)
        self.ended = True

    def json(self, status: int, value: Any, content_type: str = JSON_UTF8, end: bytes = b"") -> None:
        """Answer with a JSON document."""
        self.whole(status, dumps(value) + end, content_type)

    def error(self, status: int, message: str) -> None:
        """Answer with Ollama's own error body."""
        self.json(status, {"error": message})

    def start(self, status: int, content_type: str) -> None:
        """Begin a streamed answer."""
        self._chunked = self.request.version != "HTTP/1.0"
        if not self._chunked:
            self.connection.closing = True
        framing = "Transfer-Encoding: chunked" if self._chunked else None
        self.connection.transport.write(self._head(status, content_type, framing))

    async def chunk(self, data: bytes) -> None:
        """Send a piece of a streamed answer; raises Gone when nobody reads it any more."""
        if self.request.gone.is_set():
            raise Gone
        framed = b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data
        self.connection.transport.write(framed)
        await self.connection.drain()

    def end(self) -> None:
        """End a streamed answer properly."""
        if self._chunked:
            self.connection.transport.write(b"0\r\n\r\n")
        self.ended = True


Handler = Callable[[Request, Answer], Awaitable[None]]


def dumps(value: Any) -> bytes:
    """JSON as Go writes it: no blanks, and <, > and & escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e").encode()


class Connection(asyncio.Protocol):
    """One client's connection; requests on it are served one after the other."""

    transport: asyncio.Transport

    def __init__(self, handler: Handler, connections: set[Connection]) -> None:
        self.handler = handler
        self.connections = connections
        self.gone = asyncio.Event()
        self.closing = False
        self.body_pending = False
        self.client = ""
        self._buffer = bytearray()
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come: serve it."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        peer = transport.get_extra_info("peername")
        self.client = str(peer[0]) if isinstance(peer, tuple) and peer else ""
        self.connections.add(self)
        self._task = asyncio.get_running_loop().create_task(self._serve())

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        self._buffer += data
        if len(self._buffer) > HIGH_WATER_BYTES:
            self.transport.pause_reading()
        self._arrived.set()

    def eof_received(self) -> bool:
        """The client has closed its side: whoever waits for it is told; our side stays open."""
        self.gone.set()
        self._arrived.set()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is no more."""
        del exc
        self.gone.set()
        self._arrived.set()
        self._writable.set()
        self.connections.discard(self)

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._writable.set()

    async def drain(self) -> None:
        """Wait until the client has read enough, or has gone."""
        if not self._writable.is_set():
            await self._writable.wait()
            if self.gone.is_set():
                raise Gone

    async def _more(self) -> None:
        if self.gone.is_set():
            raise Gone
        self._arrived.clear()
        self.transport.resume_reading()
        await self._arrived.wait()

    async def line(self) -> bytes:
        """The next line, without its end."""
        while True:
            end = self._buffer.find(b"\r\n")
            if end >= 0:
                found = bytes(self._buffer[:end])
                del self._buffer[: end + 2]
                return found
            await self._more()

    async def take(self, size: int) -> AsyncIterator[bytes]:
        """The next `size` bytes, as they arrive."""
        while size:
            if not self._buffer:
                await self._more()
                continue
            piece = bytes(self._buffer[:size])
            del self._buffer[: len(piece)]
            size -= len(piece)
            yield piece

    async def _head(self) -> Request:
        while True:
            if (end := self._buffer.find(b"\r\n\r\n")) >= 0:
                break
            if len(self._buffer) > HEAD_LIMIT_BYTES:
                raise BadRequest(431, "431 Request Header Fields Too Large")
            await self._more()
        lines = bytes(self._buffer[:end]).lstrip(b"\r\n").decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        words = lines[0].split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            raise BadRequest(400, "400 Bad Request")
        request = Request(self, *words)
        for line in lines[1:]:
            name, mark, value = line.partition(":")
            if not mark:
                raise BadRequest(400, "400 Bad Request")
            request.headers[name.lower()] = value.strip()
        if words[2] == "HTTP/1.1" and "host" not in request.headers:
            raise BadRequest(400, "400 Bad Request: missing required Host header")
        if not request.headers.get("content-length", "0").isdigit():
            raise BadRequest(400, "400 Bad Request")
        return request

    async def _serve(self) -> None:
        try:
            while not self.closing and not (self.gone.is_set() and not self._buffer):
                await self._serve_one()
        except Gone:
            pass
        except BadRequest as problem:
            text = str(problem).encode()
            kind = b"Content-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
            self.transport.write(b"HTTP/1.1 " + text + b"\r\n" + kind + text)
        except ConnectionError:
            pass
        except Exception as error:  # noqa: BLE001 - one broken request must not hang its client
            log.error(f"panic serving {self.client}: {error!r}", source="server.go:3301")
            traceback.print_exc()
        self.transport.close()

    async def _serve_one(self) -> None:
        request = await self._head()
        wanted = request.headers.get("connection", "").lower()
        self.closing = "close" in wanted or (request.version == "HTTP/1.0" and "keep-alive" not in wanted)
        chunked = "chunked" in request.headers.get("transfer-encoding", "").lower()
        self.body_pending = chunked or request.headers.get("content-length", "0") != "0"
        answer = Answer(self, request)
        began = time.monotonic()
        try:
            await self.handler(request, answer)
        except Gone:
            answer.status = answer.status or 499
            raise
        finally:
            if answer.status:
                log.request_line(
                    answer.status, time.monotonic() - began, self.client, request.method, request.path
                )
        if not answer.ended:
            answer.end()
        if self.body_pending:
            if request.headers.get("expect", "").lower() == "100-continue":
                self.closing = True  # nobody asked for the body, so it isn't sent
            else:
                await request.body()

    def cut(self) -> None:
        """End it as a stopping server does: what was written goes out, then a plain FIN."""
        if self._task is not None:
            self._task.cancel()
        self.transport.close()
