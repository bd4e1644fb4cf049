"""What the environment says (OLLAMA_*), and the simulation's own knobs (SIMOLLAMA_CONFIG)."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lab.ollama import log
from lab.ollama.gotext import FOREVER_SECONDS, go_duration, parse_duration

DEFAULT_PORT = 11434
DEFAULT_KEEP_ALIVE_SECONDS = 300.0
DEFAULT_LOAD_TIMEOUT_SECONDS = 300.0
KNOBS_FILE = "/etc/simollama.json"


class FatalError(Exception):
    """Ends the program with `Error: …` on stderr and exit code 1."""


def variable(environ: Mapping[str, str], key: str) -> str:
    """A variable's value as Ollama reads it: without blanks and quotes around it."""
    return environ.get(key, "").strip().strip("\"'")


def flag(environ: Mapping[str, str], key: str, default: bool = False) -> bool:
    """A boolean variable; whatever isn't a boolean counts as true."""
    text = variable(environ, key)
    if not text:
        return default
    return text not in {"0", "f", "F", "false", "False", "FALSE"}


def _unsigned(environ: Mapping[str, str], key: str, default: int) -> int:
    text = variable(environ, key)
    if not text:
        return default
    if text.isascii() and text.isdigit():
        return int(text)
    log.warn(
        "invalid environment variable, using default",
        source="config.go:263",
        key=key,
        value=text,
        default=default,
    )
    return default


def _duration(environ: Mapping[str, str], key: str, default: float) -> float:
    """A duration or whole seconds; nonsense is taken for the default without a word."""
    text = variable(environ, key)
    if not text:
        return default
    try:
        return parse_duration(text)
    except ValueError:
        try:
            return float(int(text))
        except ValueError:
            return default


def host_and_port(text: str) -> tuple[str, str, int]:
    """Scheme, host and port that OLLAMA_HOST means; a bad port becomes the default, with a warning."""
    scheme, mark, rest = text.strip().partition("://")
    default = {"http": 80, "https": 443}.get(scheme, DEFAULT_PORT) if mark else DEFAULT_PORT
    if not mark:
        scheme, rest = "http", text.strip()
    hostport = rest.partition("/")[0]
    host, port_text = hostport, ""
    if hostport.startswith("["):
        host, _, after = hostport[1:].partition("]")
        port_text = after.removeprefix(":")
    elif hostport.count(":") == 1:
        host, _, port_text = hostport.partition(":")
    port = default
    if port_text:
        if port_text.isdigit() and int(port_text) <= 65535:
            port = int(port_text)
        else:
            log.warn("invalid port, using default", source="config.go:45", port=port_text, default=default)
    if not host and not hostport.startswith(":"):
        host = "127.0.0.1"
    return scheme, host, port


