"""A control group of its own for each host, where this machine has no systemd that would make it.

Hosts that shared one would manage the same groups, each with its own systemd: a service of one host would
put its limits on the service of the same name on another.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PARENT = "drover-lab"


def hierarchies(mounts: str) -> list[Path]:
    """Return the mount points of all cgroup hierarchies, from the text of /proc/mounts."""
    found = [line.split() for line in mounts.splitlines()]
    return [Path(fields[1]) for fields in found if len(fields) > 2 and fields[2] in {"cgroup", "cgroup2"}]


def make(lab: str, child: str) -> list[Path]:
    """Make a group for one child in every hierarchy; return the folders."""
    made = []
    for hierarchy in _here():
        group = hierarchy / PARENT / lab / child
        group.mkdir(parents=True, exist_ok=True)
        for level in (hierarchy / PARENT, hierarchy / PARENT / lab, group):
            _inherit_cpuset(level)
        made.append(group)
    return made


def enter(groups: list[Path]) -> None:
    """Move this process into the groups."""
    for group in groups:
        (group / "cgroup.procs").write_text(str(os.getpid()))


def members(lab: str) -> set[int]:
    """Return the ids of all processes in a lab's groups, those inside hosts included."""
    found: set[int] = set()
    for folder in _folders(lab):
        with contextlib.suppress(OSError):
            found.update(int(pid) for pid in (folder / "cgroup.procs").read_text().split())
    return found


def remove(lab: str) -> None:
    """Remove a lab's groups, innermost first; a group that still has processes stays."""
    for folder in sorted(_folders(lab), key=lambda path: len(path.parts), reverse=True):
        with contextlib.suppress(OSError):
            folder.rmdir()
    for hierarchy in _here():
        with contextlib.suppress(OSError):  # another lab may be in it
            (hierarchy / PARENT).rmdir()


def leftovers(lab: str) -> list[Path]:
    """Return the groups of a lab that are there."""
    return [hierarchy / PARENT / lab for hierarchy in _here() if (hierarchy / PARENT / lab).is_dir()]


def _folders(lab: str) -> Iterator[Path]:
    for top in leftovers(lab):
        for folder, _, _ in os.walk(top):
            yield Path(folder)


def _here() -> list[Path]:
    return hierarchies(Path("/proc/mounts").read_text())


def _inherit_cpuset(group: Path) -> None:
    """Fill in what a cpuset group of cgroup v1 lacks at first, without which nothing can enter it."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        file = group / name
        if file.exists() and not file.read_text().strip() and (group.parent / name).read_text().strip():
            file.write_text((group.parent / name).read_text())
