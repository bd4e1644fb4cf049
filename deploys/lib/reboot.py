"""Rebooting a host, proved by a new boot id: uptime and an answering port prove nothing."""

from __future__ import annotations

import time
from typing import Any

import gevent
from pyinfra import logger
from pyinfra.api import FunctionCommand, StringCommand
from pyinfra.api.exceptions import ConnectError
from pyinfra.connectors.util import remove_any_sudo_askpass_file

from deploys.lib.operations import Commands

BOOT_ID = StringCommand("cat", "/proc/sys/kernel/random/boot_id")
# Detached from the session, so that its channel closes at once.
REBOOT = StringCommand("( sleep 1; systemctl reboot ) </dev/null >/dev/null 2>&1 &")


def reboot_commands(before: str, timeout_seconds: int) -> Commands:
    """Yield the commands that reboot the host and wait until it runs under another boot id than `before`."""
    yield FunctionCommand(_forget_askpass, (), {})
    yield REBOOT
    yield FunctionCommand(_wait_for_new_boot, (before, timeout_seconds), {})


def _forget_askpass(state: Any, host: Any) -> None:  # noqa: ARG001 - pyinfra passes both by name
    remove_any_sudo_askpass_file(host)


def _wait_for_new_boot(state: Any, host: Any, before: str, timeout_seconds: int) -> bool:  # noqa: ARG001
    """Reconnect until the boot id is another one; False, which fails the host, when that takes too long."""
    deadline = time.monotonic() + timeout_seconds
    host.log("Rebooting, waiting for a new boot id")
    seen = ""
    while time.monotonic() < deadline:
        gevent.sleep(0.5)
        seen = _boot_id(host)
        if seen and seen != before:
            host.log(f"Rebooted: boot id {seen}")
            return True
    why = "it doesn't answer" if not seen else "it still runs under the old boot id"
    message = f"No reboot within {timeout_seconds} s: {why}. Next: look at the host's console, then run again"
    host.log_styled(message, fg="red", log_func=logger.error)
    return False


def _boot_id(host: Any) -> str:
    """Return the boot id over a fresh connection, '' when there is none to be had."""
    try:
        host.disconnect()
        host.connect(show_errors=False)
        if not host.connected:
            return ""
        done, output = host.run_shell_command(BOOT_ID, _timeout=10)
    except (ConnectError, OSError, EOFError, AttributeError, TimeoutError):
        return ""
    return str(output.stdout).strip() if done else ""
