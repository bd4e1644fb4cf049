"""The proxy's configuration: one YAML file, read strictly; every mistake in it is reported at once.

config = load(Path("/etc/drover/proxy.yaml"))      # ProxyConfig, or ConfigError with all the problems
"""

from __future__ import annotations

from drover_proxy.config.load import load, parse
from drover_proxy.config.model import (
    Address,
    AuthConfig,
    ForwardingConfig,
    GpuConfig,
    InstanceConfig,
    LimitsConfig,
    LoadsConfig,
    LogConfig,
    ModelConfig,
    ProxyConfig,
    QueueConfig,
    TlsConfig,
)
from drover_proxy.config.reader import ConfigError, Problem

__all__ = [
    "Address",
    "AuthConfig",
    "ConfigError",
    "ForwardingConfig",
    "GpuConfig",
    "InstanceConfig",
    "LimitsConfig",
    "LoadsConfig",
    "LogConfig",
    "ModelConfig",
    "Problem",
    "ProxyConfig",
    "QueueConfig",
    "TlsConfig",
    "load",
    "parse",
]
