"""Stand-in packages: what one is made of, and how it becomes a .deb."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PAYLOAD = Path(__file__).with_name("payload")


class MirrorError(Exception):
    """The mirror can't be built or served; the message says what to do."""


@dataclass(frozen=True)
class File:
    """One file of a package."""

    content: bytes
    mode: int = 0o644


@dataclass(frozen=True)
class Package:
    """One version of a package; paths of files and links are relative to /."""

    name: str
    version: str
    summary: str
    architecture: str = "all"
    fields: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, File] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    scripts: Mapping[str, str] = field(default_factory=dict)

    def control(self) -> str:
        """The control file."""
        fields = {
            "Package": self.name,
            "Version": self.version,
            "Architecture": self.architecture,
            "Maintainer": "drover lab <lab@localhost>",
            "Section": "misc",
            "Priority": "optional",
            **self.fields,
            "Description": f"{self.summary}\n A stand-in of the lab: the name and the dependencies of the\n"
            " real package, and nothing of its content.",
        }
        return "".join(f"{key}: {value}\n" for key, value in fields.items())


def payload(name: str, mode: int = 0o644, **words: str) -> File:
    """A file from payload/, with @WORD@ filled in."""
    text = (PAYLOAD / name).read_text(encoding="utf-8")
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    return File(text.encode(), mode)


def write(package: Package, scratch: Path, into: Path) -> Path:
    """Build the .deb in `into` and say where it is."""
    root = scratch / f"{package.name}_{package.version}_{package.architecture}"
    (root / "DEBIAN").mkdir(parents=True)
    root.chmod(0o755)
    (root / "DEBIAN/control").write_text(package.control(), encoding="utf-8")
    for name, text in package.scripts.items():
        script = root / "DEBIAN" / name
        script.write_text(f"#!/bin/sh\nset -e\n{text.strip()}\nexit 0\n", encoding="utf-8")
        script.chmod(0o755)
    for name, file in package.files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)
        path.chmod(file.mode)
    for name, target in package.links.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)
    for folder in (path for path in root.rglob("*") if path.is_dir() and not path.is_symlink()):
        folder.chmod(0o755)  # whatever the umask is here
    deb = into / f"{root.name}.deb"
    command = ["dpkg-deb", "--root-owner-group", "-Znone", "-b", str(root), str(deb)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MirrorError(f"dpkg-deb could not build {deb.name}: {done.stderr.strip()}")
    return deb
