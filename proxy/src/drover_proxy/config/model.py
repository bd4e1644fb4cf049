"""The configuration as the rest of the proxy sees it: frozen, complete, with units in the names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: a host and port, or the path of a Unix socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """TLS on the public listeners."""

    cert: str
    key: str
    client_ca: str | None = None


@dataclass(frozen=True, slots=True)
class AuthConfig:
    """Who may come in."""

    keys_file: str | None
    """None: everybody."""
    signature_seconds: float


@dataclass(frozen=True, slots=True)
class InstanceConfig:
    """One `ollama serve` of this host."""

    name: str
    url: str
    gpus: tuple[str, ...]
    slots: int
    context: int | None
    kv_type: str
    flash_attention: bool

    @property
    def host(self) -> str:
        """Return the URL's host."""
        return self.url.removeprefix("http://").rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Return the URL's port."""
        return int(self.url.rpartition(":")[2])


@dataclass(frozen=True, slots=True)
class GpuConfig:
    """A GPU named in the configuration, where there is no NVML to ask."""

    uuid: str
    total_bytes: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The profile of one model."""

    name: str
    context: int | None = None
    slots: int | None = None
    pin: bool = False
    aliases: tuple[str, ...] = ()
    priority: int = 0


@dataclass(frozen=True, slots=True)
class QueueConfig:
    """Bounds of the queue."""

    max_waiting: int
    max_wait_seconds: float
    no_instance_seconds: float
    starve_seconds: float


@dataclass(frozen=True, slots=True)
class LoadsConfig:
    """How models are loaded."""

    reserve_bytes: int
    timeout_seconds: float
    memory_timeout_seconds: float
    unload_timeout_seconds: float
    cooldown_seconds: float
    retries: int


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """Limits of the wire."""

    header_bytes: int
    header_count: int
    body_bytes: int
    head_seconds: float
    body_seconds: float
    idle_seconds: float
    connect_seconds: float
    first_byte_seconds: float | None
    stall_seconds: float | None
    max_connections: int
    max_connections_per_client: int | None


@dataclass(frozen=True, slots=True)
class ForwardingConfig:
    """What is told, and believed, of a request's way."""

    x_forwarded: Literal["none", "append", "replace"]
    via: str | None
    trusted_proxies: tuple[str, ...]
    """Networks, and `unix`."""


@dataclass(frozen=True, slots=True)
class LogConfig:
    """What goes to stderr."""

    level: Literal["debug", "info", "warning", "error"]
    access: bool
    sample: float


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """The whole file, with every default filled in."""

    listen: tuple[Address, ...]
    admin_listen: tuple[Address, ...]
    tls: TlsConfig | None
    auth: AuthConfig
    instances: tuple[InstanceConfig, ...]
    gpus: Literal["nvml"] | tuple[GpuConfig, ...]
    models: Mapping[str, ModelConfig]
    queue: QueueConfig
    loads: LoadsConfig
    limits: LimitsConfig
    forwarding: ForwardingConfig
    log: LogConfig
    drain_seconds: float
