"""A lab host as tests and the demo see it: run something on it, reboot it, pull its plug."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lab.hosts import control
from lab.hosts.errors import LabError
from lab.hosts.paths import LabPaths
from lab.hosts.spec import HostSpec

BOOT_TIMEOUT_SECONDS = 60.0


def ssh_command(paths: LabPaths, host: HostSpec, user: str = "root") -> list[str]:
    """Return the ssh command that reaches a host, with the lab's own key and known hosts only."""
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": "5",
        "IdentitiesOnly": "yes",
        "LogLevel": "ERROR",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": str(paths.known_hosts),
    }
    settings = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    return ["ssh", "-F", "none", "-i", str(paths.ssh_key), *settings, "-l", user, host.address]


@dataclass(frozen=True)
class LabHost:
    """One host of a lab that is up."""

    spec: HostSpec
    paths: LabPaths

    @property
    def name(self) -> str:
        """Its name, `<lab>-<name in the profile>`."""
        return self.spec.name

    @property
    def address(self) -> str:
        """Its IPv4 address."""
        return self.spec.address

    @property
    def short_name(self) -> str:
        """Its name in the profile."""
        return self.spec.short_name

    @property
    def gpus(self) -> Sequence[Any]:
        """Its GPUs as the profile writes them."""
        return self.spec.gpus

    def run(
        self,
        command: str | Sequence[str],
        *,
        user: str = "root",
        check: bool = True,
        stdin: str | None = None,
        timeout: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command (or, as a list, one program) on the host over ssh; fail when it does."""
        line = command if isinstance(command, str) else shlex.join(command)
        done = subprocess.run(
            [*ssh_command(self.paths, self.spec, user), line],
            check=False,
            text=True,
            capture_output=True,
            timeout=timeout,
            **({"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}),
        )
        if check and done.returncode != 0:
            raise LabError(
                f"{self.name}: `{line}` exited with {done.returncode}: {(done.stderr or done.stdout).strip()}"
            )
        return done

    def boot_id(self) -> str:
        """Return the id of this boot: a reboot is proved by another one."""
        return self.run("cat /proc/sys/kernel/random/boot_id").stdout.strip()

    def wait_until_up(self, timeout: float = BOOT_TIMEOUT_SECONDS, *, not_boot: str | None = None) -> str:
        """Wait until the host has started all it starts at boot, in another boot than `not_boot`.

        Return systemd's word for it: running, or degraded when a unit failed.
        """
        deadline = time.monotonic() + timeout
        script = "cat /proc/sys/kernel/random/boot_id; systemctl is-system-running --wait; true"
        while True:
            words: list[str] = []
            try:
                done = self.run(script, check=False, timeout=max(1.0, deadline - time.monotonic()))
                words = done.stdout.split()
                said = done.stderr.strip() or " ".join(words)
            except subprocess.TimeoutExpired:
                said = "ssh doesn't answer"
            if len(words) == 2 and words[0] != not_boot and words[1] in {"running", "degraded"}:
                return words[1]
            if not words:
                self._refuse_if_off()
            if time.monotonic() > deadline:
                raise LabError(
                    f"host {self.name}: not up within {timeout:.0f} s (last: {said or 'nothing'})\n"
                    f"  next: see {self.paths.log(self.name)}"
                )
            time.sleep(0.05)

    def _refuse_if_off(self) -> None:
        """Don't wait for a host that nobody is booting."""
        child = control.command(self.paths, "status")[self.name]
        if child["state"] not in {"off", "failed"}:
            return
        console = self.paths.log(self.name).read_text(errors="replace").splitlines()[-5:]
        raise LabError(
            f"host {self.name}: is {child['state']} (exit code {child['exit_code']}); its last words:\n"
            + "\n".join(f"  {line}" for line in console)
            + f"\n  next: python -m lab start {self.name}, or python -m lab logs supervisor"
        )

    def failed_units(self) -> list[str]:
        """Return the units that failed on the host."""
        listed = self.run("systemctl list-units --failed --plain --no-legend").stdout
        return [line.split()[0] for line in listed.splitlines()]

    def reboot(self, timeout: float = BOOT_TIMEOUT_SECONDS) -> None:
        """Reboot the host from inside and wait until it is up in a new boot."""
        before = self.boot_id()
        # The connection dies with the host: how the command ends says nothing.
        self.run("systemctl reboot", check=False)
        self.wait_until_up(timeout, not_boot=before)

    def stop(self) -> None:
        """Pull the plug: the host is off at once and stays off."""
        control.command(self.paths, "stop", child=self.name)

    def start(self) -> None:
        """Switch the host on and wait until it is up."""
        control.command(self.paths, "start", child=self.name)
        self.wait_until_up()
