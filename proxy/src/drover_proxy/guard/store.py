"""Changes the keys file: makes keys, writes entries, and replaces the file whole."""

from __future__ import annotations

import fcntl
import grp
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from drover_proxy.guard.keys import read_keys

PREFIX = "drv_"
GROUP = "drover-proxy"
"""Of the account that the proxy runs under on a host, which has to read the file."""

Entry = dict[str, Any]


def new_key() -> str:
    """Make a key: a fixed prefix, so that leaks can be searched for, and 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def read_entries(path: Path) -> list[Entry]:
    """Return the entries as they stand in the file; none where there is no file. ConfigError if it is bad."""
    if not path.exists():
        return []
    content = path.read_text(encoding="utf-8")
    read_keys(content, str(path))
    # Dates stay text: what is written back must be what was read.
    entries: list[Entry] = yaml.load(content, Loader=yaml.BaseLoader)["keys"] or []  # noqa: S506
    return entries


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep a second command from changing the same file in between."""
    # The folder is locked, since the file itself is replaced.
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def write_entries(path: Path, entries: list[Entry]) -> None:
    """Replace a keys file whole; an existing one keeps its mode and owner, a new one is its owner's alone.

    Root makes a new one readable for the account that the proxy runs under, where there is one.
    """
    content = yaml.safe_dump({"keys": entries}, sort_keys=False, allow_unicode=True)
    read_keys(content, str(path))
    before = path.stat() if path.exists() else None
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
            if before:
                os.fchmod(fd, before.st_mode & 0o7777)
                if os.geteuid() == 0:
                    os.fchown(fd, before.st_uid, before.st_gid)
            elif os.geteuid() == 0:
                with suppress(KeyError):
                    os.fchown(fd, 0, grp.getgrnam(GROUP).gr_gid)
                    os.fchmod(fd, 0o640)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
