"""Follows the keys file: read at the start, and again whenever it has changed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from drover_proxy.config.reader import ConfigError
from drover_proxy.guard.keys import KeyRing, keys_path, load_keys

LOOK_SECONDS = 1.0
"""How often is looked whether it has changed: one stat each."""

Stamp = tuple[str, int, int, int]
UNSEEN: Stamp = ("", 0, 0, 0)


class KeysFile:
    """The file that a configuration names."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._stamp: Stamp | None = UNSEEN

    def load(self) -> KeyRing:
        """Read it; ConfigError when it can't be used. Counts as seen either way."""
        # Before it is read: a change while it is read is a change.
        self._stamp = self._now()
        return load_keys(keys_path(self.name))

    def look_again(self) -> None:
        """Forget what was seen, so that it counts as changed."""
        self._stamp = UNSEEN

    def changed(self) -> bool:
        """Whether it is another file, or has other content, than when it was last read."""
        return self._now() != self._stamp

    def _now(self) -> Stamp | None:
        path: Path = keys_path(self.name)
        try:
            found = os.stat(path)  # noqa: PTH116 - Path.stat costs twice as much, and this runs for ever
        except OSError:
            return None
        return str(path), found.st_ino, found.st_size, found.st_mtime_ns


async def follow(
    file: Callable[[], KeysFile | None],
    apply: Callable[[KeyRing], None],
    failed: Callable[[ConfigError], None],
) -> None:
    """Tell of every change of the file, for ever; `file` says which one it is at the moment."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        followed = file()
        if followed is None or not followed.changed():
            continue
        try:
            # A long file takes a while to read, which no answer in flight should feel.
            ring = await asyncio.to_thread(followed.load)
        except ConfigError as error:
            failed(error)
            continue
        if followed is file():
            apply(ring)