def is_loopback(host: str) -> bool:
    """Whether the server, bound to this host, checks the Host header."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Habits:
    """What the real scheduler does that one would not expect; each can be switched off."""

    reload: bool = True  # changed runner options (num_ctx, num_batch …) reload the model
    sticky_num_gpu: bool = True  # num_gpu of one client stays for all others
    eviction_order: str = "keep_alive"  # or "lru"
    silent_spill: bool = True  # what doesn't fit runs on the CPU, answered 200; off: 500 out of memory
    leaked_waiters: bool = True  # who leaves while waiting for a load is never finished
    ghosts: bool = True  # deleting a model leaves its runner
    windowed_underreport: bool = True  # ps leaves out most of the cache of models with windowed layers
    stale_accounting: bool = (
        True  # free memory from book-keeping, with its faults, once all GPUs carry runners
    )
    late_memory_seconds: float = 0.0  # the GPU's memory comes back that much after a runner's end


@dataclass(frozen=True)
class Knobs:
    """How fast the simulated machine is, and which habits it has."""

    disk_bytes_per_second: float = 4e9
    load_seconds_min: float = 0.05
    tokens_per_second: float = 200.0
    prompt_tokens_per_second: float = 20000.0
    cpu_slowdown: float = 12.0  # a token with all layers on the CPU takes that many times as long
    answer_tokens: int = 20  # tokens of an answer to which no limit was set
    pull_bytes_per_second: float = 0.0  # 0: as fast as the registry is
    discovery_seconds: float = 0.0  # the port is bound, but nothing is answered for that long
    hung_runner_seconds: float = 10.0  # how long a runner that doesn't answer is given
    models: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # faults by name: load_seconds, load_error, load_hang
    habits: Habits = field(default_factory=Habits)

    @classmethod
    def load(cls, environ: Mapping[str, str]) -> Knobs:
        """Read the knobs' file, when there is one; an unknown name is an error."""
        named = environ.get("SIMOLLAMA_CONFIG", "")
        path = Path(named or KNOBS_FILE)
        if not path.exists():
            if named:
                raise FatalError(f"{path}: no such file (SIMOLLAMA_CONFIG)")
            return cls()
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise FatalError(f"{path}: {error} (SIMOLLAMA_CONFIG must be JSON)") from error
        habits = data.pop("habits", {})
        for given, kind in ((data, cls), (habits, Habits)):
            known = {item.name for item in fields(kind)}
            if unknown := sorted(set(given) - known):
                raise FatalError(f"{path}: unknown knob {unknown[0]!r}; there are {', '.join(sorted(known))}")
        return cls(**data, habits=Habits(**habits))


