"""Log lines in the form that Ollama writes them: slog's text handler on stderr, one line an event."""

from __future__ import annotations

import re
import sys
import time
from datetime import datetime, timezone

_BARE = re.compile(r"^[^\s=\"]+$")
_debug = False


def set_debug(on: bool) -> None:
    """Let debug lines through (OLLAMA_DEBUG) or not."""
    global _debug
    _debug = on


def _value(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if _BARE.match(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def write(level: str, source: str, message: str, **fields: object) -> None:
    """Write one line: `time=… level=INFO source=routes.go:1 msg="…" key=value`."""
    moment = datetime.fromtimestamp(time.time(), timezone.utc)
    stamp = f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z"
    pairs = "".join(f" {key}={_value(value)}" for key, value in fields.items())
    sys.stderr.write(f"time={stamp} level={level} source={source} msg={_value(message)}{pairs}\n")
    sys.stderr.flush()


def info(message: str, *, source: str = "server.go:1", **fields: object) -> None:
    """Write a line of level INFO."""
    write("INFO", source, message, **fields)


def warn(message: str, *, source: str = "server.go:1", **fields: object) -> None:
    """Write a line of level WARN."""
    write("WARN", source, message, **fields)


def error(message: str, *, source: str = "server.go:1", **fields: object) -> None:
    """Write a line of level ERROR."""
    write("ERROR", source, message, **fields)


def debug(message: str, *, source: str = "server.go:1", **fields: object) -> None:
    """Write a line of level DEBUG, when OLLAMA_DEBUG asks for it."""
    if _debug:
        write("DEBUG", source, message, **fields)


def request_line(status: int, seconds: float, client: str, method: str, path: str) -> None:
    """The access line that the real server's web framework prints to stdout."""
    moment = datetime.fromtimestamp(time.time(), timezone.utc)
    taken = f"{seconds:.6f}s" if seconds >= 1 else f"{seconds * 1000:.6f}ms"
    sys.stdout.write(
        f'[GIN] {moment:%Y/%m/%d - %H:%M:%S} | {status} | {taken:>13} | {client:>15} | {method:<8} "{path}"\n'
    )
    sys.stdout.flush()
