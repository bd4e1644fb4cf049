"""Keeps the signed requests that were taken over a reboot of the host: in the state folder, on the disk.

What is taken goes into the runtime folder at once (replay.py), where a write waits for nothing and which a
reboot empties. From there on it counts for every process of this boot. Once a second what came since is
written to the disk as well, by a thread, so that no answer waits for it. What a power cut can take with it is
that second.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

PREFIX = "signed-"
GATHER_SECONDS = 1.0
"""How long what was taken waits to be written: a disk is asked once, and not for each."""


class Lasting:
    """The files of one state folder: records by half minute, as in the runtime folder."""

    def __init__(self, folder: Path, failed: Callable[[OSError], None]) -> None:
        self._folder = folder
        self._failed = failed
        self._mute = False
        self._past = 0
        self._waiting: list[tuple[int, bytes]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None

    def read(self) -> dict[int, bytes]:
        """Return the records that are there, by half minute; OSError where that can't be known.

        All of them, whatever the clock says: it may be wrong until it is set over the network.
        """
        if not os.access(self._folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{self._folder} can't be written")
        return {number: file.read_bytes() for number, file in numbered(self._folder).items()}

    def add(self, number: int, record: bytes) -> None:
        """Write a record soon."""
        self._waiting.append((number, record))
        if self._timer is None and self._writing is None:
            self._timer = asyncio.get_running_loop().call_later(GATHER_SECONDS, self._begin)

    def forget(self, past: int) -> None:
        """Keep nothing of the half minutes before this one."""
        self._past = past
        self._waiting = [one for one in self._waiting if one[0] >= past]

    async def finish(self) -> None:
        """Write what waits, now."""
        while self._timer is not None or self._writing is not None:
            if self._timer is not None:
                self._begin()
            if self._writing is not None:
                await asyncio.wait({self._writing})

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._writing = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        records, self._waiting = self._waiting, []
        try:
            await asyncio.to_thread(self._store, records, self._past)
        except OSError as error:
            if not self._mute:
                self._failed(error)
            self._mute = True
        self._writing = None
        if self._waiting:
            self._timer = asyncio.get_running_loop().call_later(GATHER_SECONDS, self._begin)

    def _store(self, records: list[tuple[int, bytes]], past: int) -> None:
        known = numbered(self._folder)
        for number in {number for number, _ in records}:
            path = self._folder / f"{PREFIX}{number}"
            file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                new = [record for which, record in records if which == number]
                half = os.fstat(file).st_size % len(new[0])  # of a record that a power cut has torn
                os.write(file, bytes(len(new[0]) - half if half else 0) + b"".join(new))
                os.fsync(file)
            finally:
                os.close(file)
        if {number for number, _ in records} - known.keys():
            _sync_names(self._folder)
        for number, file_of in known.items():
            if number < past:
                file_of.unlink(missing_ok=True)  # another process may have been faster


def numbered(folder: Path) -> dict[int, Path]:
    """Return the files of a folder by their half minutes."""
    found = {file.name.removeprefix(PREFIX): file for file in folder.glob(f"{PREFIX}*")}
    return {int(ending): file for ending, file in found.items() if ending.isdecimal() and ending.isascii()}


def _sync_names(folder: Path) -> None:
    """Have the names of new files on the disk, too."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
