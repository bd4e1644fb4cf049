"""The proxy's compiled wheel: whether this machine can make it for a host, and making it, once.

It holds machine code for one minor version of Python, one architecture, and a C library no older than the one
it was linked with. Nothing here cross-compiles, so the controller has to be like the host.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO

from drover.errors import DroverError
from drover.schema import ROOT

PROXY = ROOT / "proxy"
CACHE = ROOT / ".cache" / "proxy"
KEPT_WHEELS = 3
MINUTES = 20
VARIABLE = "DROVER_PROXY_COMPILE"  # what proxy/hatch_build.py goes by
_one_at_a_time = threading.Lock()


def sources() -> str:
    """Return a digest of all that the proxy's wheel is built from."""
    digest = hashlib.sha256()
    files = [PROXY / "pyproject.toml", PROXY / "README.md", PROXY / "hatch_build.py"]
    files += [path for path in (PROXY / "src").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    for path in sorted(files):
        digest.update(f"{path.relative_to(PROXY)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Something that keeps this machine from compiling for a host."""

    reason: str
    remedy: str  # what comes after "Next: "


def lacking(python: str, machine: str, libc: str | None = None) -> str:
    """Say all that keeps this machine from compiling for a host; "" where nothing does."""
    return "; ".join(obstacle.reason for obstacle in obstacles(python, machine, libc))


def obstacles(python: str, machine: str, libc: str | None = None) -> list[Obstacle]:
    """Return all that keeps this machine from compiling for a host.

    A compiler that is missing is named for hosts only for which it would be enough to have it.

    Args:
        python: The host's, such as 3.11.
        machine: The kernel's name of its architecture.
        libc: The version of the host's glibc; "" where it isn't known, None where it is this machine's.
    """
    return list(_differences(python, machine, libc)) or list(_tools_missing())


def _differences(python: str, machine: str, libc: str | None) -> Iterator[Obstacle]:
    own = "{}.{}".format(*sys.version_info)
    elsewhere = "deploy from a machine like it"
    if own != python:
        yield Obstacle(f"the host's Python is {python}, and the controller's is {own}", elsewhere)
    if platform.machine() != machine:
        yield Obstacle(f"the host is {machine}, and the controller {platform.machine()}", elsewhere)
    family, version = platform.libc_ver()
    if family != "glibc":
        yield Obstacle("the controller's C library isn't glibc", elsewhere)
    elif libc is not None and not _numbers(libc):
        yield Obstacle("the host's glibc isn't known", "getconf GNU_LIBC_VERSION on the host")
    elif libc is not None and _numbers(libc) < _numbers(version):
        yield Obstacle(f"the host's glibc is {libc}, older than the controller's {version}", elsewhere)


def _tools_missing() -> Iterator[Obstacle]:
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        yield Obstacle(f"the controller has no C compiler ({compiler})", "apt-get install gcc")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        package = "python{}.{}-dev".format(*sys.version_info)
        yield Obstacle(f"the controller lacks {header}", f"apt-get install {package}")
    missing = [name for name in ("mypyc", "setuptools") if importlib.util.find_spec(name) is None]
    if missing:
        yield Obstacle(f"the controller's environment lacks {' and '.join(missing)}", "make venv")
    if not missing and (failure := _failure()):
        yield failure


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _key() -> str:
    """Return what a wheel is kept by: the sources, and all that turns them into machine code."""
    made_by = f"{sys.implementation.cache_tag} {platform.machine()} {platform.libc_ver()[1]}"
    text = f"{sources()} {made_by} mypy {metadata.version('mypy')}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _failed() -> Path:
    """Return where the compiler's last words lie if it failed; while they do, it isn't asked again."""
    return CACHE / f"failed-{_key()}.log"


def _failure() -> Obstacle | None:
    """Return that the compiler failed over these sources, if it did."""
    if not (failed := _failed()).is_file():
        return None
    return Obstacle(f"compiling these sources failed, as {failed} tells", f"rm {failed}, to try again")


def wheel(say: Callable[[str], None] = lambda _line: None) -> Path:
    """Return the compiled wheel for this machine, made at the first call and kept by its sources.

    Args:
        say: Gets a line when it takes long.
    """
    folder = CACHE / f"compiled-{_key()}"
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with _only_one(say):
            if not folder.is_dir():  # made by the one before
                _make(folder, say)
    return next(folder.glob("*.whl"))


@contextmanager
def _only_one(say: Callable[[str], None]) -> Iterator[None]:
    """Let one host of one run on this machine compile; the others wait, and find the wheel."""
    with _one_at_a_time, (CACHE / ".compiling").open("w") as lock:
        told = False
        while not _is_locked(lock):
            if not told:
                say("waiting for another run on this machine, which compiles the proxy")
            told = True
            time.sleep(0.1)
        yield


def _is_locked(file: IO[str]) -> bool:
    """Lock a file or say that it is locked: to wait in the kernel would stop all hosts of the run."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _make(folder: Path, say: Callable[[str], None]) -> None:
    if failure := _failure():  # of another run, for which this one has waited
        raise DroverError(f"{failure.reason}. Next: {failure.remedy}")
    say("compiling the proxy: a minute or two, once for these sources")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=CACHE) as made:
        try:
            _build(Path(made) / "wheel")
        except BuildError as error:
            _failed().write_text(str(error), encoding="utf-8")
            raise DroverError(
                f"the proxy couldn't be compiled on the controller: {str(error)[-1500:]}\n"
                f"Next: set proxy_compiled: false; or rm {_failed()}, to try again"
            ) from error
        shutil.rmtree(folder, ignore_errors=True)
        (Path(made) / "wheel").rename(folder)
    say(f"compiled the proxy in {time.monotonic() - began:.0f} s")
    _forget_old()


class BuildError(Exception):
    """The compiler failed; the message is what it said."""


def _build(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "wheel"]
    try:
        done = subprocess.run(
            [*command, "--no-build-isolation", "--no-deps", "-w", str(folder), str(PROXY)],
            env=os.environ | {VARIABLE: "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=MINUTES * 60,
        )
    except subprocess.TimeoutExpired:
        raise BuildError(f"it took more than {MINUTES} minutes") from None
    if done.returncode:
        raise BuildError(done.stdout.strip())


def _forget_old() -> None:
    """Keep the newest wheels only: each change of the proxy makes another. A success ends all failures."""
    for log in CACHE.glob("failed-*.log"):
        log.unlink(missing_ok=True)
    folders = sorted(CACHE.glob("compiled-*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in folders[KEPT_WHEELS:]:
        shutil.rmtree(old, ignore_errors=True)
