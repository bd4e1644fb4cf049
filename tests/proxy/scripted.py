"""An Ollama whose every byte is the test's: its control API answers, its models wait for a word.

Requests that carry a tag (`<<...>>` in their body, or a digest) are handed to the test; others are answered.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import time
from collections import Counter
from typing import Any

TAG = re.compile(rb"<<([a-z0-9-]+)>>")
DIGEST = re.compile(rb"/api/blobs/sha256:([0-9a-f]{64})")
LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
MODEL_BYTES = 100 << 20
TCP_CLOSE = 7
STOP_SECONDS = 0.04
"""The longest that it goes on for a client that has left; the real one was seen to take 6 to 16 ms."""


class Asked:
    """One request that the test has to answer."""

    def __init__(self, talk: Talk, tag: str, head: bytes) -> None:
        self.talk = talk
        self.tag = tag
        self.head = head
        self.body = b""
        """The body, where the tag stood in it."""
        self.body_bytes = 0
        self.closed_at: float | None = None
        self.closed = asyncio.Event()
        self.model = ""

    def send(self, data: bytes) -> None:
        """Write."""
        self.talk.transport.write(data)

    def finish(self, data: bytes) -> None:
        """Write the last of the answer: the connection may serve another request."""
        self.talk.asked = None
        self.talk.ollama.active[self.model] -= 1
        self.send(data)

    async def stream(self, piece: bytes, total: int) -> None:
        """Write so many bytes, as fast as they are taken."""
        for _ in range(0, total, len(piece)):
            self.send(piece)
            await self.talk.writable.wait()

    @property
    def unsent(self) -> int:
        """Bytes that the proxy doesn't take."""
        return self.talk.transport.get_write_buffer_size()


class Talk(asyncio.Protocol):
    """One connection to it."""

    def __init__(self, ollama: ScriptedOllama) -> None:
        self.ollama = ollama
        self.data = b""
        self.left = 0
        self.asked: Asked | None = None
        self.writable = asyncio.Event()
        self.writable.set()

    def pause_writing(self) -> None:
        """The proxy doesn't keep up."""
        self.writable.clear()

    def resume_writing(self) -> None:
        """It has caught up."""
        self.writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport: asyncio.Transport = transport  # type: ignore[assignment] # a stream's
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
        self.ollama.talks.add(self)

    def data_received(self, data: bytes) -> None:
        """Take heads, and bodies as far as they go."""
        if self.asked is not None:
            self.asked.body_bytes += len(data)
            return
        self.data += data
        end = self.data.find(b"\r\n\r\n") + 4
        if end == 3:
            return
        head = self.data[:end]
        if digest := DIGEST.search(head):
            self._hand_over(digest[1].decode().lstrip("0"), head, len(self.data) - end, b"")
            return
        length = LENGTH.search(head)
        size = int(length[1]) if length else 0
        if len(self.data) - end < size:
            return
        body, self.data = self.data[end : end + size], self.data[end + size :]
        assert not self.data, "the proxy doesn't pipeline"
        if tag := TAG.search(body):
            self._hand_over(tag[1].decode(), head, size, body)
        else:
            self.ollama.control(self, head.split(b" ")[:2], json.loads(body or b"{}"))

    def _hand_over(self, tag: str, head: bytes, size: int, body: bytes) -> None:
        self.data = b""
        self.asked = Asked(self, tag, head)
        self.asked.body_bytes = size
        self.asked.body = body
        self.asked.model = str(json.loads(body)["model"]) if body.startswith(b"{") else ""
        self.ollama.hand_over(self.asked)

    def eof_received(self) -> bool:
        """The proxy closes: work stops a little later, as Ollama's does, and only then is this end closed."""
        self._closed()
        if self.asked is None:
            return False
        asyncio.get_running_loop().call_later(self.ollama.dice.random() * STOP_SECONDS, self.stop)
        return True

    @property
    def was_reset(self) -> bool:
        """Whether the kernel has closed the connection already."""
        sock = self.transport.get_extra_info("socket")
        return sock is None or sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSE

    def stop(self) -> None:
        """Have stopped."""
        if self.asked is not None:
            self.ollama.active[self.asked.model] -= 1
            self.asked = None
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._closed()
        self.stop()
        self.ollama.talks.discard(self)

    def _closed(self) -> None:
        if self.asked is not None and self.asked.closed_at is None:
            self.asked.closed_at = time.monotonic()
            self.asked.closed.set()

    def answer(self, body: object, status: str = "200 OK") -> None:
        """Answer with JSON."""
        data = json.dumps(body).encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        if not self.transport.is_closing():
            self.transport.write(head.encode() + data)