@dataclass(frozen=True)
class Settings:
    """The OLLAMA_* variables, read once at start."""

    host: str
    port: int
    models: Path
    origins: tuple[str, ...]
    keep_alive_seconds: float
    load_timeout_seconds: float
    num_parallel: int
    max_loaded_models: int
    max_queue: int
    context_length: int
    gpu_overhead_bytes: int
    flash_attention: str
    kv_cache_type: str
    noprune: bool
    no_cloud: bool
    debug: bool
    sched_spread: bool
    llm_library: str
    fit_target_bytes: int
    cuda_visible_devices: str | None

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Read everything; warnings about bad values go to the log, as the real one does."""
        _, host, port = host_and_port(variable(environ, "OLLAMA_HOST"))
        keep_alive = _duration(environ, "OLLAMA_KEEP_ALIVE", DEFAULT_KEEP_ALIVE_SECONDS)
        load_timeout = _duration(environ, "OLLAMA_LOAD_TIMEOUT", DEFAULT_LOAD_TIMEOUT_SECONDS)
        flash_text = variable(environ, "OLLAMA_FLASH_ATTENTION")
        flash = "auto" if not flash_text else "on" if flag(environ, "OLLAMA_FLASH_ATTENTION") else "off"
        fit_target = variable(environ, "LLAMA_ARG_FIT_TARGET").partition(",")[0]
        return cls(
            host=host,
            port=port,
            models=models_folder(environ),
            origins=tuple(item for item in variable(environ, "OLLAMA_ORIGINS").split(",") if item),
            keep_alive_seconds=FOREVER_SECONDS if keep_alive < 0 else keep_alive,
            load_timeout_seconds=FOREVER_SECONDS if load_timeout <= 0 else load_timeout,
            num_parallel=max(1, _unsigned(environ, "OLLAMA_NUM_PARALLEL", 1)),
            max_loaded_models=_unsigned(environ, "OLLAMA_MAX_LOADED_MODELS", 0),
            max_queue=_unsigned(environ, "OLLAMA_MAX_QUEUE", 512),
            context_length=_unsigned(environ, "OLLAMA_CONTEXT_LENGTH", 0),
            gpu_overhead_bytes=_unsigned(environ, "OLLAMA_GPU_OVERHEAD", 0),
            flash_attention=flash,
            kv_cache_type=variable(environ, "OLLAMA_KV_CACHE_TYPE").lower(),
            noprune=flag(environ, "OLLAMA_NOPRUNE"),
            no_cloud=flag(environ, "OLLAMA_NO_CLOUD"),
            debug=flag(environ, "OLLAMA_DEBUG"),
            sched_spread=flag(environ, "OLLAMA_SCHED_SPREAD"),
            llm_library=variable(environ, "OLLAMA_LLM_LIBRARY"),
            fit_target_bytes=(int(fit_target) if fit_target.isdigit() else 1024) << 20,
            cuda_visible_devices=environ.get("CUDA_VISIBLE_DEVICES"),
        )

    def as_map(self, environ: Mapping[str, str]) -> str:
        """The effective values in the form of the log line `server config`."""
        values = {
            key: variable(environ, key)
            for key in (
                "CUDA_VISIBLE_DEVICES",
                "GGML_VK_VISIBLE_DEVICES",
                "GPU_DEVICE_ORDINAL",
                "HIP_VISIBLE_DEVICES",
                "HSA_OVERRIDE_GFX_VERSION",
                "HTTPS_PROXY",
                "HTTP_PROXY",
                "LLAMA_ARG_FIT",
                "LLAMA_ARG_FIT_TARGET",
                "NO_PROXY",
                "OLLAMA_EDITOR",
                "OLLAMA_IGPU_ENABLE",
                "ROCR_VISIBLE_DEVICES",
                "http_proxy",
                "https_proxy",
                "no_proxy",
            )
        }
        shown = f"[{self.host}]" if ":" in self.host else self.host
        values |= {
            "OLLAMA_CONTEXT_LENGTH": str(self.context_length),
            "OLLAMA_DEBUG": "DEBUG" if self.debug else "INFO",
            "OLLAMA_DEBUG_LOG_REQUESTS": "false",
            "OLLAMA_FLASH_ATTENTION": str(self.flash_attention == "on").lower(),
            "OLLAMA_GO_TEMPLATE": "true",
            "OLLAMA_GPU_OVERHEAD": str(self.gpu_overhead_bytes),
            "OLLAMA_HOST": f"http://{shown}:{self.port}",
            "OLLAMA_KEEP_ALIVE": go_duration(self.keep_alive_seconds),
            "OLLAMA_KV_CACHE_TYPE": self.kv_cache_type,
            "OLLAMA_LLM_LIBRARY": self.llm_library,
            "OLLAMA_LOAD_TIMEOUT": go_duration(self.load_timeout_seconds),
            "OLLAMA_MAX_LOADED_MODELS": str(self.max_loaded_models),
            "OLLAMA_MAX_QUEUE": str(self.max_queue),
            "OLLAMA_MAX_TRANSFER_STREAMS": "4",
            "OLLAMA_MODELS": str(self.models),
            "OLLAMA_NOHISTORY": "false",
            "OLLAMA_NOPRUNE": str(self.noprune).lower(),
            "OLLAMA_NO_CLOUD": str(self.no_cloud).lower(),
            "OLLAMA_NUM_PARALLEL": str(self.num_parallel),
            "OLLAMA_ORIGINS": "[" + " ".join(self.origins + default_origins()) + "]",
            "OLLAMA_REMOTES": "[ollama.com]",
            "OLLAMA_SCHED_SPREAD": str(self.sched_spread).lower(),
            "OLLAMA_VULKAN": "true",
        }
        return "map[" + " ".join(f"{key}:{values[key]}" for key in sorted(values)) + "]"


def default_origins() -> tuple[str, ...]:
    """Origins that are always allowed."""
    local = [
        f"{scheme}://{host}{port}"
        for host in ("localhost", "127.0.0.1", "0.0.0.0")
        for port in ("", ":*")
        for scheme in ("http", "https")
    ]
    return (*local, "app://*", "file://*", "tauri://*", "vscode-webview://*", "vscode-file://*")


def models_folder(environ: Mapping[str, str]) -> Path:
    """OLLAMA_MODELS, or the folder in the user's home."""
    if named := variable(environ, "OLLAMA_MODELS"):
        return Path(named)
    home = environ.get("HOME", "")
    if not home:
        raise FatalError("$HOME is not defined")
    return Path(home) / ".ollama" / "models"


def local_hostname() -> str:
    """This machine's name, which the Host check lets in."""
    try:
        return socket.gethostname()
    except OSError:
        return os.environ.get("HOSTNAME", "")
