#!/usr/bin/python3
"""Bring this host's models to what /etc/drover/models.json says, by Ollama's API, and only where they differ.

models.py plan            print as JSON which models differ, and in what
models.py apply [NAME]    pull and create them (or the named one); one line for each step
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WANTED = Path(os.environ.get("DROVER_MODELS", "/etc/drover/models.json"))
# What was made from which definition, so that a later change of either is seen.
MADE = Path(os.environ.get("DROVER_MODELS_MADE", "/var/lib/drover/models.json"))
SILENCE_SECONDS = 900  # between two lines of an answer; a part that stalls is tried again by Ollama itself
PROGRESS_SECONDS = 5


class ModelError(Exception):
    """A model can't be made as it is wanted; the message says why."""


class Ollama:
    """The calls that are needed of one server."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        """Yield the JSON lines of an answer; an error, also one inside a 200, is raised."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data=data, method=method, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=SILENCE_SECONDS) as answer:
                for line in answer:
                    if line.strip():
                        event = json.loads(line)
                        if "error" in event:
                            raise ModelError(event["error"])
                        yield event
        except urllib.error.HTTPError as error:
            raise ModelError(f"{method} {path}: {error.code} {_message(error)}") from error
        except (urllib.error.URLError, OSError) as error:
            raise ModelError(f"{self.url} doesn't answer ({error})") from error

    def digests(self) -> dict[str, str]:
        """Return the digest of each model by its full name."""
        for answer in self.call("GET", "/api/tags"):
            return {full(model["name"]): model["digest"] for model in answer["models"]}
        return {}

    def show(self, name: str) -> dict[str, Any]:
        """Return what the server says of a model."""
        return next(self.call("POST", "/api/show", {"model": name}))


def _message(error: urllib.error.HTTPError) -> str:
    text = error.read().decode(errors="replace").strip()
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return text


def full(name: str) -> str:
    """Return a name with its tag."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def definition(model: dict[str, Any]) -> str:
    """Return a digest of what a model is made from."""
    parts = {key: model[key] for key in ("source", "parameters", "system", "template")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def shown_parameters(text: str) -> dict[str, list[str]]:
    """Read the parameters of /api/show: lines in any order, a name once for each of its values."""
    found: dict[str, list[str]] = {}
    for line in (text or "").splitlines():
        name, _, value = line.strip().partition(" ")
        value = value.strip()
        if value.startswith('"'):
            try:
                value = json.loads(value)
            except ValueError:
                value = value.strip('"')
        if name:
            found.setdefault(name, []).append(str(value))
    return found


def same(wanted: object, shown: list[str]) -> bool:
    """Say whether the shown values are the wanted one, whatever their order and notation."""
    if isinstance(wanted, list):
        return sorted(map(str, wanted)) == sorted(shown)
    if len(shown) != 1:
        return False
    if isinstance(wanted, bool):
        return shown[0].lower() == str(wanted).lower()
    if isinstance(wanted, (int, float)):
        try:
            # Ollama keeps single precision.
            return abs(float(shown[0]) - wanted) <= 1e-6 * max(1.0, abs(wanted))
        except ValueError:
            return False
    return shown[0] == str(wanted)


def difference(model: dict[str, Any], show: dict[str, Any]) -> str:
    """Return the first thing in which a model isn't what is wanted, '' when it is."""
    shown = shown_parameters(show.get("parameters", ""))
    for name, wanted in model["parameters"].items():
        if not same(wanted, shown.get(name, [])):
            return f"{name} is {', '.join(shown.get(name, [])) or 'not set'}, {wanted} is wanted"
    for name in ("system", "template"):
        if model[name] and show.get(name, "") != model[name]:
            return f"its {name} differs"
    return ""


def why(model: dict[str, Any], digests: dict[str, str], made: dict[str, Any], server: Ollama) -> str:
    """Return why a model must be made, '' when it is as wanted."""
    name = full(model["name"])
    if name not in digests:
        return "it isn't there"
    known = made.get(name)
    if known and known["definition"] != definition(model):
        return "its definition changed"
    if known and known["digest"] != digests[name]:
        return "somebody else changed it"
    return difference(model, server.show(name))