class ScriptedOllama:
    """The server."""

    def __init__(self, models: list[str]) -> None:
        self.models = models
        self.loaded: dict[str, int] = {}
        self.loads: Counter[str] = Counter()
        self.aborted_loads = 0
        self.gates: dict[str, asyncio.Event] = {}
        """Loads of these models wait until the event is set."""
        self.loading: dict[str, asyncio.Event] = {}
        """Set when the load of a model with a gate has begun."""
        self.talks: set[Talk] = set()
        self.active: Counter[str] = Counter()
        """Requests that are being worked on, also for clients that have left."""
        self.most_active = 0
        self.dice = random.Random(1)
        self.seen: dict[str, Asked] = {}
        self._awaited: dict[str, asyncio.Future[Asked]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        """Listen; returns the port."""
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(lambda: Talk(self), "127.0.0.1", 0, backlog=1000)
        port: int = self.server.sockets[0].getsockname()[1]
        return port

    def stop(self) -> None:
        """Stop."""
        self.server.close()
        for talk in list(self.talks):
            talk.transport.abort()
        for task in self._tasks:
            task.cancel()

    async def request(self, tag: str) -> Asked:
        """Wait for the request with this tag."""
        if tag not in self.seen:
            self._awaited[tag] = asyncio.get_running_loop().create_future()
            await asyncio.wait_for(self._awaited[tag], 20)
        return self.seen[tag]

    def hand_over(self, asked: Asked) -> None:
        """Give a request to the test."""
        assert asked.tag not in self.seen, f"{asked.tag} came twice"
        self.seen[asked.tag] = asked
        if asked.model:
            for talk in [t for t in self.talks if t.asked and t.asked.model == asked.model and t.was_reset]:
                talk.stop()  # its loss is in the same turn of the loop
            self.active[asked.model] += 1
            self.most_active = max(self.most_active, self.active[asked.model])
        if waiter := self._awaited.pop(asked.tag, None):
            waiter.set_result(asked)

    def control(self, talk: Talk, start: list[bytes], body: dict[str, Any]) -> None:
        """Answer what is asked of the server itself."""
        path = start[1].decode().partition("?")[0]
        model = str(body.get("model", ""))
        if path == "/api/version":
            talk.answer({"version": "0.33.0"})
        elif path == "/api/tags":
            rows = [{"name": n, "model": n, "digest": f"d-{n}", "size": MODEL_BYTES} for n in self.models]
            talk.answer({"models": rows})
        elif path == "/api/show":
            talk.answer({"capabilities": ["completion", "embedding"], "model_info": {}, "modelfile": ""})
        elif path == "/api/ps":
            talk.answer({"models": [self._listed(name, size) for name, size in self.loaded.items()]})
        elif path == "/api/generate" and body.get("keep_alive") == 0:
            self.loaded.pop(model, None)
            talk.answer({"model": model, "done": True, "done_reason": "unload"})
        elif path in {"/api/generate", "/api/embed"}:
            task = asyncio.get_running_loop().create_task(self._load(talk, model, body))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            talk.answer({"status": "success"})

    async def _load(self, talk: Talk, model: str, body: dict[str, Any]) -> None:
        if gate := self.gates.get(model):
            self.loading[model].set()
            await gate.wait()
        if talk.transport.is_closing():
            self.aborted_loads += 1
            return
        self.loads[model] += 1
        self.loaded[model] = int(body.get("options", {}).get("num_ctx", 4096))
        talk.answer({"model": model, "response": "", "done": True, "done_reason": "load"})

    @staticmethod
    def _listed(name: str, context: int) -> dict[str, Any]:
        size = 3 * MODEL_BYTES
        return {
            "name": name,
            "model": name,
            "digest": f"d-{name}",
            "size": size,
            "size_vram": size,
            "context_length": context,
        }
