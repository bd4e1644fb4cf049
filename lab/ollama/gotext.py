"""How Go writes and reads things: durations, times, sizes, quoted strings. Ollama's texts depend on it."""

from __future__ import annotations

import json
import math
import re
from datetime import datetime, timedelta, timezone

FOREVER_SECONDS = 9223372036.854775  # Go's largest duration, 292 years: what a negative keep_alive becomes

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)")


def parse_duration(text: str) -> float:
    """Seconds of a Go duration such as `1h30m`; ValueError with Go's own words otherwise."""
    rest = text.lstrip("+-")
    sign = -1.0 if text.startswith("-") else 1.0
    if rest == "0":
        return 0.0
    seconds, at = 0.0, 0
    for match in _DURATION.finditer(rest):
        if match.start() != at:
            break
        seconds += float(match[1]) * _UNITS[match[2]]
        at = match.end()
    if at == len(rest) and rest:
        return sign * seconds
    if re.fullmatch(r"\d+\.?\d*", rest):
        raise ValueError(f"time: missing unit in duration {quoted(text)}")
    raise ValueError(f"time: invalid duration {quoted(text)}")


def keep_alive_seconds(value: object) -> float | None:
    """A request's `keep_alive`: a number of seconds or a Go duration; negative means forever, null unset."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        kind = {bool: "bool", list: "[]interface {}"}.get(type(value), "map[string]interface {}")
        raise ValueError(f"Unsupported type: '{kind}'")  # noqa: TRY004 - one kind of error for a bad value
    seconds = parse_duration(value) if isinstance(value, str) else float(value)
    return FOREVER_SECONDS if seconds < 0 else seconds


def go_duration(seconds: float) -> str:
    """A duration as Go prints it: `5m0s`, `1.5s`, `250ms`."""
    if seconds == 0:
        return "0s"
    if seconds < 0:
        return "-" + go_duration(-seconds)
    if seconds < 1:
        unit, factor = ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6) if seconds >= 1e-6 else ("ns", 1e9)
        return f"{seconds * factor:.6f}".rstrip("0").rstrip(".") + unit
    minutes, rest = divmod(seconds, 60)
    text = f"{rest:.9f}".rstrip("0").rstrip(".") + "s"
    hours, minutes = divmod(int(minutes), 60)
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text


def timestamp(unix_seconds: float) -> str:
    """RFC 3339 with nanoseconds in UTC, as in `created_at`; years past Python's reach do not occur."""
    whole = math.floor(unix_seconds)
    moment = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=whole)
    nanoseconds = int((unix_seconds - whole) * 1e9)
    fraction = f".{nanoseconds:09d}".rstrip("0") if nanoseconds else ""
    return f"{moment:%Y-%m-%dT%H:%M:%S}{fraction}Z"


def quoted(text: str) -> str:
    """A string as Go's %q prints it."""
    return json.dumps(text, ensure_ascii=False)


def gibibytes(size_bytes: float) -> str:
    """`24.0 GiB`, as Ollama's log prints memory."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{int(size_bytes)} B"


def human_bytes(size_bytes: int) -> str:
    """`2.0 GB`, as `ollama list` prints sizes: powers of ten, three significant figures."""
    value, unit = float(size_bytes), "B"
    for name in ("KB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, name
    if unit == "B":
        return f"{size_bytes} B"
    if value >= 10:
        return f"{int(value)} {unit}"
    if value != math.trunc(value):
        return f"{value:.1f} {unit}"
    return f"{int(value)} {unit}"


def human_number(count: int) -> str:
    """`3.2B`, as a model's parameter size is shown."""
    if count >= 1_000_000_000:
        billions = count / 1e9
        return f"{billions:.0f}B" if billions == int(billions) else f"{billions:.1f}B"
    if count >= 1_000_000:
        millions = count / 1e6
        return f"{millions:.0f}M" if millions == int(millions) else f"{millions:.2f}M"
    if count >= 1_000:
        return f"{count / 1e3:.0f}K"
    return str(count)


def human_time(unix_seconds: float, now: float, zero: str = "Never") -> str:
    """`2 minutes ago` or `4 minutes from now`, as the command line prints times."""
    if unix_seconds <= 0:
        return zero
    delta = now - unix_seconds
    if int(int(delta / 3600) / 24 / 365) < -20:
        return "Forever"
    words = _human_duration(abs(delta))
    return f"{words} ago" if delta >= 0 else f"{words} from now"


def _human_duration(seconds: float) -> str:  # noqa: PLR0911 - a ladder of units
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    minutes = whole // 60
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = round(seconds / 3600)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    days = hours // 24
    if days < 14:
        return f"{days} days"
    if days < 60:
        return f"{days // 7} weeks"
    if days < 730:
        return f"{days // 30} months"
    return f"{days // 365} years"
