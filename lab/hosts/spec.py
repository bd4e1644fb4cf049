"""What one lab consists of: names, addresses, GPUs. Written before anything is made, read by all others."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.hosts.errors import LabError
from lab.hosts.paths import LabPaths
from lab.hosts.profiles import ProfileHost

MIRROR_PORT = 8088
FIRST_OCTET = 11
LAB_NAME = re.compile(r"[a-z][a-z0-9]{0,9}")


@dataclass(frozen=True)
class HostSpec:
    """One host of a lab."""

    name: str
    short_name: str
    octet: int
    address: str
    machine_id: str
    gpus: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class LabSpec:
    """A lab: its subnet, what stands under it and its hosts."""

    name: str
    subnet: int
    base: str
    hosts: tuple[HostSpec, ...]
    mirror_root: str | None = None
    fleet: str | None = None

    @property
    def bridge(self) -> str:
        """The bridge on this machine that joins the lab's hosts; its name has room for 15 characters."""
        return f"dlab-{self.name}"

    @property
    def network(self) -> str:
        """The lab's subnet."""
        return f"10.87.{self.subnet}.0/24"

    @property
    def gateway(self) -> str:
        """This machine's address in the subnet: the mirror listens there. Nothing is routed beyond it."""
        return f"10.87.{self.subnet}.1"

    @property
    def mirror_url(self) -> str:
        """Where hosts, and this machine, fetch from: by address, since this machine doesn't know the name."""
        return f"http://{self.gateway}:{MIRROR_PORT}"

    def host(self, wanted: str) -> HostSpec:
        """Return a host by its name, or by its short name without the lab's."""
        for host in self.hosts:
            if wanted in {host.name, host.short_name}:
                return host
        names = ", ".join(host.name for host in self.hosts)
        raise LabError(f"host {wanted!r}: not in the lab {self.name!r}, which has {names}")

    def namespace(self, host: HostSpec) -> str:
        """The network namespace of a host."""
        return f"dlab-{host.name}"

    def veth(self, host: HostSpec) -> str:
        """This machine's end of the cable to a host."""
        return f"dv{self.name}-{host.octet}"

    def save(self, paths: LabPaths) -> None:
        """Write the spec, whole or not at all."""
        new = paths.spec.with_suffix(".new")
        new.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")
        new.replace(paths.spec)


def load(name: str) -> LabSpec:
    """Read the spec of a lab that is up, or say that it isn't."""
    try:
        content = json.loads(LabPaths(name).spec.read_text())
    except FileNotFoundError:
        raise LabError(
            f"lab {name!r}: isn't up (no {LabPaths(name).spec})\n  next: python -m lab up --name {name}, "
            "or see which labs there are: python -m lab status"
        ) from None
    content["hosts"] = tuple(HostSpec(**{**host, "gpus": tuple(host["gpus"])}) for host in content["hosts"])
    return LabSpec(**content)


def check_name(name: str) -> str:
    """Return the name of a lab if it can be one."""
    if not LAB_NAME.fullmatch(name):
        raise LabError(
            f"--name {name!r}: a lab's name is 1 to 10 lowercase letters and digits, a letter first "
            "(it becomes part of the names of network interfaces, which hold 15 characters)"
        )
    return name


def subnet_of(name: str) -> int:
    """Return the third octet of a lab's subnet: the same name has always the same."""
    return hashlib.sha256(name.encode()).digest()[0] % 254 + 1


def make(name: str, base: Path, hosts: Sequence[ProfileHost], **more: Any) -> LabSpec:
    """Return the spec of a lab with these hosts."""
    subnet = subnet_of(name)
    return LabSpec(
        name=name,
        subnet=subnet,
        base=str(base),
        hosts=tuple(
            HostSpec(
                name=f"{name}-{host.name}",
                short_name=host.name,
                octet=octet,
                address=f"10.87.{subnet}.{octet}",
                machine_id=hashlib.sha256(f"drover-lab {name} {host.name}".encode()).hexdigest()[:32],
                gpus=host.gpus,
            )
            for octet, host in enumerate(hosts, FIRST_OCTET)
        ),
        **more,
    )
