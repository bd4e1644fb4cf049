"""Builds the mirror's content, once for a given state of the sources, and lays a copy of it into a root."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import lab.ollama.release
from lab.gpu import build as gpu_build
from lab.mirror import apt, driver, toolkit
from lab.mirror.debs import MirrorError

LAB = Path(__file__).resolve().parents[1]
CACHE = Path("/var/cache/drover-lab")
OLLAMA_VERSIONS = ("0.33.0", "0.32.15")
FACTS = "mirror.json"
REVISION = 1


def architecture() -> tuple[str, str]:
    """This machine's architecture, as Debian writes it and as its library folders do."""

    def ask(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    name = ask("dpkg", "--print-architecture")
    triplets = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}
    if name not in triplets:
        raise MirrorError(
            f"no stand-in packages for the architecture {name}; there are some for amd64 and arm64"
        )
    return name, triplets[name]


@functools.cache
def content_hash() -> str:
    """What the content is made from: the sources, the kernel (headers have its name), the architecture."""
    digest = hashlib.sha256(f"{REVISION} {os.uname().release} {os.uname().machine}".encode())
    for folder in ("mirror", "gpu", "ollama"):
        for file in sorted((LAB / folder).rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(str(file.relative_to(LAB)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def build(into: Path, cache: Path = CACHE) -> dict[str, Any]:
    """Make the root of a mirror; what there is to know of it, which also stands in mirror.json there."""
    content = cache / f"mirror-{content_hash()}"
    if not (content / FACTS).exists():
        _make(content, cache)
    into.mkdir(parents=True, exist_ok=True)
    for name in ("apt", "ollama"):
        _copy(content / name, into / name)
    _forget_old(cache, content)
    facts: dict[str, Any] = json.loads((content / FACTS).read_text(encoding="utf-8"))
    key = into.absolute() / "apt" / f"{apt.KEY}.gpg"
    facts["fleet_variables"] = {
        "mirror_apt_key_file": str(key),
        "mirror_apt_key_fingerprint": facts["apt_key_fingerprint"],
        "ollama_version": OLLAMA_VERSIONS[0],
        "ollama_archive_sha256": facts["ollama"][OLLAMA_VERSIONS[0]]["sha256"],
    }
    new = into / f".{FACTS}.new"
    new.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    new.replace(into / FACTS)
    return facts


def _forget_old(cache: Path, current: Path) -> None:
    """Keep the current content and the two made before it: a change that is taken back costs nothing."""
    others = [folder for folder in cache.glob("mirror-*") if folder.is_dir() and folder != current]
    for folder in sorted(others, key=lambda folder: folder.stat().st_mtime, reverse=True)[2:]:
        shutil.rmtree(folder, ignore_errors=True)


def _make(content: Path, cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=".making-mirror-", dir=cache))
    making.chmod(0o755)
    try:
        name, triplet = architecture()
        library = gpu_build.build(making / "library").read_bytes()
        packages = [
            *driver.packages(library, name, triplet),
            *driver.kernel_packages(os.uname().release, name),
            *toolkit.packages(name),
        ]
        fingerprint = apt.repository(packages, making / "apt", cache / "mirror-key.asc")
        shutil.rmtree(making / "library")
        facts = {
            "apt_key_fingerprint": fingerprint,
            "driver_versions": list(driver.VERSIONS),
            "container_toolkit_versions": list(toolkit.VERSIONS),
            "ollama": {version: _ollama(making, version) for version in OLLAMA_VERSIONS},
        }
        (making / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        if content.exists():
            shutil.rmtree(content)
        making.rename(content)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise


def _ollama(making: Path, version: str) -> dict[str, str]:
    folder = making / "ollama" / f"v{version}"
    lab.ollama.release.build(folder, version)
    digest, _, name = (folder / "sha256sum.txt").read_text(encoding="utf-8").splitlines()[0].partition("  ")
    return {"path": f"ollama/v{version}/{name.removeprefix('./')}", "sha256": digest}


def _copy(source: Path, target: Path) -> None:
    """Lay a copy, whole or not at all: a lab's mirror then depends on no cache, and no rebuild changes it."""
    new = target.with_name(f".{target.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(source, new)
    if target.exists():
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
        new.rename(target)
        shutil.rmtree(old)
    else:
        new.rename(target)
