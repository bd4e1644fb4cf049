"""Bodies compressed with zstd: where they are taken, and their bounds."""

from __future__ import annotations

import json

import pytest
from backports import zstd

BODY = json.dumps(
    {
        "model": "none",
        "messages": [{"role": "user", "content": "x"}],
        "prompt": "x",
        "input": "x",
        "max_tokens": 5,
    }
).encode()
OPENAI = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages")
ZSTD = {"Content-Encoding": "zstd"}


def far(log: int) -> bytes:
    """Pack a body whose frame may refer back as far as 1 << log bytes."""
    packer = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: log})
    pad = b"x" * (17 << 20)
    return (
        packer.compress(BODY[:-1] + b',"pad":"')
        + packer.compress(pad)
        + packer.compress(b'"}')
        + packer.flush()
    )


@pytest.mark.parametrize("path", OPENAI)
def test_v1_takes_zstd(server, path):
    """Every inference route under /v1 finds the model in a zstd body."""
    assert server.post(path, zstd.compress(BODY), headers=ZSTD).status == 404


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/embed", "/api/show"])
def test_native_routes_do_not(server, path):
    """The native routes take the compressed bytes for bad JSON."""
    assert server.post(path, zstd.compress(BODY), headers=ZSTD).status == 400


@pytest.mark.parametrize("coding", ["ZSTD", "zstd, identity", "gzip"])
def test_only_written_exactly_so(server, coding):
    """Any other spelling is taken for plain JSON."""
    assert server.post(OPENAI[0], zstd.compress(BODY), headers={"Content-Encoding": coding}).status == 400


@pytest.mark.parametrize(
    ("packed", "status"),
    [
        (zstd.compress(BODY[:9]) + zstd.compress(BODY[9:]), 404),
        (b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd" + zstd.compress(BODY), 404),
        (zstd.compress(BODY) + b"garbage!", 400),
        (zstd.compress(BODY)[:-3], 400),
        (BODY, 400),
        (far(23), 404),
        (far(24), 400),
        (zstd.compress(BODY[:-1] + b',"pad":"%b"}' % (b"x" * (21 << 20))), 400),
    ],
    ids=[
        "two frames",
        "skippable frame",
        "garbage behind",
        "cut",
        "plain",
        "8 MiB window",
        "16 MiB window",
        "21 MiB",
    ],
)
def test_bounds(server, packed, status):
    """Several frames are one body; garbage, far references and more than 20 MiB are refused."""
    assert server.post(OPENAI[0], packed, headers=ZSTD).status == status
