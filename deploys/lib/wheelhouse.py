"""The proxy as one file for a host: its wheel, built here, and every wheel it needs for the host's Python.

What comes from an index is held to the hashes of proxy/requirements.lock, here and again on the host. The
name of a bundle follows from all that goes into it, so that a host is asked before anything is built.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from pyinfra import logger

from deploys.lib import compiled
from deploys.lib.compiled import CACHE, PROXY
from drover.errors import DroverError

MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
# Newest first; a wheel for an older glibc fits too.
PLATFORMS = ("manylinux_2_28", "manylinux_2_17", "manylinux2014")
KEPT_BUNDLES = 6
_one_at_a_time = threading.Lock()


@dataclass(frozen=True, slots=True)
class Target:
    """What a bundle is for."""

    python: str  # such as 3.11
    architecture: str  # Debian's name
    compiled: bool = False  # with its hot modules as machine code

    @property
    def machine(self) -> str:
        """Return the kernel's name of the architecture."""
        return MACHINES[self.architecture]

    @property
    def build(self) -> str:
        """Return what `drover-proxy --version` calls it."""
        return "compiled" if self.compiled else "interpreted"


def version() -> str:
    """Return the version of the proxy in this checkout."""
    for line in (PROXY / "pyproject.toml").read_text(encoding="utf-8").splitlines():
        if line.startswith("version = "):
            return line.partition("=")[2].strip().strip('"')
    raise DroverError(f"{PROXY}/pyproject.toml: names no version; is the checkout whole?")


@functools.cache
def sources() -> str:
    """Return a digest of all that a bundle is made from: the proxy's sources, and the lock."""
    digest = hashlib.sha256(compiled.sources().encode())
    digest.update((PROXY / "requirements.lock").read_bytes())
    return digest.hexdigest()


def release_name(target: Target) -> str:
    """Return the name of the release: its version, and a hash of sources, lock and target.

    It is the same from every controller, so that two who deploy by turns change nothing.
    """
    text = f"{sources()} {target.python} {target.architecture}{' compiled' * target.compiled}"
    return f"{version()}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def locked(lock: str, target: Target) -> str:
    """Return the requirements of the lock that the target needs, without their markers.

    pip judges markers by the Python that runs it, which is the controller's, so they are judged here.
    """
    environment = {
        "python_version": target.python,
        "python_full_version": f"{target.python}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "platform_machine": target.machine,
        "platform_system": "Linux",
        "sys_platform": "linux",
        "os_name": "posix",
    }
    kept = []
    joined = "\n".join(
        line for line in lock.splitlines() if line.strip() and not line.lstrip().startswith("#")
    )
    for entry in joined.replace("\\\n", " ").splitlines():
        words = entry.split()
        requirement = " ".join(word for word in words if not word.startswith("--hash="))
        hashes = [word for word in words if word.startswith("--hash=")]
        name, _, marker = requirement.partition(";")
        if not marker or Marker(marker.strip()).evaluate(environment):
            kept.append(" ".join([name.strip(), *hashes]))
    return "\n".join(kept) + "\n"


def bundle(target: Target) -> Path:
    """Return the bundle of a target, made at the first call and kept in .cache/."""
    file = CACHE / f"{release_name(target)}.tar"
    with _one_at_a_time:
        if file.is_file():
            return file
        CACHE.mkdir(parents=True, exist_ok=True)
        with (CACHE / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not file.is_file():
                _make(target, file)
                _forget_old()
    return file


def _forget_old() -> None:
    """Keep the newest bundles only: each change of the proxy makes another."""
    files = sorted(CACHE.glob("*.tar"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in files[KEPT_BUNDLES:]:
        old.unlink(missing_ok=True)


def _make(target: Target, file: Path) -> None:
    text = locked((PROXY / "requirements.lock").read_text(encoding="utf-8"), target)
    wheels = _dependencies(target, text)
    with tempfile.TemporaryDirectory(dir=CACHE) as made:
        folder = Path(made)
        if target.compiled:
            own = compiled.wheel(logger.info)
        else:
            _pip("wheel", "--no-build-isolation", "--no-deps", "-w", made, str(PROXY))
            own = next(folder.glob("*.whl"))
        digest = hashlib.sha256(own.read_bytes()).hexdigest()
        requirements = folder / "requirements.txt"
        requirements.write_text(f"{text}drover-proxy=={version()} --hash=sha256:{digest}\n", encoding="utf-8")
        new = folder / "bundle.tar"
        with tarfile.open(new, "w") as archive:
            for path in [requirements, own, *sorted(wheels.glob("*.whl"))]:
                archive.add(path, arcname=path.name, filter=_as_root)
        new.replace(file)


def _as_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    info.mode = 0o644
    return info


def _dependencies(target: Target, text: str) -> Path:
    """Return the folder of the wheels that the lock names, fetched once."""
    digest = hashlib.sha256(f"{text}{target.python}{target.architecture}".encode()).hexdigest()[:16]
    folder = CACHE / f"wheels-{target.python}-{target.architecture}-{digest}"
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory(dir=CACHE) as made:
        requirements = Path(made) / "requirements.txt"
        requirements.write_text(text, encoding="utf-8")
        wheels = Path(made) / "wheels"
        abi = f"cp{target.python.replace('.', '')}"
        platforms = [word for name in PLATFORMS for word in ("--platform", f"{name}_{target.machine}")]
        _pip(
            "download", "--require-hashes", "--no-deps", "--only-binary=:all:",
            "--python-version", target.python, "--implementation", "cp",
            "--abi", abi, "--abi", "abi3", "--abi", "none", *platforms,
            "-d", str(wheels), "-r", str(requirements),
        )  # fmt: skip
        shutil.move(wheels, folder)
    return folder


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != compiled.VARIABLE}
    done: Any = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        why = next(
            (line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "no reason given"
        )
        raise DroverError(
            f"the proxy couldn't be packed on the controller: pip {arguments[0]}: {why}. Next: run again "
            "with a way to the package index, or copy .cache/proxy/ from a machine that has one"
        )
