"""The lab's supervisor: boots its hosts, boots them again when they reboot, and keeps the mirror running.

One process a lab, detached from whoever said `up`. It takes commands, one JSON object a connection, on a
socket in the lab's state folder. It makes no mounts and no networks: what it starts finds them there.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.hosts import cgroups, machine, processes
from lab.hosts.paths import PROJECT, LabPaths
from lab.hosts.spec import MIRROR_PORT, LabSpec, load

MIRROR = "mirror"
SERVICE_RESTART_SECONDS = 0.5
COMMAND_TIMEOUT_SECONDS = 2.0


@dataclass
class Child:
    """A host or the mirror: what runs it, and what became of it."""

    name: str
    command: list[str]
    is_host: bool
    wanted: bool = True
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    exit_code: int | None = None
    restart_at: float | None = None
    groups: list[Path] = field(default_factory=list)

    @property
    def state(self) -> str:
        """running, restarting, off (as asked, or powered off from inside) or failed."""
        if self.process is not None:
            return "running"
        if self.restart_at is not None:
            return "restarting"
        return "failed" if self.wanted and self.exit_code else "off"


def children_of(spec: LabSpec, paths: LabPaths, *, under_systemd: bool) -> dict[str, Child]:
    """Return what the supervisor of a lab has to run."""
    found: dict[str, Child] = {}
    if spec.mirror_root:
        found[MIRROR] = Child(MIRROR, mirror_command(spec, paths), is_host=False)
    for host in spec.hosts:
        command = machine.boot_command(spec, host, paths.root(host.name), under_systemd=under_systemd)
        found[host.name] = Child(host.name, command, is_host=True)
    return found


def mirror_command(spec: LabSpec, paths: LabPaths) -> list[str]:
    """Return the command that serves the mirror on the lab's own address."""
    words = ["--root", str(spec.mirror_root), "--bind", spec.gateway, "--port", str(MIRROR_PORT)]
    files = ["--auth-file", str(paths.mirror_auth), "--pid-file", str(paths.mirror_pid)]
    return [sys.executable, "-m", "lab.mirror", "serve", *words, *files]


class Supervisor:
    """Runs the children of one lab until it is told to stop."""

    def __init__(self, spec: LabSpec, paths: LabPaths) -> None:
        self.spec, self.paths = spec, paths
        self.own_groups = not machine.SYSTEMD_HERE.is_dir()
        self.children = children_of(spec, paths, under_systemd=not self.own_groups)
        self.stopping = False
        self.selector = selectors.DefaultSelector()
        self.commands: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
            "status": lambda _: self.status(),
            "start": lambda order: self.start(self._child(order)),
            "stop": lambda order: self.stop(self._child(order)),
            "shutdown": lambda _: self.shutdown(),
        }

    def run(self) -> None:
        """Start all children and serve until `shutdown` or SIGTERM."""
        woken, wake = socket.socketpair()
        for end in (woken, wake):
            end.settimeout(0)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._signalled)
        with socket.socket(socket.AF_UNIX) as listener:
            # The address of a socket may hold 107 characters; the state folder's path is far shorter.
            listener.bind(str(self.paths.socket))
            listener.listen(16)
            self.selector.register(listener, selectors.EVENT_READ)
            self.selector.register(woken, selectors.EVENT_READ)
            for child in self.children.values():
                self.start(child)
            while not self.stopping:
                for key, _ in self.selector.select(self._pause()):
                    if key.fileobj is listener:
                        self._serve(listener)
                    else:
                        woken.recv(4096)
                self._reap()
                self._restart_due()
        self._log("stopping")
        for child in self.children.values():
            self.stop(child)

    def status(self) -> dict[str, Any]:
        """Return what runs and what doesn't."""
        return {
            child.name: {
                "state": child.state,
                "pid": child.process.pid if child.process else None,
                "starts": child.starts,
                "exit_code": child.exit_code,
            }
            for child in self.children.values()
        }

    def start(self, child: Child) -> None:
        """Start a child unless it runs."""
        child.wanted, child.restart_at = True, None
        if child.process is not None:
            return
        if child.is_host and self.own_groups and not child.groups:
            child.groups = cgroups.make(self.spec.name, child.name)
        groups = child.groups
        with self.paths.log(child.name).open("ab") as log:
            # One thread only runs here, so preexec_fn is safe; nspawn must find itself in its groups already.
            child.process = subprocess.Popen(
                child.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd="/" if child.is_host else PROJECT,
                env=machine.boot_environment() if child.is_host else None,
                preexec_fn=lambda: cgroups.enter(groups),  # noqa: PLW1509
            )
        child.starts += 1
        if started := processes.record(child.process.pid):
            started.save(self.paths.record(child.name))
        self._log(f"{child.name}: started as process {child.process.pid}, for the {child.starts}. time")

    def stop(self, child: Child) -> None:
        """Stop a child at once and keep it off."""
        child.wanted, child.restart_at = False, None
        if child.process is None:
            return
        if running := processes.record(child.process.pid):
            if child.is_host:
                machine.pull_the_plug(running)
            else:
                processes.kill(running, signal.SIGTERM)
                if not processes.gone([running], within_seconds=3):
                    processes.kill(running)
        child.exit_code, child.process = child.process.wait(), None
        self._log(f"{child.name}: stopped")

    def shutdown(self) -> None:
        """Leave the loop: the children are stopped on the way out."""
        self.stopping = True

    def _reap(self) -> None:
        for child in self.children.values():
            if child.process is None or (code := child.process.poll()) is None:
                continue
            child.process, child.exit_code = None, code
            if not child.is_host:
                self._log(f"{child.name}: exited with {code}, comes again")
                child.restart_at = time.monotonic() + SERVICE_RESTART_SECONDS
            elif code == machine.REBOOT_CODE:
                self._log(f"{child.name}: reboots")
                self.start(child)
            else:
                self._log(f"{child.name}: " + ("powered off" if code == 0 else f"nspawn failed with {code}"))

    def _restart_due(self) -> None:
        for child in self.children.values():
            if child.restart_at is not None and time.monotonic() >= child.restart_at:
                self.start(child)

    def _pause(self) -> float | None:
        due = [child.restart_at for child in self.children.values() if child.restart_at is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _serve(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(COMMAND_TIMEOUT_SECONDS)
            try:
                order = json.loads(connection.makefile().readline())
                answer = {"ok": True, "answer": self.commands[order["do"]](order)}
            except (OSError, ValueError, KeyError, TypeError) as error:
                answer = {"ok": False, "answer": f"{type(error).__name__}: {error}"}
                self._log(f"a command failed: {answer['answer']}")
            try:
                connection.sendall(json.dumps(answer).encode() + b"\n")
            except OSError as error:
                self._log(f"nobody waited for an answer: {error}")

    def _child(self, order: Mapping[str, Any]) -> Child:
        return self.children[str(order["child"])]

    def _signalled(self, number: int, _frame: object) -> None:
        if number != signal.SIGCHLD:
            self.shutdown()

    @staticmethod
    def _log(line: str) -> None:
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the supervisor of a lab in the foreground; `lab up` detaches it."""
    parser = argparse.ArgumentParser(prog="python -m lab.hosts.supervisor", description=__doc__)
    parser.add_argument("--name", required=True)
    name = parser.parse_args(arguments).name
    paths = LabPaths(name)
    mine = processes.record(os.getpid())
    assert mine is not None, "a process sees itself"
    mine.save(paths.supervisor_pid)
    Supervisor(load(name), paths).run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
