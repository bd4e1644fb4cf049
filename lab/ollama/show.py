"""What `ollama show`, `list` and `ps` print."""

from __future__ import annotations

import calendar
import re
import time
from typing import Any

from lab.ollama.gotext import human_bytes, human_time

_GAP = "    "


def table(header: list[str], rows: list[list[str]]) -> str:
    """Columns as wide as they need to be, with four blanks behind each."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "".join(cell.ljust(width) + _GAP for cell, width in zip(line, widths, strict=True)) for line in lines
    )


def unix_time(text: str) -> float:
    """Seconds of an RFC 3339 time."""
    match = re.match(r"(\d+-\d+-\d+T\d+:\d+:\d+)(\.\d+)?(Z|[+-]\d+:\d+)", text)
    if match is None:
        return 0.0
    seconds = calendar.timegm(time.strptime(match[1], "%Y-%m-%dT%H:%M:%S"))
    zone = 0
    if match[3] != "Z":
        hours, minutes = match[3][1:].split(":")
        zone = (int(hours) * 60 + int(minutes)) * 60 * (-1 if match[3][0] == "-" else 1)
    return seconds - zone + float(match[2] or 0)


def models(entries: list[dict[str, Any]], prefix: str) -> str:
    """`ollama list`."""
    now = time.time()
    rows = [
        [
            entry["name"],
            entry["digest"][:12],
            human_bytes(entry["size"]),
            human_time(unix_time(entry["modified_at"]), now),
        ]
        for entry in entries
        if entry["name"].lower().startswith(prefix.lower())
    ]
    return table(["NAME", "ID", "SIZE", "MODIFIED"], rows)


def running(entries: list[dict[str, Any]], prefix: str) -> str:
    """`ollama ps`."""
    now = time.time()
    rows = []
    for entry in entries:
        if not entry["name"].startswith(prefix):
            continue
        expires = unix_time(entry["expires_at"])
        until = "Stopping..." if expires < now else human_time(expires, now)
        rows.append([entry["name"], entry["digest"][:12], human_bytes(entry["size"]), processor(entry),
                     str(entry.get("context_length", 0)), until])  # fmt: skip
    return table(["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"], rows)


def processor(entry: dict[str, Any]) -> str:
    """Where a model's layers are."""
    size, vram = entry["size"], entry["size_vram"]
    if vram == 0:
        return "100% CPU"
    if vram == size:
        return "100% GPU"
    if vram > size or size == 0:
        return "Unknown"
    cpu = round((size - vram) / size * 100)
    return f"{cpu}%/{100 - cpu}% CPU/GPU"


def model(answer: dict[str, Any], *, verbose: bool) -> str:
    """`ollama show`."""
    info, details = answer.get("model_info") or {}, answer["details"]
    architecture = info.get("general.architecture", details.get("family", ""))
    rows = [["architecture", architecture], ["parameters", details.get("parameter_size", "")]]
    for title, key in (("context length", "context_length"), ("embedding length", "embedding_length")):
        if f"{architecture}.{key}" in info:
            rows.append([title, str(info[f"{architecture}.{key}"])])
    rows.append(["quantization", details.get("quantization_level", "")])
    parts = [_section("Model", rows)]
    if capabilities := answer.get("capabilities"):
        parts.append(_section("Capabilities", [[capability] for capability in capabilities]))
    if parameters := answer.get("parameters"):
        parts.append(_section("Parameters", [line.split(None, 1) for line in parameters.splitlines()]))
    if verbose:
        metadata = [[key, str(value)] for key, value in sorted(info.items())]
        parts.append(_section("Metadata", metadata))
        tensors = [
            [t["name"], t["type"], str(t["shape"]).replace(",", "")] for t in answer.get("tensors", [])
        ]
        parts.append(_section("Tensors", tensors))
    for title, key in (("System", "system"), ("License", "license")):
        if text := answer.get(key):
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            more = [["..."]] if len(lines) > 2 else []
            parts.append(_section(title, [[line] for line in lines[:2]] + more))
    return "\n".join(parts)


def _section(title: str, rows: list[list[str]]) -> str:
    columns = max((len(row) for row in rows), default=1)
    rows = [row + [""] * (columns - len(row)) for row in rows]
    body = table(rows[0], rows[1:]) if rows else ""
    return f"  {title}\n" + "\n".join(_GAP + line for line in body.splitlines()) + "\n"
