"""Starts "an Ollama" for the contract tests, whichever it is, and talks plain HTTP to it.

Which one: the simulated one; the binary that OLLAMA_BIN names (0.30 and later over the project's stand-in
`llama-server`, before that with its own engine on the CPU); or a running server that OLLAMA_URL names.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lab.gpu.state import GpuState
from lab.ollama.seed import seed
from lab.standin.install import lay_out
from tests.contract.tiny import tiny_gguf
from tests.support import eventually, free_port

ROOT = Path(__file__).resolve().parents[2]
SMALL, LARGE, EMBEDDER = "qwen2.5:0.5b", "llama3.2:3b", "nomic-embed-text"
GPU_BYTES = 24 << 30


@dataclass(frozen=True)
class Kind:
    """What sort of server is tested, and what it can do."""

    name: str
    capabilities: frozenset[str]
    binary: str = ""
    url: str = ""


def kind_of_environment() -> Kind:
    """Read OLLAMA_URL and OLLAMA_BIN."""
    if url := os.environ.get("OLLAMA_URL"):
        return Kind("url", frozenset(), url=url)
    binary = os.environ.get("OLLAMA_BIN")
    everything = {"start", "gpus", "markers", "embedder", "catalogue", "cli", "pull", "upload", "modern"}
    if not binary:
        return Kind("simulated", frozenset(everything | {"simulated"}))
    out = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"version is (\d+)\.(\d+)", out)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    if version >= (0, 30) or version == (0, 0):
        return Kind("standin", frozenset(everything | {"real"}), binary=binary)
    return Kind("cpu", frozenset({"start", "cli", "pull", "upload", "real"}), binary=binary)


@dataclass
class Answer:
    """A whole answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        """The body as NDJSON."""
        return [json.loads(line) for line in self.body.splitlines()]

    @property
    def events(self) -> list[tuple[str, Any]]:
        """The body as server-sent events: (event, data)."""
        found = []
        for block in self.body.decode().strip().split("\n\n"):
            fields = dict(line.partition(": ")[::2] for line in block.splitlines())
            data = fields["data"]
            found.append((fields.get("event", ""), data if data == "[DONE]" else json.loads(data)))
        return found


class Background(threading.Thread):
    """A request that runs beside the test; `cut` drops its connection."""

    def __init__(self, port: int, path: str, body: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self.buffer = b""
        self.first_at: float | None = None
        self.ended_at: float | None = None
        self.began_at = time.monotonic()
        self._socket = socket.create_connection(("127.0.0.1", port))
        raw = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(raw)}\r\n"
        self._socket.sendall(head.encode() + b"Connection: close\r\n\r\n" + raw)
        self.start()

    def run(self) -> None:
        """Read until the end."""
        try:
            while data := self._socket.recv(65536):
                self.first_at = self.first_at or time.monotonic()
                self.buffer += data
        except OSError:
            pass
        self.ended_at = time.monotonic()
        self._socket.close()

    def half_close(self) -> None:
        """Close our side only."""
        self._socket.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Leave."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    @property
    def status(self) -> int:
        """The status, when the head has come."""
        return int(self.buffer.split(b" ", 2)[1]) if self.buffer else 0

    @property
    def body(self) -> bytes:
        """The body as it came, in its chunks."""
        return self.buffer.partition(b"\r\n\r\n")[2]

    def finished(self, timeout: float = 20.0) -> Background:
        """Wait for the end."""
        self.join(timeout)
        assert self.ended_at is not None, f"no end within {timeout} s: {self.buffer[-200:]!r}"
        return self


