"""Compressed bodies: what we read of them is what they are, within bounds, or they are refused.

Input: a body as a client sends it with `Content-Encoding: zstd`.
"""

from __future__ import annotations

import sys

from drover_proxy.dialect.body import BodyProblem
from drover_proxy.dialect.encoding import PLAIN_BYTES, decode

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def check(data: bytes) -> None:
    """Compare with the library's own reading of all the frames at once."""
    try:
        found = decode(data)
    except BodyProblem as problem:
        if problem.status not in {400, 413}:
            raise AssertionError(problem) from None
        return
    assert len(found) <= PLAIN_BYTES
    assert found == zstd.decompress(data), "read otherwise"


def seeds() -> list[bytes]:
    """Frames of every kind."""
    body = b'{"model":"llama3.2","prompt":"' + b"ab" * 60 + b'"}'
    frame = zstd.compress(body)
    checked = zstd.compress(body, options={zstd.CompressionParameter.checksum_flag: 1})
    return [
        frame,
        checked,
        frame + frame,
        zstd.compress(b""),
        frame[:-3],
        frame + b"x",
        b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + frame,
        zstd.compress(b"x" * 100_000),
        zstd.compress(body, options={zstd.CompressionParameter.window_log: 24}),
    ]
