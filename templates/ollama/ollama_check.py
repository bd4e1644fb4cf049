#!/usr/bin/python3
"""Prove that every Ollama instance of this host runs as it was laid: one line for each thing that doesn't.

For each file in /etc/drover/ollama: the unit runs, its process has the settings of its unit and its file,
HTTP is answered in the version that `current` points to, and it found all of its GPUs when it started.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path("/etc/drover/ollama")
CURRENT = Path("/opt/drover/ollama/current")
# As systemctl prints a list of assignments: quoted as a shell would, when it must be.
ASSIGNMENT = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')


def run(*command: str) -> str:
    """Return what a command prints, '' when it fails."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def assignments(text: str) -> dict[str, str]:
    """Read systemctl's list of environment variables."""
    words = (re.sub(r"\\(.)", r"\1", quoted) if quoted else bare for quoted, bare in ASSIGNMENT.findall(text))
    return dict(word.partition("=")[::2] for word in words)


def file_settings(path: Path) -> dict[str, str]:
    """Read an instance's file."""
    lines = (line.strip() for line in path.read_text().splitlines())
    return dict(line.partition("=")[::2] for line in lines if line and not line.startswith("#"))


def environment(pid: str) -> dict[str, str]:
    """Return the environment of a running process."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(entry.partition("=")[::2] for entry in raw.split("\0") if entry)


def answered_version(address: str) -> str:
    """Return the version that the server gives, or why there is none."""
    try:
        with urllib.request.urlopen(f"http://{address}/api/version", timeout=10) as answer:
            return str(json.load(answer)["version"])
    except (urllib.error.URLError, OSError, ValueError, KeyError) as error:
        return f"no answer ({error})"


def gpus_found(invocation: str) -> int | None:
    """Return how many GPUs this start of the server found; None when the journal no longer tells."""
    lines = run("journalctl", "-o", "cat", f"_SYSTEMD_INVOCATION_ID={invocation}", "--no-pager", "-n", "2000")
    found = [line for line in lines.splitlines() if 'msg="inference compute"' in line]
    return sum("library=CUDA" in line for line in found) if found else None


def problems(path: Path) -> Iterator[str]:
    """Yield what doesn't hold of one instance."""
    unit = f"ollama@{path.stem}.service"
    wanted = file_settings(path)
    keys = ("ActiveState", "MainPID", "Environment", "InvocationID")
    shown = dict(
        line.partition("=")[::2] for line in run("systemctl", "show", unit, "-p", ",".join(keys)).splitlines()
    )
    if shown.get("ActiveState") != "active":
        yield f"{unit} is {shown.get('ActiveState', 'unknown')}"
        return
    actual = environment(shown["MainPID"])
    for name, value in {**assignments(shown["Environment"]), **wanted}.items():
        if actual.get(name) != value:
            yield f"{unit}: {name} is {actual.get(name)!r} in the process, {value!r} is wanted"
    version, installed = answered_version(wanted["OLLAMA_HOST"]), str(CURRENT.readlink())
    if version != installed:
        yield f"{unit}: {wanted['OLLAMA_HOST']} answers version {version}, {installed} is wanted"
        return
    expected, found = len(wanted["CUDA_VISIBLE_DEVICES"].split(",")), gpus_found(shown["InvocationID"])
    if found is not None and found != expected:
        yield f"{unit}: found {found} of its {expected} GPU(s) at its start, so models would run on the CPU"


def main() -> int:
    """Check all instances."""
    files = sorted(FOLDER.glob("*.env"))
    found = [problem for path in files for problem in problems(path)]
    if not files:
        found = [f"{FOLDER} holds no instance"]
    for problem in found:
        print(f"{problem}. Next: journalctl -u '{problem.partition(' ')[0].rstrip(':')}'", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
