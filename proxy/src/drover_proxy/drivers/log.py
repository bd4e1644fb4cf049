"""The log: one JSON object a line on stderr. Never a prompt, never a key, never an answer's text."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from typing import Any, Final, Literal, TextIO

import msgspec

Level = Literal["debug", "info", "warning", "error"]
RANK: Final[dict[str, int]] = {"debug": 10, "info": 20, "warning": 30, "error": 40}

GATHER_SECONDS = 0.1
"""How long lines of requests wait for others to be written with: a system call a line costs more than it."""
GATHER_LINES: Final = 1000
WALL_CLOCK: Final = time.time


class Log:
    """Writes lines of a level and above."""

    def __init__(self, level: Level = "info", stream: TextIO | None = None) -> None:
        self.level: Level = level
        self._stream = stream if stream is not None else sys.stderr
        self._gathered: list[str] = []
        self._second = self._stamped_ms = -1
        self._day_time = self._stamp = ""

    def stamp(self) -> str:
        """Give the time as the log writes it, in UTC: 2027-01-31T12:00:00.000Z."""
        now_ms = int(WALL_CLOCK() * 1000)
        if now_ms != self._stamped_ms:
            self._stamped_ms = now_ms
            second = now_ms // 1000
            if second != self._second:
                self._second = second
                self._day_time = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._stamp = f"{self._day_time}.{str(now_ms % 1000 + 1000)[1:]}Z"  # ":03d" is slow
        return self._stamp

    def tells(self, level: Level) -> bool:
        """Say whether lines of this level are written."""
        return RANK[level] >= RANK[self.level]

    def write(self, level: Level, event: str, **fields: Any) -> None:
        """Write one line: the time, the level, what happened, and fields that are cheap to search by."""
        if not self.tells(level):
            return
        line = {"time": self.stamp(), "level": level, "event": event}
        line |= {key: value for key, value in fields.items() if value not in ("", None)}
        self._gathered.append(msgspec.json.encode(line, enc_hook=str).decode())
        self.flush()

    def gather(self, line: str) -> None:
        """Take the line of a request, made already; it is written with others, in a moment."""
        gathered = self._gathered
        gathered.append(line)
        if len(gathered) == 1:
            try:
                asyncio.get_running_loop().call_later(GATHER_SECONDS, self.flush)
            except RuntimeError:  # nothing runs that could write it later
                self.flush()
        elif len(gathered) >= GATHER_LINES:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered."""
        if not self._gathered:
            return
        lines = "\n".join(self._gathered) + "\n"
        self._gathered.clear()
        # A log that can't be written (a full disk, a closed pipe) must not stop what it tells about.
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(lines)
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
