"""Lays out a genuine `ollama` with the stand-in beside it, as the binary wants to find its runner."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import lab.standin

_QUANTIZE = """#!/bin/sh
# Stand-in for `llama-quantize --allow-requantize IN OUT COPY`: the same bytes.
shift
echo '[   1/   1] copy'
exec cp -- "$1" "$2"
"""


def lay_out(prefix: Path, ollama: Path) -> Path:
    """Make `prefix/bin/ollama` and `prefix/lib/ollama/…`; returns the binary to run."""
    libraries = prefix / "lib" / "ollama"
    (libraries / "cuda_v13").mkdir(parents=True)
    (libraries / "cuda_v13" / "libggml-cuda.so").touch()  # makes Ollama look for CUDA devices
    root = Path(str(lab.standin.__file__)).parents[2]
    runner = libraries / "llama-server"
    program = f"exec {shlex.quote(sys.executable)} -S -m lab.standin.llama_server"
    script = f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(root))} {program} "$@"\n'
    runner.write_text(script, encoding="utf-8")
    quantize = libraries / "llama-quantize"
    quantize.write_text(_QUANTIZE, encoding="utf-8")
    for executable in (runner, quantize):
        executable.chmod(0o755)
    (prefix / "bin").mkdir()
    binary = prefix / "bin" / "ollama"
    try:
        binary.hardlink_to(ollama.resolve())
    except OSError:  # another file system
        binary.write_bytes(ollama.read_bytes())
        binary.chmod(0o755)
    return binary
