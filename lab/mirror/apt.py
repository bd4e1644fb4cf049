"""The flat apt repository: packages, index, signature; laid out as NVIDIA's own is."""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab.mirror.debs import MirrorError, Package, write

KEY = "drover-lab"
TOOLS = {"dpkg-deb": "dpkg", "apt-ftparchive": "apt-utils", "gpg": "gpg", "gpg-agent": "gpg-agent"}
KEY_PARAMETERS = """\
%no-protection
Key-Type: eddsa
Key-Curve: ed25519
Key-Usage: sign
Name-Real: drover lab
Name-Email: lab@localhost
Expire-Date: 0
%commit
"""


def need_tools() -> None:
    """Say in one line what is missing here."""
    missing = {package for tool, package in TOOLS.items() if shutil.which(tool) is None}
    if missing:
        raise MirrorError(
            f"the mirror's tools are missing here. Next: apt-get install {' '.join(sorted(missing))}"
        )


def repository(packages: Iterable[Package], into: Path, key: Path) -> str:
    """Build the repository in a folder and sign it; the fingerprint. The key is made where there is none."""
    need_tools()
    into.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="dlab-") as scratch, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda package: write(package, Path(scratch), into), packages))
    index = _run(["apt-ftparchive", "packages", "."], cwd=into)
    (into / "Packages").write_text(index, encoding="utf-8")
    (into / "Packages.gz").write_bytes(gzip.compress(index.encode(), mtime=0))
    options = {"Origin": "NVIDIA", "Label": "drover-lab", "Suite": "stable", "Codename": "lab"}
    words = [
        word
        for name, value in options.items()
        for word in ("-o", f"APT::FTPArchive::Release::{name}={value}")
    ]
    # Written beside the folder first: apt-ftparchive would list its own half-written output.
    release = _run(["apt-ftparchive", *words, "release", "."], cwd=into)
    (into / "Release").write_text(release, encoding="utf-8")
    with _keyring(key) as gpg:
        _run([*gpg, "--clearsign", "--output", str(into / "InRelease"), str(into / "Release")])
        _run([*gpg, "--armor", "--detach-sign", "--output", str(into / "Release.gpg"), str(into / "Release")])
        _run([*gpg, "--export", "--output", str(into / f"{KEY}.gpg")])
        _run([*gpg, "--armor", "--export", "--output", str(into / f"{KEY}.asc")])
        listing = _run([*gpg, "--with-colons", "--fingerprint"])
    fingerprint = next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr:"))
    for file in into.iterdir():
        file.chmod(0o644)
    return fingerprint


@contextlib.contextmanager
def _keyring(key: Path) -> Iterator[list[str]]:
    """Give a gpg command over a keyring of its own, which has the mirror's key; the agent ends with it."""
    home = Path(tempfile.mkdtemp(prefix="dlab-gpg-"))  # short: the agent's socket lies in it
    gpg = ["gpg", "--homedir", str(home), "--batch", "--yes", "--quiet", "--no-tty"]
    try:
        if key.exists():
            _run([*gpg, "--import", str(key)])
        else:
            _run([*gpg, "--generate-key"], text=KEY_PARAMETERS)
            key.parent.mkdir(parents=True, exist_ok=True)
            secret = _run([*gpg, "--armor", "--export-secret-keys"])
            with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(secret)
        yield gpg
    finally:
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], capture_output=True, check=False)
        shutil.rmtree(home, ignore_errors=True)


def _run(command: list[str], *, cwd: Path | None = None, text: str | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MirrorError(f"{command[0]} failed with {done.returncode}: {done.stderr.strip()}")
    return done.stdout
