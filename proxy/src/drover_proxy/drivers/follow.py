"""Follows files while the proxy runs: they are read again whenever one of them has changed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from drover_proxy.config.reader import ConfigError

LOOK_SECONDS = 1.0
"""How often is looked whether something has changed: one stat a file."""

T = TypeVar("T")
Stamp = tuple[str, int, int, int]


class Followed(Generic[T]):
    """Files that are read together, and come to one thing."""

    settles = False
    """They change one after the other: a change counts when the next look finds no other."""

    def __init__(self) -> None:
        self.readings = 0
        self._read: tuple[Stamp | None, ...] = ()
        self._looked: tuple[Stamp | None, ...] = ()

    def paths(self) -> tuple[Path, ...]:
        """Say where they are; that may change, too."""
        raise NotImplementedError

    def read(self) -> T:
        """Read them; ConfigError when they can't be used."""
        raise NotImplementedError

    def load(self) -> T:
        """Read them, and count them as seen whether they can be used or not."""
        self.readings += 1
        self._read = self._now()  # before they are read: a change while they are is a change
        return self.read()

    def look_again(self) -> None:
        """Forget what was seen, so that they count as changed."""
        self._read = ()

    def changed(self) -> bool:
        """Whether they are other files, or have other content, than when they were last read."""
        before, self._looked = self._looked, self._now()
        return self._looked != self._read and (not self.settles or self._looked == before)

    def _now(self) -> tuple[Stamp | None, ...]:
        return tuple(map(_stamp, self.paths()))


def _stamp(path: Path) -> Stamp | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - Path.stat costs twice as much, and this runs for ever
    except OSError:
        return None
    return str(path), found.st_ino, found.st_size, found.st_mtime_ns


async def follow(
    source: Callable[[], Followed[T] | None],
    apply: Callable[[T], None],
    failed: Callable[[ConfigError], None],
) -> None:
    """Tell of every change, for ever; `source` says what is followed at the moment."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        followed = source()
        if followed is None or not followed.changed():
            continue
        reading = followed.readings + 1
        try:
            # A long file takes a while to read, which no answer in flight should feel.
            value = await asyncio.to_thread(followed.load)
        except ConfigError as error:
            failed(error)
            continue
        if followed is not source():
            continue
        if followed.readings == reading:
            apply(value)
        else:  # a reload read it meanwhile, and nobody knows which of the two has the later content
            followed.look_again()
