#!/usr/bin/python3
"""Load the models that shall be warm, through the proxy, one after the other.

warmup.py load     load what /etc/drover/warmup.json names; exit code 1 when one can't be loaded
warmup.py check    exit code 0 when that was done since the Ollama instances were last started
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

WANTED = Path(os.environ.get("DROVER_WARMUP", "/etc/drover/warmup.json"))
# In a folder that belongs to the unit, and goes with it.
DONE = Path(os.environ.get("DROVER_WARMED", "/run/drover-warmup/done.json"))
STARTED = Path(os.environ.get("DROVER_STARTED", "/run/drover/started"))
READY_SECONDS = 300
LOAD_SECONDS = 3600
SETTLE_SECONDS = 30
SETTINGS = Path(os.environ.get("DROVER_INSTANCES", "/etc/drover/ollama"))


def call(url: str, body: dict[str, Any] | None, timeout_seconds: float) -> tuple[int, dict[str, Any]]:
    """Return status and JSON of an answer; status 0 and the reason when there is none."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout_seconds) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        try:
            return error.code, json.load(error)
        except ValueError:
            return error.code, {"error": str(error)}
    except (urllib.error.URLError, OSError, ValueError) as error:
        return 0, {"error": str(error)}


def instances() -> dict[str, int]:
    """Return when each Ollama instance was last started, by the notes that their units make."""
    return {note.name: note.stat().st_mtime_ns for note in STARTED.glob("ollama@*.service")}


def load(wanted: dict[str, Any]) -> int:
    """Wait for the proxy, then have it load the models."""
    end = time.monotonic() + READY_SECONDS
    while True:
        status, answer = call(f"{wanted['admin']}/readyz", None, 10)
        if status == 200:
            break
        if time.monotonic() >= end:
            print(
                f"warmup: the proxy isn't ready: {json.dumps(answer)}. Next: journalctl -u drover-proxy",
                file=sys.stderr,
            )
            return 1
        time.sleep(0.5)
    running = instances()
    failed = False
    for model in wanted["models"]:
        status, result = warm(wanted["admin"], model)
        if status == 200:
            print(
                f"warmup: {model} is warm on {result.get('instance')} after {result.get('seconds')} s",
                flush=True,
            )
        else:
            failed = True
            why = result.get("message") or result.get("error") or "no reason given"
            print(f"warmup: {model} could not be loaded: {why}", file=sys.stderr, flush=True)
    if failed:
        return 1
    new = DONE.with_name(f".{DONE.name}.new")
    new.write_text(json.dumps({"models": wanted["models"], "instances": running}))
    new.replace(DONE)
    return 0


def warm(admin: str, model: str) -> tuple[int, dict[str, Any]]:
    """Have the proxy load a model, and see that Ollama lists it: the proxy may not know yet of a restart."""
    end = time.monotonic() + SETTLE_SECONDS
    while True:
        status, answer = call(f"{admin}/drover/v1/warm", {"models": [model]}, LOAD_SECONDS)
        result = (answer.get("models") or [answer])[0]
        if status != 200 or is_loaded(model, str(result.get("instance"))) or time.monotonic() >= end:
            return status, result
        time.sleep(0.5)


def is_loaded(model: str, instance: str) -> bool:
    """Ask the instance itself, at the address in its file."""
    try:
        lines = (SETTINGS / f"{instance}.env").read_text().splitlines()
    except OSError:
        return True  # an instance that isn't ours to ask
    address = next((line.partition("=")[2] for line in lines if line.startswith("OLLAMA_HOST=")), "")
    _status, answer = call(f"http://{address}/api/ps", None, 10)
    names = {entry["name"] for entry in answer.get("models") or []}
    return model in names or f"{model}:latest" in names


def check(wanted: dict[str, Any]) -> int:
    """Compare what was warmed, and where, with what runs now."""
    try:
        done = json.loads(DONE.read_text())
    except (OSError, ValueError):
        done = {}
    if done == {"models": wanted["models"], "instances": instances()}:
        return 0
    print(
        "warmup: not done since the instances were last started. Next: journalctl -u drover-warmup",
        file=sys.stderr,
    )
    return 1


def main(arguments: list[str]) -> int:
    """Load or check."""
    commands = {"load": load, "check": check}
    if len(arguments) != 1 or arguments[0] not in commands:
        print(__doc__, file=sys.stderr)
        return 2
    return commands[arguments[0]](json.loads(WANTED.read_text()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
