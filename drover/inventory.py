"""A fleet's folder, read as Ansible reads it: hosts.yml, group_vars/, host_vars/, and ansible-vault values.

The order of precedence is Ansible's: variables of groups in hosts.yml, then group_vars/all, then the other
group_vars by depth, priority and name, then the host's in hosts.yml, then host_vars. A later value replaces
an earlier one as a whole.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from drover.ansible_core import expand_hostname_range
from drover.checks import STARS, nearest_of, redact
from drover.connection import pyinfra_data
from drover.errors import DroverError, FleetError, Problem, report
from drover.schema import load_defaults, load_options
from drover.variables import validate
from drover.vault import Vault, load

# Ansible's own variables that hold a password.
CONNECTION_SECRETS = frozenset(
    {
        "ansible_become_password",
        "ansible_become_pass",
        "ansible_password",
        "ansible_ssh_pass",
        "ansible_sudo_pass",
    }
)
SUFFIXES = ("", ".yml", ".yaml", ".json")


@dataclass(slots=True)
class Group:
    """One group of hosts.yml."""

    name: str
    variables: dict[str, Any] = field(default_factory=dict)
    hosts: list[str] = field(default_factory=list)
    children: list[str] = field(default_factory=list)
    depth: int = 0
    priority: int = 1  # Ansible's ansible_group_priority


class HostVars(Mapping[str, Any]):
    """One host's variables over the defaults; its repr and its JSON never show a secret."""

    def __init__(
        self, host: str, variables: Mapping[str, Any], sources: Mapping[str, str], fleet: Path
    ) -> None:
        self.host = host
        self.own = dict(variables)
        self.sources = dict(sources)
        self.fleet = fleet
        self._merged = {**load_defaults(), **self.own}

    def __getitem__(self, key: str) -> Any:
        return self._merged[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._merged)

    def __len__(self) -> int:
        return len(self._merged)

    def __repr__(self) -> str:
        return f"HostVars({self.host!r}, {len(self)} variables)"

    def redacted(self) -> dict[str, Any]:
        """Return all variables with every secret replaced by a mark."""
        options = load_options()
        return {
            name: STARS if name in CONNECTION_SECRETS else redact(value, options.get(name))
            for name, value in sorted(self._merged.items())
        }

    def to_json(self) -> dict[str, Any]:
        """Return what may be shown; pyinfra's debug-inventory calls this."""
        return self.redacted()

    def __deepcopy__(self, memo: dict[int, Any]) -> HostVars:
        return self


@dataclass(slots=True)
class Host:
    """One host: its variables, where each was set, and its groups in order of precedence."""

    name: str
    variables: dict[str, Any] = field(repr=False)  # some are secret
    sources: dict[str, str]
    groups: list[str]


@dataclass(slots=True)
class Fleet:
    """All hosts and groups of one folder."""

    folder: Path
    hosts: dict[str, Host]
    groups: dict[str, list[str]]

    @classmethod
    def load(cls, folder: str | Path, vault_password_file: str | Path | None = None) -> Fleet:
        """Read the folder; FleetError when it can't be read."""
        return _Reader(Path(folder), vault_password_file).read()

    def problems(self) -> list[Problem]:
        """Return every problem of every host."""
        found: list[Problem] = []
        for host in self.hosts.values():
            found += validate(host.variables, host=host.name, sources=host.sources)
        return found

    def host_vars(self, name: str) -> HostVars:
        """Return one host's variables over the defaults."""
        host = self.hosts[name]
        return HostVars(name, host.variables, host.sources, self.folder)


def _deepen(groups: dict[str, Group], name: str, path: tuple[str, ...] = ()) -> None:
    """Set each group's depth: its longest way down from `all`."""
    if name in path:
        raise FleetError(f"hosts.yml: the groups {' > '.join((*path, name))} contain each other.")
    groups[name].depth = max(groups[name].depth, len(path))
    for child in groups[name].children:
        _deepen(groups, child, (*path, name))


