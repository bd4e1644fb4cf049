"""What the command asks of the proxy that runs, at its admin address."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import sys
from pathlib import Path

from drover_proxy.config import load
from drover_proxy.config.model import Address

DONE, FAILED, TAKES_RESTART = 0, 1, 3
NEAR = {"127.0.0.1", "::1", "localhost"}
"""It takes such a wish from its own host only."""
PATIENCE_SECONDS = 30.0
"""Longer than any reload takes; a proxy that is silent for so long has to be restarted anyway."""


def reload(path: Path) -> int:
    """Have the proxy read its files again, and say what that came to; the exit code says it, too."""
    found = load(path).admin_listen
    where = next((one for one in found if one.path or one.host in NEAR), found[0])
    try:
        status, body = _post(where, "/drover/v1/reload")
    except (OSError, http.client.HTTPException) as error:
        # Also when the file has another admin address than the one in force.
        print(f"nobody answers at admin_listen {where}: {error}; that takes a restart", file=sys.stderr)
        return TAKES_RESTART
    if status not in {200, 422}:
        print(f"the proxy that runs answers {status}: {body.decode(errors='replace')}", file=sys.stderr)
        return FAILED
    done = json.loads(body)
    for problem in done["problems"]:
        print(problem, file=sys.stderr)
    if done["problems"]:
        print("nothing was changed: the last good configuration stays", file=sys.stderr)
        return FAILED
    print(f"in force: {', '.join(done['changed']) or 'nothing new in the configuration'}")
    if done["needs_restart"]:
        print(f"takes a restart: {', '.join(done['needs_restart'])}", file=sys.stderr)
        return TAKES_RESTART
    return DONE


def _post(where: Address, path: str) -> tuple[int, bytes]:
    if where.path:
        near = socket.socket(socket.AF_UNIX)
        near.settimeout(PATIENCE_SECONDS)
    else:
        near = socket.create_connection((where.host, where.port), PATIENCE_SECONDS)
    with near, contextlib.closing(http.client.HTTPConnection("localhost")) as connection:
        if where.path:
            near.connect(where.path)
        connection.sock = near
        connection.request("POST", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
