"""Fuzz one target with coverage as its guide: `python -m tests.fuzz TARGET [libFuzzer's options] [folders]`.

Run by `make fuzz`, in an environment that has atheris. A finding is written to build/fuzz as `crash-...`.
"""

from __future__ import annotations

import importlib
import sys

import atheris


def main() -> None:
    """Instrument the proxy, then hand over to libFuzzer."""
    target = sys.argv.pop(1)
    with atheris.instrument_imports(include=["drover_proxy"]):
        check = importlib.import_module(f"tests.fuzz.target_{target}").check
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


main()
