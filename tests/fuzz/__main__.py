"""Fuzz one target with coverage as its guide: `python -m tests.fuzz TARGET [libFuzzer's options] [folders]`.

Run by `make fuzz`, in an environment that has atheris. A finding is written to build/fuzz as `crash-...`.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import atheris


def main() -> None:
    """Instrument the proxy, lay the seeds into the first folder, then hand over to libFuzzer."""
    target = sys.argv.pop(1)
    with atheris.instrument_imports(include=["drover_proxy"]):
        module = importlib.import_module(f"tests.fuzz.target_{target}")
    folder = next((Path(word) for word in sys.argv[1:] if Path(word).is_dir()), None)
    for number, data in enumerate(module.seeds() if folder is not None else ()):
        (folder / f"seed-{number}").write_bytes(data)
    atheris.Setup(sys.argv, module.check)
    atheris.Fuzz()


main()