class _Reader:
    """Reads one fleet folder."""

    def __init__(self, folder: Path, password_file: str | Path | None) -> None:
        self.folder = folder.resolve()
        self.vault = Vault(self.folder, password_file)
        self.groups: dict[str, Group] = {"all": Group("all")}
        self.host_lines: dict[str, dict[str, Any]] = {}

    def read(self) -> Fleet:
        path = self.folder / "hosts.yml"
        if not path.is_file():
            raise FleetError(
                f"{path}: no such file. "
                "Next: write the fleet's hosts into it, as in inventories/example/hosts.yml."
            )
        tree = load(path, self.vault) or {}
        if not isinstance(tree, dict):
            raise FleetError(f"{path}: expected a mapping with the group `all` at the top.")
        for name, body in tree.items():
            self._group(str(name), body, None if name == "all" else "all")
        self._ungrouped()
        _deepen(self.groups, "all")
        if not self.host_lines:
            raise FleetError(f"{path}: no hosts in it.")
        hosts = {name: self._host(name) for name in self.host_lines}
        groups = {group.name: self._members(group) for group in self.groups.values()}
        self._stray_files()
        return Fleet(self.folder, hosts, groups)

    def _group(self, name: str, body: Any, parent: str | None) -> None:
        group = self.groups.setdefault(name, Group(name))
        if parent and name not in self.groups[parent].children:
            self.groups[parent].children.append(name)
        if body is None:
            return
        if not isinstance(body, dict) or not set(body) <= {"hosts", "vars", "children"}:
            raise FleetError(f"hosts.yml: group {name}: expected only the keys hosts, vars and children.")
        variables = dict(body.get("vars") or {})
        group.priority = int(variables.pop("ansible_group_priority", group.priority))
        group.variables.update(variables)
        for pattern, line in (body.get("hosts") or {}).items():
            for host in _expand(str(pattern)):
                self.host_lines.setdefault(host, {}).update(line or {})
                if host not in group.hosts:
                    group.hosts.append(host)
        for child, child_body in (body.get("children") or {}).items():
            self._group(str(child), child_body, name)

    def _ungrouped(self) -> None:
        grouped = {host for group in self.groups.values() if group.name != "all" for host in group.hosts}
        rest = [host for host in self.host_lines if host not in grouped]
        if rest:
            self.groups.setdefault("ungrouped", Group("ungrouped")).hosts.extend(rest)
            if "ungrouped" not in self.groups["all"].children:
                self.groups["all"].children.append("ungrouped")

    def _members(self, group: Group) -> list[str]:
        if group.name == "all":
            return list(self.host_lines)
        names = list(group.hosts)
        for child in group.children:
            names += [host for host in self._members(self.groups[child]) if host not in names]
        return names

    def _host(self, name: str) -> Host:
        mine = [group for group in self.groups.values() if name in self._members(group)]
        mine.sort(key=lambda group: (group.depth, group.priority, group.name))
        variables: dict[str, Any] = {}
        sources: dict[str, str] = {}

        def lay(values: dict[str, Any], source: str) -> None:
            variables.update(values)
            sources.update(dict.fromkeys(values, source))

        for group in mine:
            lay(group.variables, f"hosts.yml, group {group.name}")
        for group in mine:
            for source, values in self._files("group_vars", group.name):
                lay(values, source)
        lay(self.host_lines[name], "hosts.yml")
        for source, values in self._files("host_vars", name):
            lay(values, source)
        return Host(name, variables, sources, [group.name for group in mine])

    def _files(self, kind: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for path in self._paths(self.folder / kind, name):
            values = self._cached(path)
            yield str(path.relative_to(self.folder)), values

    def _cached(self, path: Path) -> dict[str, Any]:
        cache: dict[Path, dict[str, Any]] = self.__dict__.setdefault("files", {})
        if path not in cache:
            values = load(path, self.vault)
            if values is not None and not isinstance(values, dict):
                raise FleetError(f"{path}: expected a mapping of variables.")
            cache[path] = values or {}
        return cache[path]

    @staticmethod
    def _paths(folder: Path, name: str) -> Iterator[Path]:
        for suffix in SUFFIXES:
            path = folder / f"{name}{suffix}"
            if path.is_dir():
                yield from sorted(
                    file
                    for file in path.rglob("*")
                    if file.is_file() and file.suffix in SUFFIXES and not file.name.startswith(".")
                )
            elif path.is_file():
                yield path

    def _stray_files(self) -> None:
        """Refuse a group_vars or host_vars entry that belongs to no group or host: a misspelt name."""
        for kind, known in (("group_vars", set(self.groups)), ("host_vars", set(self.host_lines))):
            folder = self.folder / kind
            for entry in sorted(folder.iterdir()) if folder.is_dir() else []:
                name = entry.name if entry.is_dir() else entry.stem
                if not entry.name.startswith(".") and name not in known and entry.name not in known:
                    near = nearest_of(name, sorted(known))
                    hint = f" Nearest: {near}." if near else ""
                    what = "group" if kind == "group_vars" else "host"
                    raise FleetError(f"{kind}/{entry.name}: hosts.yml has no {what} of this name.{hint}")


def _expand(pattern: str) -> list[str]:
    """Expand a range as Ansible does: gpu[01:10]."""
    if "[" not in pattern:
        return [pattern]
    return expand_hostname_range(pattern)


def pyinfra_groups(folder: str | Path) -> dict[str, list[Any]]:
    """Return the groups of a fleet in pyinfra's form, or explain what is wrong and exit.

    This is all that a fleet's inventory.py calls. pyinfra loads it before it connects to anything, so a fleet
    with a problem is refused here, whole, and no host is touched.
    """
    try:
        fleet = Fleet.load(folder)
        problems = fleet.problems()
    except DroverError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(1) from None
    if problems:
        sys.stderr.write(f"{report(problems)}\n")
        raise SystemExit(1)
    entries = {
        name: (name, {**pyinfra_data(host.variables, fleet.folder), "drover": fleet.host_vars(name)})
        for name, host in fleet.hosts.items()
    }
    groups = {name: members for name, members in fleet.groups.items() if members}
    return {**groups, "all": list(entries.values())}
