"""A whole proxy on this machine: simulated GPUs and Ollama instances, `drover-proxy serve`, real clients."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import ollama
import openai
import yaml
from drover_proxy.guard.keys import hash_of

from lab.gpu.state import Gpu, GpuState
from lab.ollama.seed import seed
from lab.standin.install import lay_out
from tests.contract.harness import kind_of_environment
from tests.support import eventually, free_port

PROJECT = Path(__file__).resolve().parents[2]
COMPILED = [folder for folder in [os.environ.get("DROVER_PROXY_FROM")] if folder]
"""Where tests/compiled has the compiled proxy, to be tested instead of the sources."""
GIB = 1 << 30
SMALL, MIDDLE, OTHER, EMBED = "llama3.2:3b", "llama3.1:8b", "qwen2.5:7b", "nomic-embed-text:latest"
KEYS = {"use": "drv_test-use-key", "admin": "drv_test-admin-key", "some": "drv_test-some-key"}
FAST = {"disk_bytes_per_second": 2e10, "tokens_per_second": 400.0, "answer_tokens": 12}


START_SECONDS = 50.0
"""One that ends is noticed at once; among twenty busy processes a start takes 20 s. A test has longer."""


@functools.cache
def real_ollama() -> str:
    """Return the real Ollama that OLLAMA_BIN names, if it can be an instance.

    Before 0.30 it runs models with an engine of its own, and the catalogue's are invented.
    """
    kind = kind_of_environment()
    return kind.binary if "catalogue" in kind.capabilities else ""


@dataclass
class Rig:
    """The processes of one test."""

    folder: Path
    nvml: Path
    gpu_bytes: tuple[int, ...] = (10 * GIB,)
    models: tuple[str, ...] = (SMALL, MIDDLE, OTHER, EMBED)
    knobs: dict[str, Any] = field(default_factory=dict)
    slots: int = 1
    extra: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    clients: dict[tuple[str, str], Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.state = self.folder / "gpus"
        self.port, self.admin_port = free_port(), free_port()
        self.config_file, self.keys_file = self.folder / "proxy.yaml", self.folder / "keys.yaml"
        self.url, self.admin_url = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self.admin_port}"
        self.instance_ports = [free_port() for _ in self.gpu_bytes]
        self.proxy: subprocess.Popen[bytes] | None = None
        self.log = self.folder / "proxy.log"
        gpus = [
            Gpu(index=index, uuid=f"GPU-{index}", name="Test GPU", arch="ada", memory_total_bytes=size)
            for index, size in enumerate(self.gpu_bytes)
        ]
        gpu_state = GpuState(driver_version="580.159.03", gpus=gpus)
        self.state.write_text(gpu_state.text())
        seed(self.folder / "models", list(self.models))
        self.write_knobs()
        self.write_keys()
        self.write_config()

    def write_knobs(self) -> None:
        """Lay the simulation's knobs."""
        (self.folder / "knobs.json").write_text(json.dumps(FAST | self.knobs))

    def write_keys(self, **more: dict[str, Any]) -> None:
        """Lay the keys file."""
        entries = [
            {"name": "user", "sha256": hash_of(KEYS["use"]), "scopes": ["use"], "models": ["*"]},
            {"name": "boss", "sha256": hash_of(KEYS["admin"]), "scopes": ["admin"], "models": ["*"]},
            {"name": "scraper", "sha256": hash_of("drv_test-metrics-key"), "scopes": ["metrics"]},
            {"name": "some", "sha256": hash_of(KEYS["some"]), "scopes": ["use"], "models": ["llama3.2"]},
        ]
        self.keys_file.write_text(yaml.safe_dump({"keys": [*entries, *more.values()]}))

    def write_config(self, **changes: Any) -> None:
        """Lay the proxy's configuration."""
        config = {
            "listen": f"127.0.0.1:{self.port}",
            "admin_listen": f"127.0.0.1:{self.admin_port}",
            "auth": {"keys_file": str(self.keys_file)},
            "instances": [
                {
                    "name": f"gpu{i}",
                    "url": f"http://127.0.0.1:{port}",
                    "gpus": [f"GPU-{i}"],
                    "slots": self.slots,
                }
                for i, port in enumerate(self.instance_ports)
            ],
            "log": {"access": True, "level": "debug"},
            "drain_seconds": 5,
            **self.extra,
            **changes,
        }
        self.config_file.write_text(yaml.safe_dump(config))

    def base_environment(self) -> dict[str, str]:
        """Return what all processes of the rig are started with."""
        kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
        return kept | {
            "LABGPU_STATE": str(self.state),
            "LD_LIBRARY_PATH": str(self.nvml),
            "PYTHONPATH": os.pathsep.join([*COMPILED, str(PROJECT / "proxy" / "src"), str(PROJECT)]),
            "PYTHONUNBUFFERED": "1",
        }

    def ollama_program(self) -> list[str]:
        """Return how Ollama is called: simulated, or a real one over the stand-in runner."""
        if not real_ollama():
            return [sys.executable, "-m", "lab.ollama"]
        prefix = self.folder / "prefix"
        if not prefix.exists():
            lay_out(prefix, Path(real_ollama()))
        return [str(prefix / "bin" / "ollama")]

    def start_instance(self, index: int) -> subprocess.Popen[bytes]:
        """Start one simulated Ollama."""
        environment = self.base_environment() | {
            "OLLAMA_HOST": f"127.0.0.1:{self.instance_ports[index]}",
            "OLLAMA_MODELS": str(self.folder / "models"),
            "OLLAMA_NUM_PARALLEL": str(self.slots),
            "OLLAMA_MAX_LOADED_MODELS": "64",
            "OLLAMA_NOPRUNE": "1",
            "OLLAMA_NO_CLOUD": "1",
            "SIMOLLAMA_CONFIG": str(self.folder / "knobs.json"),
            "CUDA_VISIBLE_DEVICES": f"GPU-{index}",
            **self.environment,
        }
        command = [*self.ollama_program(), "serve"]
        with (self.folder / f"ollama{index}.log").open("ab") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=PROJECT)
        self.processes.append(process)
        return process

    def start_proxy(self, *, wait: bool = True) -> subprocess.Popen[bytes]:
        """Start the proxy and wait until it is ready."""
        with self.log.open("ab") as log:
            self.proxy = subprocess.Popen(
                [sys.executable, "-m", "drover_proxy", "serve", "--config", str(self.config_file)],
                env=self.base_environment() | {"STATE_DIRECTORY": str(self.folder)},
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )
        self.processes.append(self.proxy)
        if wait:
            eventually(
                self.is_ready, timeout=START_SECONDS, ignore=(httpx.HTTPError,), what="the proxy is ready"
            )
        return self.proxy

    def is_ready(self) -> bool:
        """Whether /readyz says so."""
        assert self.proxy is not None
        assert self.proxy.poll() is None, self.log.read_text()
        return httpx.get(f"{self.admin_url}/readyz").status_code == 200

    def start(self) -> Rig:
        """Start everything."""
        for index in range(len(self.gpu_bytes)):
            self.start_instance(index)
        self.start_proxy()
        return self

    def stop(self) -> None:
        """Stop what was started, and only that."""
        for client in self.clients.values():
            getattr(client, "_client", client).close()
        for process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            _reap(process)

    # What tests ask.

    def openai(self, key: str = "use") -> openai.OpenAI:
        """Return the real openai client of a key."""
        if ("openai", key) not in self.clients:
            client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEYS.get(key, key), max_retries=0)
            self.clients["openai", key] = client
        return self.clients["openai", key]

    def ollama(self, key: str = "use") -> ollama.Client:
        """Return the real ollama client of a key."""
        if ("ollama", key) not in self.clients:
            client = ollama.Client(host=self.url, headers={"Authorization": f"Bearer {KEYS.get(key, key)}"})
            self.clients["ollama", key] = client
        return self.clients["ollama", key]

    def http(self, key: str | None = "use", **options: Any) -> httpx.Client:
        """Return a plain client."""
        headers = {"authorization": f"Bearer {KEYS.get(key, key)}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False, **options)

    def admin(self, path: str) -> httpx.Response:
        """Ask the admin address."""
        return httpx.get(f"{self.admin_url}{path}", trust_env=False)

    def core(self) -> dict[str, Any]:
        """Return the core's snapshot."""
        return self.admin("/drover/v1/state").json()["core"]

    def loaded(self) -> set[str]:
        """Return the models that are ready."""
        return {runner["model"] for runner in self.core()["runners"] if runner["state"] == "ready"}

    def idle(self) -> bool:
        """Whether no request is in the proxy."""
        shown = self.core()
        return (
            shown["waiting"] == 0
            and shown["in_flight"] == 0
            and not any(r["active"] for r in shown["runners"])
        )

    def lines(self, event: str) -> list[dict[str, Any]]:
        """Return the log's lines of one event."""
        found = []
        for line in self.log.read_text().splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if entry.get("event") == event:
                    found.append(entry)
        return found

    def signal(self, number: signal.Signals) -> None:
        """Send the proxy a signal."""
        assert self.proxy is not None
        self.proxy.send_signal(number)


def _reap(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(5)
