"""Profiles: which hosts a lab has, and which simulated GPUs are in them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lab.gpu.profile import models
from lab.hosts.errors import LabError
from lab.hosts.paths import PROJECT

HOST_KEYS = ("name", "gpus")
GPU_KEYS = {"model": str, "memory_mib": int, "pci_bus_id": str, "uuid": str}
HOST_NAME = re.compile(r"[a-z][a-z0-9]{0,11}")
PCI_BUS_ID = re.compile(r"[0-9a-fA-F]{8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]")
MAX_HOSTS = 80


@dataclass(frozen=True)
class ProfileHost:
    """One host of a profile: its short name and its GPUs as the profile writes them."""

    name: str
    gpus: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Profile:
    """A profile that was read and found valid."""

    path: Path
    hosts: tuple[ProfileHost, ...]

    def first(self, count: int | None) -> tuple[ProfileHost, ...]:
        """Return the first `count` hosts (all when None), or say why there aren't as many."""
        if count is None:
            return self.hosts
        if not 1 <= count <= len(self.hosts):
            raise LabError(
                f"--hosts {count}: the profile {self.path} has {len(self.hosts)} hosts "
                f"({', '.join(host.name for host in self.hosts)})\n  next: ask for 1 to {len(self.hosts)}, "
                "or write a profile with more"
            )
        return self.hosts[:count]


def find(profile: str | Path) -> Path:
    """Return the file of a profile, looked for under the current folder and then under lab/."""
    wanted = Path(profile)
    for candidate in (wanted, PROJECT / "lab" / wanted):
        if candidate.is_file():
            return candidate
    shipped = sorted(f"profiles/{path.name}" for path in (PROJECT / "lab" / "profiles").glob("*.yaml"))
    raise LabError(
        f"profile {wanted}: no such file, neither in the current folder nor under lab/"
        f"{_nearest(str(wanted), shipped)}\n  next: one of {', '.join(shipped)}, or the path of your own"
    )


def load(profile: str | Path) -> Profile:
    """Read and check a profile; every mistake in it is named at once."""
    path = find(profile)
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise LabError(f"profile {path}: not valid YAML: {error}") from error
    problems = list(check(content, models()))
    if problems:
        raise LabError("\n".join(f"profile {path}: {problem}" for problem in problems))
    return Profile(
        path, tuple(ProfileHost(host["name"], tuple(host.get("gpus") or ())) for host in content["hosts"])
    )


def check(content: Any, known: Iterable[str]) -> Iterable[str]:
    """Yield what is wrong with the content of a profile, one sentence a mistake."""
    if not isinstance(content, dict) or not isinstance(content.get("hosts"), list) or not content["hosts"]:
        yield "must be a mapping with a list `hosts` of one host or more"
        return
    for key in content.keys() - {"hosts"}:
        yield f"unknown key {key!r}{_nearest(str(key), ['hosts'])}"
    if len(content["hosts"]) > MAX_HOSTS:
        yield f"has {len(content['hosts'])} hosts; one lab takes at most {MAX_HOSTS}"
    seen: set[str] = set()
    for index, host in enumerate(content["hosts"]):
        where = f"hosts[{index}]"
        if not isinstance(host, dict):
            yield f"{where}: must be a mapping with `name` and `gpus`, is {host!r}"
            continue
        name = host.get("name")
        if not isinstance(name, str) or not HOST_NAME.fullmatch(name):
            yield f"{where}.name: must be 1 to 12 lowercase letters and digits, a letter first; is {name!r}"
        elif name in seen:
            yield f"{where}.name: {name!r} is there twice"
        else:
            seen.add(name)
        for key in host.keys() - set(HOST_KEYS):
            yield f"{where}: unknown key {key!r}{_nearest(str(key), HOST_KEYS)}"
        gpus = host.get("gpus") or []
        if not isinstance(gpus, list):
            yield f"{where}.gpus: must be a list, is {gpus!r}"
            continue
        for number, gpu in enumerate(gpus):
            yield from _check_gpu(gpu, f"{where}.gpus[{number}]", known)


def _check_gpu(gpu: Any, where: str, known: Iterable[str]) -> Iterable[str]:
    if not isinstance(gpu, dict) or "model" not in gpu:
        yield f"{where}: must be a mapping with `model`, is {gpu!r}"
        return
    for key, value in gpu.items():
        expected = GPU_KEYS.get(key)
        if expected is None:
            yield f"{where}: unknown key {key!r}{_nearest(str(key), GPU_KEYS)}"
        elif not isinstance(value, expected) or isinstance(value, bool):
            yield f"{where}.{key}: must be of type {expected.__name__}, is {value!r}"
    if isinstance(gpu["model"], str) and gpu["model"] not in known:
        yield f"{where}.model: unknown GPU model {gpu['model']!r}{_nearest(gpu['model'], known)}"
    memory = gpu.get("memory_mib")
    if isinstance(memory, int) and memory <= 0:
        yield f"{where}.memory_mib: must be more than 0, is {memory}"
    bus_id = gpu.get("pci_bus_id")
    if isinstance(bus_id, str) and not PCI_BUS_ID.fullmatch(bus_id):
        yield f"{where}.pci_bus_id: must look like 00000000:01:00.0, is {bus_id!r}"


def _nearest(word: str, names: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` when one of the names is near, else how they read."""
    by_lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.4)
    if near:
        return f" (did you mean {by_lower[near[0]]!r}?)"
    return f" (known: {', '.join(sorted(by_lower.values()))})" if by_lower else ""
