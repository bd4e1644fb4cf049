"""The `ollama` command."""

from __future__ import annotations

import sys

from lab.ollama.config import FatalError


def main(arguments: list[str]) -> int:
    """Run a command; returns the exit code."""
    try:
        if arguments[:1] == ["serve"]:
            from lab.ollama import server  # noqa: PLC0415 - the client needs none of it

            return server.main()
    except FatalError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    return 1
