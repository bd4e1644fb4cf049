"""The program: `llama-server` as Ollama calls it."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from lab.ollama.config import Knobs
from lab.ollama.http import Connection
from lab.standin.devices import banner, discover, list_devices, say
from lab.standin.load import load
from lab.standin.routes import Routes

_FLAGS = {
    "--no-webui", "--offline", "--verbose", "--list-devices", "--embedding", "--embeddings", "--no-jinja",
    "--no-mmproj-offload", "--context-shift", "--no-log-prefix", "--no-log-timestamps", "--version",
    "--spec-draft-backend-sampling",
}  # fmt: skip
_PROGRESS_SECONDS = 0.25


def parse(words: list[str]) -> dict[str, str]:
    """The arguments by name; a flag without a value stands as `1`."""
    found: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        if word in _FLAGS:
            found[word] = "1"
        elif word.startswith("-"):
            found[word] = next(rest, "")
        else:
            say(f"error: invalid argument: {word}")
            sys.exit(1)
    return found


async def _serve(arguments: dict[str, str], routes: Routes, seconds: float) -> None:
    connections: set[Connection] = set()
    host, port = arguments.get("--host", "127.0.0.1"), int(arguments["--port"])
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: Connection(routes.handle, connections), host, port, backlog=512)
    while seconds > 0:
        await asyncio.sleep(min(seconds, _PROGRESS_SECONDS))
        seconds -= _PROGRESS_SECONDS
        sys.stderr.write(".")
        sys.stderr.flush()
    say("main: model loaded")
    say(f"main: server is listening on http://{host}:{port} - starting the main loop")
    routes.ready = True
    await asyncio.Event().wait()


def main() -> None:
    """Do what the arguments say."""
    arguments = parse(sys.argv[1:])
    if "--version" in arguments:
        print("version: 0 (stand-in)")
    elif "--list-devices" in arguments:
        list_devices()
    elif "--model" not in arguments:
        discover()
    else:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123,SIM115 - access lines are not llama.cpp's
        knobs = Knobs.load(dict(os.environ))
        loaded = load(arguments, banner())
        size = Path(arguments["--model"]).stat().st_size
        seconds = max(knobs.load_seconds_min, size / knobs.disk_bytes_per_second)
        asyncio.run(_serve(arguments, Routes(loaded, knobs, embedding="--embedding" in arguments), seconds))


if __name__ == "__main__":
    main()