@dataclass
class Ollama:
    """One server under test."""

    kind: Kind
    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    knobs: dict[str, Any] = field(default_factory=dict)
    gpu_count: int = 2
    gpu_bytes: int = GPU_BYTES
    seeds: tuple[str, ...] = (SMALL, LARGE, EMBEDDER)
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def models(self) -> Path:
        """Its models folder."""
        return self.folder / "models"

    @property
    def state_file(self) -> Path:
        """The simulated GPUs."""
        return self.folder / "gpu-state"

    @property
    def program(self) -> list[str]:
        """How its command is called."""
        if self.kind.name == "simulated":
            return [sys.executable, "-m", "lab.ollama"]
        return [
            str(self.folder / "prefix" / "bin" / "ollama")
            if self.kind.name == "standin"
            else self.kind.binary
        ]

    def environment(self) -> dict[str, str]:
        """What the server and its commands are started with."""
        found = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.folder),
            "OLLAMA_HOST": f"127.0.0.1:{self.port}",
            "OLLAMA_MODELS": str(self.models),
            "OLLAMA_NO_CLOUD": "1",
            "OLLAMA_DEBUG": "1",
            "PYTHONPATH": str(ROOT),
            "LABGPU_STATE": str(self.state_file),
            "SIMOLLAMA_CONFIG": str(self.folder / "knobs.json"),
        }
        return {key: value for key, value in (found | self.env).items() if value is not None}

    def prepare(self) -> Ollama:
        """Lay out its files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.write_knobs()
        lines = ["format=1", "driver_version=580.159.03", "loaded=1"]
        for index in range(self.gpu_count if "gpus" in self.kind.capabilities else 0):
            lines += [
                f"gpu.{index}.uuid=GPU-{index + 1:08d}-aaaa-bbbb-cccc-dddddddddddd",
                f"gpu.{index}.name=NVIDIA Invented 24",
                f"gpu.{index}.compute_capability=8.9",
                f"gpu.{index}.memory_total_bytes={self.gpu_bytes}",
            ]
        self.state_file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        if self.kind.name == "standin" and not (self.folder / "prefix").exists():
            lay_out(self.folder / "prefix", Path(self.kind.binary))
        if "catalogue" in self.kind.capabilities and self.seeds:
            seed(self.models, list(self.seeds))
        return self

    def write_knobs(self) -> None:
        """Write the simulation's knobs, which the stand-in reads too."""
        (self.folder / "knobs.json").write_text(json.dumps(self.knobs), encoding="utf-8")

    def start(self, *, wait: bool = True) -> Ollama:
        """Start it, and by default wait until it answers."""
        self.port = self.port or free_port()
        log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(
            [*self.program, "serve"],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=ROOT,
        )
        log.close()
        if wait:
            eventually(self.answers, timeout=30, every=0.05, what="the server answers")
        return self

    def answers(self) -> bool:
        """Whether it answers by now."""
        assert self.process is None or self.process.poll() is None, self.log()[-2000:]
        try:
            return self.get("/api/version", timeout=1).status == 200
        except OSError:
            return False

    def stop(self) -> int:
        """Ask it to end; returns its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(10)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.kill_runners()

    def runners(self) -> list[int]:
        """The pids of its runner processes: those that have its models folder on their command line."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
                state = (path.parent / "stat").read_text().rpartition(")")[2].split()[0]
            except (OSError, IndexError):
                continue
            mine = any(str(self.models).encode() in word for word in words)
            if mine and state not in "ZX" and (b"runner" in words or b"--model" in words):
                found.append(int(path.parent.name))
        return found

    def kill_runners(self) -> None:
        """End what a killed server left."""
        for pid in self.runners():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def log(self) -> str:
        """Everything that it has logged."""
        path = self.folder / "log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def gpus(self) -> list[int]:
        """Bytes in use on each simulated GPU."""
        return [gpu.used_bytes() for gpu in GpuState.load(self.state_file).gpus]

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: dict[str, str] | None = None,
        timeout: float = 30,
    ) -> Answer:
        """One request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            raw = json.dumps(body).encode() if isinstance(body, dict | list) else body
            connection.request(method, path, raw, headers or {})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **rest: Any) -> Answer:
        """GET."""
        return self.request("GET", path, **rest)

    def post(self, path: str, body: object, **rest: Any) -> Answer:
        """POST."""
        return self.request("POST", path, body, **rest)

    def background(self, path: str, body: dict[str, Any]) -> Background:
        """A request that runs beside the test."""
        return Background(self.port, path, body)

    def raw(self, data: bytes, timeout: float = 5.0) -> bytes:
        """Send bytes, and read until the server closes or falls silent."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as link:
            link.sendall(data)
            link.settimeout(timeout)
            out = b""
            try:
                while piece := link.recv(65536):
                    out += piece
            except TimeoutError:
                pass
            return out

    def ps(self) -> list[dict[str, Any]]:
        """What is loaded."""
        return self.get("/api/ps").json["models"] or []

    def loaded(self) -> list[str]:
        """The names of what is loaded."""
        return [entry["name"] for entry in self.ps()]

    def generate(self, model: str, prompt: str = "", **more: Any) -> Answer:
        """A generation in one piece."""
        return self.post("/api/generate", {"model": model, "prompt": prompt, "stream": False, **more})

    def unload(self, model: str) -> None:
        """Unload a model and wait until it has gone."""
        self.post("/api/generate", {"model": model, "keep_alive": 0})

    def unload_all(self) -> None:
        """Unload everything and wait for it."""
        for name in self.loaded():
            self.unload(name)
        eventually(lambda: not self.ps(), timeout=15, what="everything is unloaded")

    def upload(self, content: bytes) -> str:
        """Send a blob; returns its digest."""
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        assert self.post(f"/api/blobs/{digest}", content).status in {200, 201}
        return digest

    def names(self) -> list[str]:
        """The names of its models."""
        return [entry["name"] for entry in self.get("/api/tags").json["models"] or []]

    def make_tiny(self, name: str = "tiny", seed_number: int = 7) -> None:
        """Give it the tiny real model."""
        digest = self.upload(tiny_gguf(seed_number))
        answer = self.post("/api/create", {"model": name, "files": {"tiny.gguf": digest}, "stream": False})
        assert answer.status == 200, answer.body

    def command(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run its command line."""
        return subprocess.run(
            [*self.program, *arguments],
            env=self.environment(),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=ROOT,
            check=False,
        )


def attach(url: str, folder: Path, kind: Kind) -> Ollama:
    """A server that runs already."""
    split = urlsplit(url)
    assert split.hostname in {"127.0.0.1", "localhost"}, "OLLAMA_URL must be on this machine"
    return Ollama(kind, folder, port=split.port or 80)
