"""A whole lab: put up, looked at, taken down."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from lab.gpu.install import into as install_gpus
from lab.hosts import (
    base,
    cgroups,
    control,
    locks,
    machine,
    mounts,
    network,
    overlay,
    processes,
    profiles,
    tools,
)
from lab.hosts.errors import LabError
from lab.hosts.host import LabHost
from lab.hosts.paths import CACHE, PROJECT, STATE, LabPaths
from lab.hosts.spec import MIRROR_PORT, HostSpec, LabSpec, check_name, load, make

STOP_TIMEOUT_SECONDS = 20.0


def _silent(_line: str) -> None:
    """Say nothing."""


class Lab:
    """One lab by its name; as a context manager it is taken down at the end."""

    def __init__(self, name: str = "lab", say: Callable[[str], None] = _silent) -> None:
        self.name = check_name(name)
        self.paths = LabPaths(name)
        self.say = say

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    @property
    def spec(self) -> LabSpec:
        """What the lab consists of; an error when it isn't up."""
        return load(self.name)

    @property
    def hosts(self) -> list[LabHost]:
        """Its hosts, in the profile's order."""
        return [LabHost(host, self.paths) for host in self.spec.hosts]

    def host(self, name: str) -> LabHost:
        """Return a host by its name, with or without the lab's in front."""
        return LabHost(self.spec.host(name), self.paths)

    def up(
        self,
        hosts: int | None = None,
        profile: str | Path = "profiles/mixed.yaml",
        fleet: Path | None = None,
        *,
        mirror: bool = True,
    ) -> Self:
        """Boot the first `hosts` hosts of a profile; what was made is removed again when this fails."""
        tools.require_root_on_linux("lab up")
        wanted = profiles.load(profile).first(hosts)
        tools.ensure_packages(self.say)
        with self._locked():
            if self.paths.state.exists():
                raise LabError(
                    f"lab {self.name!r}: is up already, or left over ({self.paths.state})\n"
                    f"  next: python -m lab status, python -m lab down --name {self.name}, or another --name"
                )
            network.refuse_if_taken(make(self.name, Path("/"), wanted))
            image = base.ensure(self.say)
            spec = make(
                self.name,
                image,
                wanted,
                mirror_root=str(self.paths.mirror) if mirror else None,
                fleet=str(fleet.resolve()) if fleet else None,
            )
            try:
                self._make(spec)
            except BaseException:
                self.say(f"taking lab {self.name} down again")
                with uninterrupted():
                    self._remove()
                raise
        return self

    def down(self) -> list[str]:
        """Remove the lab, also one that was left over; return what had to be removed."""
        tools.require_root_on_linux("lab down")
        with self._locked(), uninterrupted():
            return self._remove()

    def reset(self, name: str) -> LabHost:
        """Give a host a fresh file system and boot it."""
        tools.require_root_on_linux("lab reset")
        with self._locked():
            host = self.host(name)
            control.command(self.paths, "stop", child=host.name)
            overlay.build(self.spec, host.spec, self.paths, self._install_gpus)
            control.command(self.paths, "start", child=host.name)
            host.wait_until_up()
        return host

    def status(self) -> dict[str, Any]:
        """Return what runs, and what is there of it on this machine."""
        children: dict[str, Any] = {}
        with contextlib.suppress(LabError):
            children = control.command(self.paths, "status")
        return {
            "name": self.name,
            "supervisor": "running" if control.supervisor(self.paths) else "gone",
            "children": children,
            "left": self.leftovers(),
        }

    def leftovers(self) -> list[str]:
        """Return everything of the lab that is on this machine: processes, mounts, network, groups, files."""
        found = [f"process {process.pid}" for process in self._processes()]
        found += [f"mount {point}" for point in mounts.mounted_under(self.paths.state)]
        found += [f"network {name}" for name in network.leftovers(self.name)]
        found += [f"cgroup {folder}" for folder in cgroups.leftovers(self.name)]
        found += [f"folder {self.paths.state}"] if self.paths.state.exists() else []
        return found

    def _make(self, spec: LabSpec) -> None:
        from lab import fleet  # noqa: PLC0415 - it needs Ansible, which takes a while to load

        began = time.monotonic()
        for folder in (self.paths.state, self.paths.state / "log", self.paths.state / "pids"):
            folder.mkdir(parents=True, mode=0o700)
        spec.save(self.paths)
        overlay.make_keys(spec, self.paths)
        fleet.make_secrets(self.paths)
        if spec.mirror_root:
            build_mirror(Path(spec.mirror_root), self.say)
        network.make_bridge(spec)
        for host in spec.hosts:
            network.connect(spec, host)
            overlay.build(spec, host, self.paths, self._install_gpus)
        control.start_supervisor(self.paths)
        # They boot side by side; waiting for one after the other costs little, and a Ctrl-C ends it at once.
        for up in self.hosts:
            if up.wait_until_up() == "degraded":
                units = ", ".join(up.failed_units())
                self.say(f"warning: {units} failed on {up.name}; see: python -m lab logs {up.name}")
        self._check_network(spec)
        if spec.fleet:
            fleet.write(self, Path(spec.fleet))
        self.say(f"{len(spec.hosts)} hosts up in {time.monotonic() - began:.1f} s")

    def _check_network(self, spec: LabSpec) -> None:
        """Say so now, not in the middle of a deploy, when this machine's firewall cuts through the lab."""
        first, *others = self.hosts
        ways = [("mirror", MIRROR_PORT)] if spec.mirror_root else []
        ways += [(other.name, 22) for other in others[:1]]
        for name, port in ways:
            way = f"timeout 5 bash -c '</dev/tcp/{name}/{port}'"
            if first.run(way, check=False).returncode == 0:
                continue
            bridge = spec.bridge
            raise LabError(
                f"host {first.name} does not reach {name}, port {port}\n"
                f"  why: most often a firewall on this machine, which drops what comes from {bridge}\n"
                f"  next: let traffic of that bridge pass: iptables -I INPUT -i {bridge} -j ACCEPT; "
                f"iptables -I FORWARD -i {bridge} -o {bridge} -j ACCEPT"
            )

    def _install_gpus(self, host: HostSpec, root: Path) -> None:
        install_gpus(root, host.gpus, lab=self.name, host=host.short_name)

    def _remove(self) -> list[str]:
        from lab import fleet  # noqa: PLC0415 - as above

        found = self.leftovers()
        self._stop_processes()
        # A lab that was cut short before it had a spec has written no fleet either.
        with contextlib.suppress(LabError):
            if written := load(self.name).fleet:
                fleet.remove(Path(written), self.name)
        mounts.unmount_under(self.paths.state)
        network.remove(self.name)
        _patiently(lambda: cgroups.remove(self.name), lambda: not cgroups.leftovers(self.name))
        if self.paths.state.exists():
            shutil.rmtree(self.paths.state)
        with contextlib.suppress(OSError):
            STATE.rmdir()  # when this was the last lab
        if left := self.leftovers():
            raise LabError(
                f"lab {self.name!r}: could not be removed whole; still there: {', '.join(left)}\n"
                f"  next: python -m lab down --name {self.name} once more"
            )
        return found

    def _stop_processes(self) -> None:
        supervisors = control.find_supervisors(self.name)
        for supervisor in supervisors:
            processes.kill(supervisor, signal.SIGTERM)
        if not processes.gone(supervisors, STOP_TIMEOUT_SECONDS):
            for supervisor in supervisors:
                processes.kill(supervisor)
        for nspawn in self._nspawns():
            machine.pull_the_plug(nspawn)
        left = self._processes()
        for process in left:
            processes.kill(process)
        processes.gone(left, STOP_TIMEOUT_SECONDS)

    def _nspawns(self) -> list[processes.ProcessRecord]:
        folders = self.paths.host("").glob("*")
        return [
            found for folder in folders for found in machine.find(folder.name, self.paths.root(folder.name))
        ]

    def _processes(self) -> list[processes.ProcessRecord]:
        inside = [processes.record(pid) for pid in cgroups.members(self.name)]
        found = [
            *control.find_supervisors(self.name),
            *processes.find("lab.mirror", "serve", str(self.paths.mirror_pid)),
            *self._nspawns(),
            *[process for process in inside if process],
        ]
        return list(dict.fromkeys(found))

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return locks.held(
            self.paths.lock,
            busy=f"lab {self.name!r}: another `lab` command is at work on it (it holds {self.paths.lock})\n"
            "  next: wait for it to finish",
        )


