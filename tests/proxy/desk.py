"""The real proxy over a scripted Ollama, both in the test's hands, with a window into the proxy."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.proxy.rig import KEYS, Rig
from tests.proxy.scripted import ScriptedOllama
from tests.support import eventually_async
from tests.unit.wire.rig import Peer

LANES = [f"lane-{n}:latest" for n in range(8)]
FRESH = [f"load-{n}:latest" for n in range(100)]
SEEN_SECONDS = 5.0
"""After which the proxy has looked what is loaded: it does every two seconds."""


class ProbedRig(Rig):
    """A proxy with a window into it."""

    @property
    def window(self) -> Path:
        """Where to ask."""
        return self.folder / "window"

    def start_proxy(self, *, wait: bool = True) -> subprocess.Popen[bytes]:
        """Start it; the caller waits, since Ollama lives in the caller's loop."""
        program = ["-m", "tests.proxy.probed", str(self.window), "serve", "--config", str(self.config_file)]
        with self.log.open("ab") as log:
            self.proxy = subprocess.Popen(
                [sys.executable, *program],
                env=self.base_environment(),
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )
        self.processes.append(self.proxy)
        return self.proxy


@dataclass
class Desk:
    """What the cases of one run share."""

    rig: Rig
    ollama: ScriptedOllama
    lanes: list[str]
    fresh: list[str]
    """Models that are loaded only by the cases about loading, one after the other."""
    requests: int = 0
    """Heads that the proxy got whole."""
    latencies: dict[str, list[float]] = field(default_factory=dict)
    left: int = 0

    def __post_init__(self) -> None:
        self.loading = asyncio.Lock()
        self.unloaded_at = dict.fromkeys(self.fresh, 0.0)

    async def absent(self) -> str:
        """Give a model that isn't loaded, and that the proxy knows not to be."""
        model = min(self.unloaded_at, key=self.unloaded_at.__getitem__)
        await eventually_async(lambda: time.monotonic() - self.unloaded_at[model] > SEEN_SECONDS)
        return model

    async def connect(self, *, small: bool = False) -> Peer:
        """Let a client connect; `small` buffers make a slow reader felt at once."""
        sock = socket.socket()
        sock.setblocking(False)  # noqa: FBT003 - the standard library's way
        if small:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", self.rig.port))
        _, peer = await loop.create_connection(Peer, sock=sock)
        return peer

    async def fence(self) -> None:
        """Let the proxy see everything that was sent before."""
        peer = await self.connect()
        self.requests += 1
        peer.send(b"GET /api/version HTTP/1.1\r\nHost: a\r\n" + authorization() + b"\r\n")
        await peer.until(b"0.33.0")
        peer.close()


def authorization() -> bytes:
    """Show a key that may do all that is done here."""
    return b"Authorization: Bearer " + KEYS["admin"].encode() + b"\r\n"


def post(path: str, body: bytes, *, extra: bytes = b"") -> bytes:
    """Write a request."""
    start = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n".encode()
    return start + authorization() + extra + b"\r\n" + body


@contextlib.asynccontextmanager
async def opened(folder: Path, nvml: Path, *, slots: int = 2) -> AsyncIterator[Desk]:
    """Start the proxy over a scripted Ollama; stop them."""
    ollama = ScriptedOllama(LANES + FRESH)
    port = await ollama.start()
    extra = {
        "gpus": [{"uuid": "GPU-0", "total_bytes": 1 << 40}],
        "models": {name: {"pin": True, "context": 4096} for name in LANES},
        "log": {"access": False, "level": "info"},
    }
    rig = ProbedRig(folder, nvml, slots=slots, extra=extra)
    rig.instance_ports = [port]
    rig.write_config()
    made = Desk(rig, ollama, LANES, FRESH)
    try:
        await asyncio.to_thread(rig.start_proxy)
        await eventually_async(lambda: asyncio.to_thread(answers, rig), timeout=20)
        yield made
    finally:
        ollama.stop()
        await asyncio.to_thread(rig.stop)


def answers(rig: Rig) -> bool:
    """Whether it is ready."""
    try:
        return rig.is_ready()
    except OSError:
        return False
    except Exception as error:
        if type(error).__module__.startswith("httpx"):
            return False
        raise
