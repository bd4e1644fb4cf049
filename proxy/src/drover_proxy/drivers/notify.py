"""What systemd and the service tell each other: datagrams of sd_notify's protocol, and variables."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path


class Notifier:
    """Sends states to the socket that systemd named; silent where there is none."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(0)

    def send(self, *states: str) -> None:
        """Send lines like READY=1. A full socket loses the message rather than blocking the loop."""
        if self._address:
            with contextlib.suppress(OSError):
                self._socket.sendto("\n".join(states).encode(), self._address)

    def ready(self, status: str) -> None:
        """Say that requests are served, after the start or a reload."""
        self.send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Say that SIGHUP is being worked on."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        """Say that the service drains."""
        self.send("STOPPING=1", f"STATUS={status}")

    def watchdog(self) -> None:
        """Say that the event loop turns."""
        self.send("WATCHDOG=1")

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def given_folder(variable: str, environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return the folder that systemd made for the service and named in this variable, if it made one."""
    named = environment.get(variable, "").partition(":")[0]
    return Path(named) if named else None


def watchdog_seconds() -> float | None:
    """How often the watchdog wants to hear from this process: half of what systemd allows; None for never."""
    period = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", "")
    if not period.isdigit() or int(period) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(period) / 2e6
