"""The proxy's compiled wheel: whether this machine can make it for a host, and making it, once.

It holds machine code for one minor version of Python, one architecture, and a C library no older than the one
it was linked with. Nothing here cross-compiles, so the controller has to be like the host.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from drover.errors import DroverError
from drover.schema import ROOT

PROXY = ROOT / "proxy"
CACHE = ROOT / ".cache" / "proxy"
KEPT_WHEELS = 3
MINUTES = 20
VARIABLE = "DROVER_PROXY_COMPILE"  # what proxy/hatch_build.py goes by


def sources() -> str:
    """Return a digest of all that the proxy's wheel is built from."""
    digest = hashlib.sha256()
    files = [PROXY / "pyproject.toml", PROXY / "README.md", PROXY / "hatch_build.py"]
    files += [path for path in (PROXY / "src").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    for path in sorted(files):
        digest.update(f"{path.relative_to(PROXY)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def lacking(python: str, machine: str, libc: str = "") -> str:
    """Say all that keeps this machine from compiling for a host; "" where nothing does.

    Args:
        python: The host's, such as 3.11.
        machine: The kernel's name of its architecture.
        libc: The version of the host's glibc; "" where it isn't known.
    """
    return "; ".join([*_differences(python, machine, libc), *_tools_missing()])


def _differences(python: str, machine: str, libc: str) -> Iterator[str]:
    own = "{}.{}".format(*sys.version_info)
    if own != python:
        yield f"the host's Python is {python}, and the controller's is {own}"
    if platform.machine() != machine:
        yield f"the host is {machine}, and the controller {platform.machine()}"
    family, version = platform.libc_ver()
    if family != "glibc":
        yield "the controller's C library isn't glibc"
    elif libc and _numbers(libc) < _numbers(version):
        yield f"the host's glibc is {libc}, older than the controller's {version}"


def _tools_missing() -> Iterator[str]:
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        yield f"the controller has no C compiler ({compiler}); Debian has one in the package gcc"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        yield f"the controller lacks {header}; Debian has it in the package python3-dev"
    missing = [name for name in ("mypyc", "setuptools") if importlib.util.find_spec(name) is None]
    if missing:
        yield f"the controller's environment lacks {' and '.join(missing)}; make venv installs them"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def wheel() -> Path:
    """Return the compiled wheel for this machine, made at the first call and kept by its sources.

    Whoever calls holds the lock of the cache, or can do without.
    """
    made_by = f"{sys.implementation.cache_tag} {platform.machine()} {platform.libc_ver()[1]}"
    text = f"{sources()} {made_by} mypy {metadata.version('mypy')}"
    folder = CACHE / f"compiled-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as made:
            _build(Path(made) / "wheel")
            shutil.rmtree(folder, ignore_errors=True)
            (Path(made) / "wheel").rename(folder)
        _forget_old()
    return next(folder.glob("*.whl"))


def _build(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "wheel"]
    done = subprocess.run(
        [*command, "--no-build-isolation", "--no-deps", "-w", str(folder), str(PROXY)],
        env=os.environ | {VARIABLE: "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=MINUTES * 60,
    )
    if done.returncode:
        raise DroverError(
            f"the proxy couldn't be compiled on the controller: {done.stdout.strip()[-1500:]}\n"
            "Next: set proxy_compiled: false, and report this"
        )


def _forget_old() -> None:
    """Keep the newest wheels only: each change of the proxy makes another."""
    folders = sorted(CACHE.glob("compiled-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in folders[KEPT_WHEELS:]:
        shutil.rmtree(old, ignore_errors=True)
