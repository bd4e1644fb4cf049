"""What the scheduler has learned, kept in a file: so that a restart measures nothing anew.

The file lies in the folder that systemd gives the unit (StateDirectory=). Without one nothing is kept, and
nothing breaks: a file that is missing, old or damaged counts as empty.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from drover_proxy.core.learned import Learned
from drover_proxy.drivers.log import Log
from drover_proxy.drivers.notify import given_folder

FILE = "learned.json"
FORMAT = 1


def state_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return the folder that outlives the process and the boot, if systemd made one."""
    return given_folder("STATE_DIRECTORY", environment)


class _Kept(msgspec.Struct):
    format: int
    learned: Learned


class Recall:
    """Reads the file at the start, and writes it after loads, off the event loop."""

    def __init__(self, log: Log, environment: Mapping[str, str] = os.environ) -> None:
        folder = state_folder(environment)
        self.path = folder / FILE if folder else None
        self._log = log
        self._waiting: Learned | None = None
        self._writing: asyncio.Task[None] | None = None

    def read(self) -> Learned:
        """Return what was kept; nothing when it can't be read."""
        if self.path is None or not self.path.exists():
            return Learned()
        try:
            kept = msgspec.json.decode(self.path.read_bytes(), type=_Kept)
        except (OSError, msgspec.MsgspecError) as error:
            self._log.warning("learned_unreadable", path=str(self.path), error=str(error))
            return Learned()
        return kept.learned if kept.format == FORMAT else Learned()

    def keep(self, learned: Learned) -> None:
        """Write it soon; of several in a row only the last."""
        if self.path is None:
            return
        self._waiting = learned
        if self._writing is None or self._writing.done():
            self._writing = asyncio.get_running_loop().create_task(self._write())

    async def finish(self) -> None:
        """Wait until all is written."""
        if self._writing is not None:
            await self._writing

    async def _write(self) -> None:
        while self._waiting is not None and self.path is not None:
            content = msgspec.json.encode(_Kept(FORMAT, self._waiting))
            self._waiting = None
            try:
                await asyncio.to_thread(_replace, self.path, content)
            except OSError as error:
                self._log.warning("learned_not_kept", path=str(self.path), error=str(error))


def _replace(path: Path, content: bytes) -> None:
    """Write beside, then rename: there is always a whole file. Two processes may be at it in a handover."""
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_bytes(content)
    part.replace(path)