def pull(server: Ollama, source: str, *, insecure: bool) -> None:
    """Pull, and print a line for each step and every few seconds."""
    last, printed = "", 0.0
    body = {"model": source, "insecure": insecure, "stream": True}
    succeeded = False
    for event in server.call("POST", "/api/pull", body):
        status, total = event.get("status", ""), event.get("total", 0)
        succeeded = succeeded or status == "success"
        now = time.monotonic()
        if status != last or now - printed >= PROGRESS_SECONDS:
            done = event.get("completed", 0)
            part = f" {100 * done // total} % of {total / 1e9:.2f} GB" if total else ""
            print(f"{source}: {status}{part}", flush=True)
            last, printed = status, now
    if not succeeded:
        raise ModelError("the pull ended without success")


def make(server: Ollama, model: dict[str, Any]) -> None:
    """Pull a model's source and create the model; what was there before serves until the last step."""
    name, source = full(model["name"]), full(model["source"])
    there_before = source in server.digests()
    pull(server, model["source"], insecure=model["insecure"])
    changes = {key: model[key] for key in ("parameters", "system", "template") if model[key]}
    if changes:
        print(f"{name}: creating it", flush=True)
        body = {"model": name, "from": model["source"], **changes, "stream": False}
        for _event in server.call("POST", "/api/create", body):
            pass
    elif source != name:
        for _event in server.call("POST", "/api/copy", {"source": model["source"], "destination": name}):
            pass
    if source != name and not there_before:
        # Only the name goes; the model holds on to the blobs.
        for _event in server.call("DELETE", "/api/delete", {"model": model["source"]}):
            pass


def note(name: str, model: dict[str, Any], digest: str) -> None:
    """Remember what a model was made from."""
    made = {**load(MADE), name: {"definition": definition(model), "digest": digest}}
    MADE.parent.mkdir(parents=True, exist_ok=True)
    new = MADE.with_name(f".{MADE.name}.{os.getpid()}")
    new.write_text(json.dumps(made, indent=2, sort_keys=True) + "\n")
    new.replace(MADE)


def load(path: Path) -> dict[str, Any]:
    """Read a JSON file; an absent or damaged one holds nothing."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def plan(server: Ollama, models: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Return which models must be made, and why."""
    digests, made = server.digests(), load(MADE)
    found = ((model["name"], why(model, digests, made, server)) for model in models)
    return [{"name": name, "why": reason} for name, reason in found if reason]


def apply(server: Ollama, models: list[dict[str, Any]]) -> None:
    """Make the models that differ, one after the other."""
    reasons = {entry["name"]: entry["why"] for entry in plan(server, models)}
    for model in models:
        if model["name"] not in reasons:
            continue
        print(f"{model['name']}: {reasons[model['name']]}", flush=True)
        try:
            make(server, model)
            left = difference(model, server.show(model["name"]))
        except ModelError as error:
            raise ModelError(f"{model['name']}: {error}") from error
        if left:
            raise ModelError(f"{model['name']}: was made, but {left}")
        name = full(model["name"])
        note(name, model, server.digests()[name])


def main(arguments: list[str]) -> int:
    """Plan or apply."""
    if not arguments or arguments[0] not in {"plan", "apply"}:
        print(__doc__, file=sys.stderr)
        return 2
    wanted = load(WANTED)
    models = [model for model in wanted["models"] if not arguments[1:] or model["name"] in arguments[1:]]
    server = Ollama(wanted["api"])
    try:
        if arguments[0] == "plan":
            print(json.dumps(plan(server, models)))
            return 0
        # Two at once would pull the same thing twice.
        MADE.parent.mkdir(parents=True, exist_ok=True)
        with MADE.with_name(f".{MADE.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            apply(server, models)
    except ModelError as error:
        print(f"models.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
