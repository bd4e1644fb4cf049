"""One lock a lab, held while it is put up, changed or taken down."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from lab.hosts.errors import LabError


@contextlib.contextmanager
def held(path: Path, busy: str | None) -> Iterator[None]:
    """Hold the lock file `path`; it is removed at the end, so that nothing of it is left.

    `busy` is what to say when someone else holds it; None waits for them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
            # Whoever held it may have removed the file since our open: then ours locks nothing.
            if _same_file(descriptor, path):
                break
        except BlockingIOError:
            os.close(descriptor)
            raise LabError(busy or str(path)) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)
