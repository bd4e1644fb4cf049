"""Compressed bodies through the proxy: what was checked is what runs."""

from __future__ import annotations

import gzip
import json

import pytest
from drover_proxy.dialect.encoding import zstd

from tests.proxy.rig import MIDDLE, SMALL, Rig

CHAT = "/v1/chat/completions"


def body(model: str = SMALL, **more: object) -> bytes:
    """Write a chat request."""
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "Hi"}], **more}).encode()


def ask(rig: Rig, packed: bytes, *, path: str = CHAT, key: str = "use", coding: str = "zstd"):
    """Send a compressed body."""
    with rig.http(key) as client:
        return client.post(path, content=packed, headers={"content-encoding": coding})


@pytest.fixture(scope="module")
def house(tmp_path_factory, nvml):
    """A rig whose small model has an alias."""
    rig = Rig(tmp_path_factory.mktemp("packed"), nvml, extra={"models": {SMALL: {"aliases": ["house"]}}})
    try:
        yield rig.start()
    finally:
        rig.stop()


@pytest.mark.parametrize("coding", ["zstd", "ZSTD"])
@pytest.mark.parametrize("model", [SMALL, "house"])
def test_zstd_is_answered(house, coding, model):
    """The model is found, by its name or an alias, and the answer is that of the plain request."""
    answer = ask(house, zstd.compress(body(model)), coding=coding)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["finish_reason"] == "stop"
    assert answer.headers["x-drover-instance"] == "gpu0"


def test_zstd_streams(house):
    """`stream` is found in the compressed body, and the stream has its end."""
    answer = ask(house, zstd.compress(body(stream=True)))
    assert answer.text.endswith("data: [DONE]\n\n")


def test_a_compressed_name_is_checked_like_any(house):
    """A key's models count for compressed bodies too, and so does every rule of the body."""
    assert ask(house, zstd.compress(body(MIDDLE)), key="some").status_code == 403
    twice = body()[:-1] + b',"Model":"%b"}' % MIDDLE.encode()
    answer = ask(house, zstd.compress(twice))
    assert (answer.status_code, answer.headers["x-drover-error"]) == (400, "ambiguous_body")
    behind = zstd.compress(body()) + zstd.compress(body(MIDDLE))
    assert ask(house, behind).status_code == 400


@pytest.mark.parametrize(
    ("packed", "coding", "path", "status", "code"),
    [
        (gzip.compress(body(), mtime=0), "gzip", CHAT, 415, "content_encoding"),
        (zstd.compress(body()), "zstd, identity", CHAT, 415, "content_encoding"),
        (body(), "zstd", CHAT, 400, "invalid_body"),
        (zstd.compress(bytes(30 << 20)), "zstd", CHAT, 413, "body_too_long"),
        (gzip.compress(body(), mtime=0), "gzip", "/v1/messages", 415, "content_encoding"),
        (zstd.compress(body()), "zstd", "/api/chat", 415, "content_encoding"),
        (gzip.compress(body(), mtime=0), "gzip", "/api/pull", 415, "content_encoding"),
    ],
)
def test_what_is_not_read_is_refused_in_the_dialect(house, packed, coding, path, status, code):
    """415, 400 and 413 come in the body of who was called."""
    answer = ask(house, packed, coding=coding, path=path, key="admin" if path == "/api/pull" else "use")
    assert (answer.status_code, answer.headers["x-drover-error"]) == (status, code)
    error = answer.json()["error"]
    if path.startswith("/api/"):
        assert isinstance(error, str)
    else:
        assert set(error) >= {"type", "message"}
        assert (answer.json().get("type") == "error") is (path == "/v1/messages")
