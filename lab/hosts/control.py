"""The controller's side of the supervisor: start it detached, give it commands, find it again."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

from lab.hosts import processes
from lab.hosts.errors import LabError
from lab.hosts.paths import PROJECT, LabPaths

START_TIMEOUT_SECONDS = 10.0
COMMAND_TIMEOUT_SECONDS = 30.0


def start_supervisor(paths: LabPaths) -> None:
    """Start the supervisor in a session of its own and wait until it takes commands."""
    with paths.supervisor_log.open("ab") as log:
        # Its own session: a Ctrl-C at this terminal, or its end, doesn't reach the hosts.
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "lab.hosts.supervisor", "--name", paths.name],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=PROJECT,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
        )
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while True:
        if supervisor.poll() is not None:
            raise LabError(
                f"the supervisor of lab {paths.name!r} ended at once:\n{paths.supervisor_log.read_text()}"
            )
        try:
            command(paths, "status")
        except LabError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            # It is nobody's to wait for: without this, Popen warns when it is collected while the child runs.
            supervisor.returncode = 0
            return


def supervisor(paths: LabPaths) -> processes.ProcessRecord | None:
    """Return the supervisor if it runs."""
    return processes.read_record(paths.supervisor_pid)


def find_supervisors(lab: str) -> list[processes.ProcessRecord]:
    """Return every supervisor process of that lab, recorded or not."""
    return processes.find("lab.hosts.supervisor", "--name", lab)


def command(paths: LabPaths, do: str, **more: str) -> Any:
    """Give the supervisor a command and return its answer."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(COMMAND_TIMEOUT_SECONDS)
            connection.connect(str(paths.socket))
            connection.sendall(json.dumps({"do": do, **more}).encode() + b"\n")
            line = connection.makefile().readline()
        answer = json.loads(line)
    except (OSError, ValueError) as error:
        raise LabError(
            f"the supervisor of lab {paths.name!r} doesn't answer: {error}\n"
            f"  why: it isn't running (see {paths.supervisor_log})\n"
            f"  next: python -m lab down --name {paths.name}"
        ) from error
    if not answer["ok"]:
        raise LabError(f"the supervisor of lab {paths.name!r} could not {do}: {answer['answer']}")
    return answer["answer"]