def names() -> list[str]:
    """Return the names of the labs that are up or left over."""
    return sorted(folder.name for folder in STATE.iterdir() if folder.is_dir()) if STATE.is_dir() else []


def build_mirror(root: Path, say: Callable[[str], None]) -> None:
    """Lay a lab's own mirror into `root`; its content is made once and kept in the cache."""
    CACHE.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "lab.mirror", "build", "--into", str(root), "--cache", str(CACHE)]
    began = time.monotonic()
    with locks.held(CACHE / ".mirror.lock", busy=None):
        done = subprocess.run(command, check=False, text=True, capture_output=True, cwd=PROJECT)
    if done.returncode != 0:
        raise LabError(f"the mirror could not be built (exit code {done.returncode}):\n{done.stderr.strip()}")
    if (took := time.monotonic() - began) > 5:
        say(f"mirror built in {took:.0f} s")


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let no Ctrl-C cut short what follows: half a removal is what leaves things behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _patiently(work: Callable[[], None], done: Callable[[], bool], within_seconds: float = 5.0) -> None:
    """Do the work again until it is done: the kernel lets go of groups a moment after their last process."""
    deadline = time.monotonic() + within_seconds
    work()
    while not done() and time.monotonic() < deadline:
        time.sleep(0.02)
        work()
