"""What is mounted where, from /proc/self/mountinfo, and how to get rid of it."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

from lab.hosts.errors import LabError

MOUNTINFO = Path("/proc/self/mountinfo")
MNT_DETACH = 2
_ESCAPE = re.compile(r"\\([0-7]{3})")


def parse_mountinfo(text: str) -> list[Path]:
    """Return the mount points of a mountinfo file in the order in which they were mounted."""
    points = []
    for line in text.splitlines():
        fields = line.split(" ")
        if len(fields) > 4:
            points.append(Path(_ESCAPE.sub(lambda found: chr(int(found[1], 8)), fields[4])))
    return points


def mounted_under(folder: Path) -> list[Path]:
    """Return what is mounted at or under a folder, in the order in which it was mounted."""
    return [point for point in parse_mountinfo(MOUNTINFO.read_text()) if point.is_relative_to(folder)]


def unmount_under(folder: Path) -> int:
    """Unmount all that is mounted at or under a folder, last first; return how many there were."""
    points = mounted_under(folder)
    for point in reversed(points):
        _unmount(point)
    return len(points)


def _unmount(point: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    # Lazily: whatever still holds a file of it must not keep the rest from being removed.
    if libc.umount2(os.fsencode(point), MNT_DETACH) != 0:
        number = ctypes.get_errno()
        raise LabError(f"unmount {point}: {os.strerror(number)}\n  next: see who uses it: fuser -vm {point}")
