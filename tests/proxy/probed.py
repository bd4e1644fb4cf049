"""The proxy, run with a window into it: `python -m tests.proxy.probed SOCKET serve --config FILE`.

Whoever connects to the Unix socket gets a line of JSON: how many tasks are unfinished, how many objects of
the kinds that a request is made of are alive, and the most bytes that one connection holds. A thread answers:
the event loop is as it always is.
"""

from __future__ import annotations

import asyncio
import gc
import json
import runpy
import socket
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

COUNTED = {"Exchange", "Relay", "ClientConnection", "UpstreamConnection", "Call", "Intake", "StreamWatch"}


def count() -> dict[str, int]:
    """Count what is alive."""
    gc.collect()
    found: Counter[str] = Counter(dict.fromkeys([*COUNTED, "tasks", "held_bytes"], 0))
    for item in gc.get_objects():
        name = type(item).__name__
        if name in COUNTED and type(item).__module__.startswith("drover_proxy."):
            found[name] += 1
        elif isinstance(item, asyncio.Task) and not item.done():
            found["tasks"] += 1
        if name in {"ClientConnection", "UpstreamConnection"}:
            found["held_bytes"] = max(found["held_bytes"], held(item))
    return dict(found)


def held(connection: Any) -> int:
    """Say how many bytes a connection holds: written and not taken yet, or read and not passed on."""
    waiting: int = connection.transport.get_write_buffer_size()
    intake = getattr(connection, "_intake", None)
    return waiting + (len(intake.held) if intake is not None else 0)


def answer(listener: socket.socket) -> None:
    """Answer, for ever."""
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(json.dumps(count()).encode())


def ask(path: Path) -> dict[str, int]:
    """Ask a proxy that runs."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(str(path))
        said = b""
        while piece := sock.recv(4096):
            said += piece
    counted: dict[str, int] = json.loads(said)
    return counted


def main() -> None:
    """Open the window, then be the proxy."""
    path = sys.argv.pop(1)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    threading.Thread(target=answer, args=(listener,), daemon=True).start()
    sys.argv[0] = "drover-proxy"
    runpy.run_module("drover_proxy", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
