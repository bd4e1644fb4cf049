"""Builds a release of the simulated Ollama in the real one's layout and packing.

    bin/ollama                       a zip archive that Debian's python3 runs
    lib/ollama/llama-server …        names that a real release has, so that what looks for them finds them

The same version and the same sources give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import subprocess
import tarfile
import zipfile
from pathlib import Path

import lab.gpu
import lab.ollama

ARCHIVE = "ollama-linux-amd64.tar.zst"
CHECKSUMS = "sha256sum.txt"
_EPOCH = (2026, 1, 1, 0, 0, 0)
_EPOCH_SECONDS = 1767225600
_NOT_PACKED = {"release.py", "registry.py", "seed.py"}  # the controller's side of it
_STUB = b"#!/bin/sh\necho 'simulated: the runner is inside bin/ollama' >&2\nexit 1\n"
_LIBRARIES = (
    "lib/ollama/libggml-base.so", "lib/ollama/libggml-cpu-haswell.so", "lib/ollama/libllama.so",
    "lib/ollama/cuda_v12/libggml-cuda.so", "lib/ollama/cuda_v12/libcudart.so.12",
    "lib/ollama/cuda_v13/libggml-cuda.so", "lib/ollama/cuda_v13/libcudart.so.13",
)  # fmt: skip


def program(version: str) -> bytes:
    """`bin/ollama`: a zip archive with a first line that starts Python."""
    members: dict[str, bytes] = {
        "__main__.py": b"import sys\nfrom lab.ollama.__main__ import main\nsys.exit(main())\n",
        "lab/__init__.py": b"",
        "lab/gpu/__init__.py": b"",
        "lab/gpu/state.py": (Path(str(lab.gpu.__file__)).parent / "state.py").read_bytes(),
    }
    for path in sorted(Path(str(lab.ollama.__file__)).parent.glob("*.py")):
        if path.name not in _NOT_PACKED:
            members[f"lab/ollama/{path.name}"] = path.read_bytes()
    own = members["lab/ollama/__init__.py"].decode()
    members["lab/ollama/__init__.py"] = own.replace(
        f'VERSION = "{lab.ollama.VERSION}"', f'VERSION = "{version}"'
    ).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, members[name])
    return b"#!/usr/bin/python3 -S\n" + buffer.getvalue()


def tree(version: str) -> dict[str, tuple[bytes, int]]:
    """Every file of the release, with its mode."""
    files: dict[str, tuple[bytes, int]] = {"bin/ollama": (program(version), 0o755)}
    for name in ("lib/ollama/llama-server", "lib/ollama/llama-quantize"):
        files[name] = (_STUB, 0o755)
    for name in _LIBRARIES:
        files[name] = (f"simulated {Path(name).name} of Ollama {version}\n".encode(), 0o644)
    return files


def archive(version: str) -> bytes:
    """The release as an uncompressed tar file."""
    files = tree(version)
    folders = sorted({str(parent) for name in files for parent in Path(name).parents if str(parent) != "."})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name in folders:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o755, _EPOCH_SECONDS
            tar.addfile(info)
        for name, (content, mode) in sorted(files.items()):
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(content), mode, _EPOCH_SECONDS
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def build(into: Path, version: str) -> None:
    """Write the packed release and its checksums into a folder."""
    into.mkdir(parents=True, exist_ok=True)
    try:
        packed = subprocess.run(
            ["zstd", "-q", "-T1", "-10", "-c"], input=archive(version), stdout=subprocess.PIPE, check=True
        ).stdout
    except FileNotFoundError:
        raise SystemExit("zstd is missing, which packs the release: install the package zstd") from None
    (into / ARCHIVE).write_bytes(packed)
    line = f"{hashlib.sha256(packed).hexdigest()}  ./{ARCHIVE}\n"
    (into / CHECKSUMS).write_text(line, encoding="ascii")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("into", type=Path, help="the folder to write to")
    parser.add_argument("--version", default=lab.ollama.VERSION)
    options = parser.parse_args()
    build(options.into, options.version)


if __name__ == "__main__":
    main()
