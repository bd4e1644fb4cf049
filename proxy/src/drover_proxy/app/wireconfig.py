"""The wire's configuration, from the file's."""

from __future__ import annotations

import resource

from drover_proxy.config.model import ForwardingConfig, LimitsConfig
from drover_proxy.drivers.log import Log
from drover_proxy.wire import Forwarding, Limits
from drover_proxy.wire.forwarding import Mode, network

SPARE_FILES = 256
"""Open files besides connections."""


def limits(config: LimitsConfig) -> Limits:
    """Make the limits of the public listeners."""
    return Limits(
        header_bytes=config.header_bytes,
        header_count=config.header_count,
        body_bytes=config.body_bytes,
        head_timeout=config.head_seconds,
        body_timeout=config.body_seconds,
        idle_timeout=config.idle_seconds,
        connect_timeout=config.connect_seconds,
        first_byte_timeout=config.first_byte_seconds,
        stall_timeout=config.stall_seconds,
        max_connections=config.max_connections,
        max_connections_per_client=config.max_connections_per_client,
    )


def forwarding(config: ForwardingConfig) -> Forwarding:
    """Make what is told, and believed, of a request's way."""
    networks = tuple(network(text) for text in config.trusted_proxies if text != "unix")
    mode = Mode(config.x_forwarded)
    return Forwarding(mode, config.via or "", networks, trust_unix="unix" in config.trusted_proxies)


def raise_file_limit(max_connections: int, log: Log) -> None:
    """Let the process open as many files as it may: a client's connection needs one, its upstream another."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * max_connections + SPARE_FILES
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    if hard < wanted:
        message = f"limits.max_connections needs {wanted} open files, {hard} are allowed: raise LimitNOFILE="
        log.warning("few_files", message=message)
