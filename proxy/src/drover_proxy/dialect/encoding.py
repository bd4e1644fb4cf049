"""Compressed bodies: read from a copy, passed on as they came, and bounded as Ollama bounds them.

Seen from the servers of v0.24 and v0.33: every inference route under /v1 takes `Content-Encoding: zstd`,
written exactly so; windows up to 8 MiB, 20 MiB in all, several frames one after the other. Native routes take
none, and no route takes gzip. Where they answer that a `(` is no JSON, a 415 says what is wrong.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from drover_proxy.dialect.body import BodyProblem
from drover_proxy.dialect.routes import Dialect, Route

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from drover_proxy.wire.fields import Fields

ZSTD = b"zstd"
NONE = (b"", b"identity")
PLAIN_BYTES = 20 << 20
"""The most that a body may become; Ollama's limit, and the bound on what a bomb of a few KiB can cost."""
WINDOW_LOG = 23
"""8 MiB: the farthest that a frame may refer back, and so what the decoder holds besides; Ollama's limit."""
FRAMES = 64
"""Frames of one body. Clients send one; millions of empty ones would cost more than they bring."""

_OPTIONS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: WINDOW_LOG}


def coding(fields: Fields) -> bytes:
    """Name the coding of a request's body, in lower case; b"" for none."""
    named = [value.strip().lower() for name, value in fields if name == b"content-encoding"]
    if len(named) == 1 and named[0] in NONE:
        return b""
    return b", ".join(named)


def check(route: Route, named: bytes) -> None:
    """Refuse a coding that the route's server doesn't read."""
    if route.dialect is Dialect.OLLAMA:
        message = f"{route.name} takes no Content-Encoding; /v1 takes zstd, as Ollama does"
    elif named != ZSTD:
        message = "the only Content-Encoding that is read is zstd, once, as Ollama does"
    else:
        return
    raise BodyProblem(415, "content_encoding", message)


def decode(body: bytes) -> bytes:
    """Return what a body of zstd frames stands for. Takes milliseconds a MiB: not for the loop's thread."""
    pieces: list[bytes] = []
    left = PLAIN_BYTES
    rest = memoryview(body)
    try:
        for _ in range(FRAMES):
            size = zstd.get_frame_size(rest)
            decoder = zstd.ZstdDecompressor(options=_OPTIONS)
            pieces.append(decoder.decompress(rest[:size], left + 1))
            left -= len(pieces[-1])
            if left < 0:
                raise too_long()
            rest = rest[size:]
            if not rest:
                return b"".join(pieces)
    except zstd.ZstdError as error:
        raise BodyProblem(400, "invalid_body", f"the body is not usable zstd: {error}") from error
    raise BodyProblem(400, "invalid_body", f"the body is not usable zstd: more than {FRAMES} frames")


def too_long() -> BodyProblem:
    """Make the 413."""
    return BodyProblem(413, "body_too_long", f"a body that unpacks to more than {PLAIN_BYTES} bytes")


def outgoing(fields: Fields, packed: bytes, body: bytes, *, changed: bool) -> tuple[bytes, Fields | None]:
    """Choose what goes to the instance: the bytes that came, or, where something had to change, plain JSON.

    The second is None where the client's own header fields fit what is sent.
    """
    if not changed and (b"content-encoding", ZSTD) in fields:
        return packed, None
    return body, [field for field in fields if field[0] != b"content-encoding"]
