"""Where a lab keeps what it has: one state folder a lab, one cache for all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

STATE = Path("/var/lib/drover-lab")
CACHE = Path("/var/cache/drover-lab")
LOCKS = Path("/run/lock")
PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class LabPaths:
    """The files of one lab, all under one folder so that removing it removes them."""

    name: str

    @property
    def state(self) -> Path:
        """The lab's own folder."""
        return STATE / self.name

    @property
    def lock(self) -> Path:
        """Held while the lab is put up, changed or taken down; outside the folder, which comes and goes."""
        return LOCKS / f"drover-lab-{self.name}.lock"

    @property
    def spec(self) -> Path:
        """What this lab consists of: written before anything is made, so that `down` knows what to remove."""
        return self.state / "lab.json"

    @property
    def supervisor_pid(self) -> Path:
        """Process id and start time of the supervisor."""
        return self.state / "supervisor.pid"

    @property
    def supervisor_log(self) -> Path:
        """What the supervisor did and when."""
        return self.state / "supervisor.log"

    def record(self, child: str) -> Path:
        """Process id and start time of a child of the supervisor."""
        return self.state / "pids" / f"{child}.json"

    @property
    def socket(self) -> Path:
        """Where the supervisor takes commands."""
        return self.state / "supervisor.sock"

    @property
    def ssh_key(self) -> Path:
        """The private key that opens every host of this lab."""
        return self.state / "ssh" / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """The host keys of the lab, made before the hosts, so that checking can be strict."""
        return self.state / "ssh" / "known_hosts"

    @property
    def secrets(self) -> Path:
        """The lab's secrets in plain text, 0600: for the demo and the tests."""
        return self.state / "secrets.json"

    @property
    def mirror(self) -> Path:
        """What the mirror serves: links into the cache, and this lab's own faults."""
        return self.state / "mirror"

    @property
    def mirror_auth(self) -> Path:
        """User and password of the mirror, for the mirror's process."""
        return self.state / "mirror.auth"

    @property
    def mirror_pid(self) -> Path:
        """Written by the mirror's process."""
        return self.state / "mirror.pid"

    def log(self, child: str) -> Path:
        """What a child of the supervisor wrote: a host's console, the mirror's log."""
        return self.state / "log" / f"{child}.log"

    def host(self, host: str) -> Path:
        """The folder of one host."""
        return self.state / "hosts" / host

    def root(self, host: str) -> Path:
        """Where a host's file system is mounted."""
        return self.host(host) / "root"
