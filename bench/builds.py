"""The builds of the proxy that take part: the one that hosts get, and the interpreted one beside it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

from bench.processes import BenchError
from deploys.lib import compiled
from drover.errors import DroverError

COMPILED, INTERPRETED = "compiled", "interpreted"


@dataclass(frozen=True)
class Build:
    """One build of the proxy."""

    folder: Path
    """For PYTHONPATH."""
    kind: str
    """What the program itself says that it is."""
    why: str = ""
    """Why it is not the compiled one."""


def interpreted(python: Path, sources: Path, why: str = "") -> Build:
    """Return the sources as they are."""
    return Build(sources, told(python, sources), why)


def deployed(python: Path, sources: Path, into: Path) -> Build:
    """Return what hosts get: the compiled proxy, and the interpreted one where that can't be made here.

    Args:
        python: What runs it.
        sources: The folder of drover_proxy.
        into: Where the compiled one is unpacked.
    """
    if os.environ.get(compiled.VARIABLE) == "0":
        return interpreted(python, sources, f"{compiled.VARIABLE}=0")
    version = "import sys; print('%d.%d' % sys.version_info[:2])"
    if reason := compiled.lacking(_said(python, "-c", version), platform.machine()):
        return interpreted(python, sources, reason)
    try:
        folder = _unpacked(into)
    except DroverError as error:
        return interpreted(python, sources, str(error))
    return Build(folder, told(python, folder))


def _unpacked(into: Path) -> Path:
    """Unpack the compiled wheel, once for its sources."""
    wheel = compiled.wheel()
    folder = into / wheel.parent.name
    if not folder.is_dir():
        for old in into.glob("compiled-*"):
            shutil.rmtree(old, ignore_errors=True)
        new = into / "compiled.new"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(new)
        new.rename(folder)
    return folder


def told(python: Path, folder: Path) -> str:
    """Ask the program which build it is: "drover-proxy 0.1.0 (compiled)"."""
    said = _said(python, "-m", "drover_proxy", "--version", PYTHONPATH=str(folder))
    for kind in (COMPILED, INTERPRETED):
        if said.endswith(f"({kind})"):
            return kind
    raise BenchError(f"the proxy doesn't say which build it is: {said!r}")


def _said(python: Path, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [str(python), *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchError(f"{python.name} {' '.join(arguments)}: {done.stderr.strip()[-600:]}")
    return done.stdout.strip()
