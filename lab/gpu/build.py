"""Compiles libnvidia-ml.so.1 for the machine it runs on, and keeps it by the content of its sources."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).with_name("nvml")
SONAME = "libnvidia-ml.so.1"
FLAGS = (
    "-shared",
    "-fPIC",
    "-O2",
    "-std=c11",
    "-Wall",
    "-Wextra",
    "-fvisibility=hidden",
    f"-Wl,-soname,{SONAME}",
)


class BuildError(Exception):
    """The library can't be compiled here."""


def source_hash() -> str:
    """What the library is made from, in one word."""
    digest = hashlib.sha256(" ".join((*FLAGS, platform.machine())).encode())
    for source in sorted(SOURCES.glob("*.[ch]")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:16]


def build(into: Path) -> Path:
    """Compile the library into a folder and say where it is; quick when it is there already."""
    library = into / SONAME
    stamp = into / f".{SONAME}.sources"
    wanted = source_hash()
    if library.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return library
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise BuildError("no C compiler to build libnvidia-ml.so.1 with: apt-get install gcc libc6-dev")
    into.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=f".{SONAME}.", dir=into)
    os.close(fd)
    temporary = Path(name)
    command = [compiler, *FLAGS, "-o", name, *map(str, sorted(SOURCES.glob("*.c"))), "-ldl", "-lpthread"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"{compiler} could not build {SONAME}:\n{done.stderr.strip()}")
        temporary.chmod(0o644)
        temporary.replace(library)  # whole or not at all: two test runs may build at once
    finally:
        temporary.unlink(missing_ok=True)
    stamp.write_text(wanted, encoding="utf-8")
    return library
