"""Bodies compressed with zstd, which Ollama takes under /v1, within its bounds."""

from __future__ import annotations

import contextlib
import importlib
import shutil
import subprocess
import sys
from types import ModuleType

from lab.ollama.body import Refused

zstd: ModuleType | None = None  # lab hosts may have the command only
with contextlib.suppress(ImportError):
    zstd = importlib.import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")

PLAIN_BYTES = 20 << 20
WINDOW_LOG = 23


def unpack(body: bytes) -> bytes:
    """Return what the frames stand for; Refused with 400 where Ollama would."""
    plain = _by_command(body) if zstd is None else _by_library(zstd, body)
    if len(plain) > PLAIN_BYTES:
        raise Refused(400, "http: request body too large")
    return plain


def _by_library(library: ModuleType, body: bytes) -> bytes:
    plain = b""
    while body:
        decoder = library.ZstdDecompressor(
            options={library.DecompressionParameter.window_log_max: WINDOW_LOG}
        )
        try:
            plain += decoder.decompress(body, PLAIN_BYTES + 1)
        except library.ZstdError as error:
            too_far = "too much memory" in str(error)
            text = "window size exceeded" if too_far else "invalid input: magic number mismatch"
            raise Refused(400, text) from error
        if len(plain) > PLAIN_BYTES:
            break
        if not decoder.eof:
            raise Refused(400, "unexpected EOF")
        body = decoder.unused_data
    return plain


def _by_command(body: bytes) -> bytes:
    program = shutil.which("zstd")
    if program is None:
        raise Refused(400, "this simulation finds nothing that unpacks zstd")
    done = subprocess.run(
        [program, "-dcq", f"--memory={1 << WINDOW_LOG}"], input=body, capture_output=True, check=False
    )
    if done.returncode:
        raise Refused(400, "invalid input: magic number mismatch")
    return done.stdout
