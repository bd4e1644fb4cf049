"""Listening sockets: handed over by systemd (LISTEN_FDS), or bound from the configuration."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterable
from pathlib import Path

from drover_proxy.config.model import Address

FIRST_FD = 3
BACKLOG = 4096
"""Connections that wait in the kernel (which has its own limit, net.core.somaxconn, 4096 too).

A restart with socket activation loses none of them. With 1024, 95 of 5,000 streams that were opened within
one second, on a core that was busy elsewhere, were reset by the kernel and never seen here.
"""
ADMIN_NAME = "admin"
"""FileDescriptorName= of a socket that stands for `admin_listen`; every other one stands for `listen`."""


class BindError(Exception):
    """An address can't be listened on."""


def handed_over() -> tuple[list[socket.socket], list[socket.socket]]:
    """Take the sockets that systemd passed: those for clients, and those for the admin address."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return [], []
    count = int(os.environ.get("LISTEN_FDS", "0") or 0)
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    public: list[socket.socket] = []
    admin: list[socket.socket] = []
    for offset in range(count):
        taken = socket.socket(fileno=FIRST_FD + offset)
        taken.settimeout(0)
        taken.set_inheritable(inheritable=False)
        name = names[offset] if offset < len(names) else ""
        (admin if name == ADMIN_NAME else public).append(taken)
    for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(variable, None)
    return public, admin


def bind(addresses: Iterable[Address]) -> list[socket.socket]:
    """Bind and listen; BindError that says which address, why, and what to do."""
    bound: list[socket.socket] = []
    try:
        for address in addresses:
            bound.append(_unix(address.path) if address.path else _tcp(address))
    except OSError as error:
        for one in bound:
            one.close()
        hint = " (is another drover-proxy running? see: ss -ltnp)" if error.errno == 98 else ""
        raise BindError(f"can't listen on {address}: {error.strerror}{hint}") from error
    return bound


def _tcp(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    one = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if address.host == "::" else 1)
        one.bind((address.host, address.port))
        one.listen(BACKLOG)
        one.settimeout(0)
    except OSError:
        one.close()
        raise
    return one


def _unix(path: str) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(path).st_mode) and not _answers(path):  # noqa: PTH116 - beside unlink
            Path(path).unlink()  # left by a process that was killed
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        one.bind(path)
        one.listen(BACKLOG)
        one.settimeout(0)
    except OSError:
        one.close()
        raise
    return one


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except OSError:
            return False
        return True
