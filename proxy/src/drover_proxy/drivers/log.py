"""The log: one JSON object a line on stderr. Never a prompt, never a key, never an answer's text."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import Any, Literal, TextIO

import msgspec

Level = Literal["debug", "info", "warning", "error"]
RANK: dict[str, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class Log:
    """Writes lines of a level and above."""

    def __init__(self, level: Level = "info", stream: TextIO | None = None) -> None:
        self.level: Level = level
        self._stream = stream if stream is not None else sys.stderr

    def write(self, level: Level, event: str, **fields: Any) -> None:
        """Write one line: the time, the level, what happened, and fields that are cheap to search by."""
        if RANK[level] < RANK[self.level]:
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        line = {"time": stamp, "level": level, "event": event}
        line |= {key: value for key, value in fields.items() if value not in ("", None)}
        # A log that can't be written (a full disk, a closed pipe) must not stop what it tells about.
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(msgspec.json.encode(line, enc_hook=str).decode() + "\n")
            self._stream.flush()

    def debug(self, event: str, **fields: Any) -> None:
        """Write what only a developer wants to know."""
        self.write("debug", event, **fields)

    def info(self, event: str, **fields: Any) -> None:
        """Write what happened."""
        self.write("info", event, **fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Write what an operator should look at."""
        self.write("warning", event, **fields)

    def error(self, event: str, **fields: Any) -> None:
        """Write what went wrong."""
        self.write("error", event, **fields)
