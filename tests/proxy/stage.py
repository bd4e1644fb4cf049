"""A real proxy over a scripted Ollama, for tests in which every byte and every moment counts."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from tests.proxy.rig import KEYS, START_SECONDS, Rig
from tests.proxy.scripted import Asked, ScriptedOllama
from tests.support import eventually_async
from tests.unit.wire.rig import Peer

MODEL = "one:latest"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
TOKEN = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
KEY = b"Authorization: Bearer " + KEYS["admin"].encode() + b"\r\n"


class Stage:
    """The proxy's process, the Ollama that the test plays, and clients."""

    def __init__(self, rig: Rig, ollamas: list[ScriptedOllama]) -> None:
        self.rig = rig
        self.ollama = ollamas[0]
        self.ollamas = ollamas
        self._numbers = iter(range(1_000_000))
        self._clients: list[Peer] = []

    async def connect(self) -> Peer:
        """Let a client connect."""
        loop = asyncio.get_running_loop()
        _, peer = await loop.create_connection(Peer, "127.0.0.1", self.rig.port)
        self._clients.append(peer)
        return peer

    def leave(self) -> None:
        """Let all clients go."""
        for peer in self._clients:
            peer.transport.abort()

    def chat(self, tag: str, *, stream: bool = True, model: str = MODEL, pad: int = 0) -> bytes:
        """Write a chat request that the test itself will answer."""
        asked: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": f"<<{tag}>>" + "x" * pad}],
            "stream": stream,
        }
        return post("/v1/chat/completions", json.dumps(asked, separators=(",", ":")).encode())

    def tag(self) -> str:
        """Make a tag for a request that the test itself will answer."""
        return f"t{next(self._numbers)}"

    async def asked(self, *, stream: bool = True, pad: int = 0) -> tuple[Peer, Asked]:
        """Have a client ask, as far as Ollama having the request."""
        tag = self.tag()
        client = await self.connect()
        client.send(self.chat(tag, stream=stream, pad=pad))
        return client, await self.ollama.request(tag)

    async def streaming(self) -> tuple[Peer, Asked]:
        """Have a client ask, as far as it having the first token."""
        client, asked = await self.asked()
        asked.send(HEAD + chunk(TOKEN))
        await client.until(TOKEN)
        return client, asked

    async def served(self, model: str = MODEL) -> None:
        """Have one more client served."""
        tag = self.tag()
        client = await self.connect()
        client.send(self.chat(tag, stream=False, model=model))
        (await self.ollama.request(tag)).finish(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        assert (await client.until(b"{}")).startswith(b"HTTP/1.1 200 ")
        client.close()

    def resident_bytes(self) -> int:
        """Say how much memory the proxy's process has now."""
        assert self.rig.proxy is not None
        pages = int(Path(f"/proc/{self.rig.proxy.pid}/statm").read_text().split()[1])
        return pages * 4096

    def outcomes(self, kind: str) -> int:
        """Count how many exchanges ended so, by the metric."""
        page = self.rig.admin("/metrics").text
        lines = [line for line in page.splitlines() if line.startswith("drover_outcomes_total{")]
        return sum(int(float(line.rsplit(" ", 1)[1])) for line in lines if f'"{kind}"' in line)

    async def metrics(self, kind: str) -> int:
        """Count without keeping the loop from its work."""
        return await asyncio.to_thread(self.outcomes, kind)


def post(path: str, body: bytes) -> bytes:
    """Write a request."""
    return b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n%b\r\n%b" % (
        path.encode(),
        len(body),
        KEY,
        body,
    )


def chunk(data: bytes) -> bytes:
    """Write a chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


@contextlib.asynccontextmanager
async def stage(
    folder: Path,
    nvml: Path,
    *,
    models: dict[str, dict[str, Any]] | None = None,
    slots: int = 8,
    instances: int = 1,
    **config: Any,
) -> AsyncIterator[Stage]:
    """Start everything, and stop it again."""
    profiles = {MODEL: {"context": 4096}} if models is None else models
    ollamas = [ScriptedOllama(list(profiles)) for _ in range(instances)]
    ports = [await ollama.start() for ollama in ollamas]
    extra = {
        "gpus": [{"uuid": f"GPU-{number}", "total_bytes": 1 << 40} for number in range(instances)],
        "models": profiles,
        **config,
    }
    rig = Rig(folder, nvml, gpu_bytes=(1 << 40,) * instances, slots=slots, extra=extra)
    rig.instance_ports = ports
    rig.write_config()
    try:
        await asyncio.to_thread(rig.start_proxy, wait=False)
        await eventually_async(lambda: asyncio.to_thread(_is_ready, rig), timeout=START_SECONDS)
        made = Stage(rig, ollamas)
        try:
            yield made
        finally:
            made.leave()
    finally:
        for ollama in ollamas:
            ollama.stop()
        await asyncio.to_thread(rig.stop)


def _is_ready(rig: Rig) -> bool:
    try:
        return rig.is_ready()
    except httpx.HTTPError:
        return False
