"""Compressed bodies: which are read, how far they may unpack, and what goes on to the instance."""

from __future__ import annotations

import contextlib
import tracemalloc

import pytest
from drover_proxy.dialect import encoding
from drover_proxy.dialect.body import BodyProblem
from drover_proxy.dialect.encoding import zstd
from drover_proxy.dialect.routes import ROUTES, Dialect
from hypothesis import given
from hypothesis import strategies as st

CHAT = ROUTES[b"/v1/chat/completions"][b"POST"]
MIB = 1 << 20


def field(*values: bytes) -> list[tuple[bytes, bytes]]:
    """Return header fields with these codings."""
    return [(b"host", b"a"), *((b"content-encoding", value) for value in values)]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (field(), b""),
        (field(b""), b""),
        (field(b"Identity"), b""),
        (field(b"ZSTD"), b"zstd"),
        (field(b"gzip, zstd"), b"gzip, zstd"),
        (field(b"identity", b"zstd"), b"identity, zstd"),
    ],
)
def test_the_coding_is_named_whole(fields, named):
    """All of a request's Content-Encoding fields count, so that no second one hides behind the first."""
    assert encoding.coding(fields) == named


@pytest.mark.parametrize("named", [b"gzip", b"zstd, zstd", b"identity, zstd", b"br"])
def test_other_codings_are_refused(named):
    """Only zstd, and only once."""
    with pytest.raises(BodyProblem) as refused:
        encoding.check(CHAT, named)
    assert (refused.value.status, refused.value.code) == (415, "content_encoding")


def test_v1_takes_zstd_and_native_routes_do_not():
    """As Ollama: all under /v1, nothing else."""
    for path, methods in ROUTES.items():
        route = methods.get(b"POST")
        if route is not None and route.has_body and route.dialect is not Dialect.OLLAMA:
            assert path.startswith(b"/v1/")
            encoding.check(route, b"zstd")
        elif route is not None and route.has_body:
            with pytest.raises(BodyProblem):
                encoding.check(route, b"zstd")


@given(st.lists(st.binary(max_size=500), min_size=1, max_size=5))
def test_frames_are_one_body(parts):
    """Whatever was compressed comes back, in one frame or several."""
    assert encoding.decode(b"".join(zstd.compress(part) for part in parts)) == b"".join(parts)


@given(st.binary(max_size=200), st.binary(max_size=20))
def test_rubbish_is_refused(data, behind):
    """Arbitrary bytes are a body, or refused; nothing else happens."""
    for body in (data, zstd.compress(data) + behind, zstd.compress(data)[:-1] + behind):
        with contextlib.suppress(BodyProblem):
            encoding.decode(body)


def test_a_bomb_costs_no_more_than_the_limit():
    """A gigabyte of zeros in 32 KiB is refused with 413, and is never unpacked."""
    bomb = zstd.compress(bytes(1 << 30))
    tracemalloc.start()
    try:
        with pytest.raises(BodyProblem) as refused:
            encoding.decode(bomb)
        assert tracemalloc.get_traced_memory()[1] < 3 * encoding.PLAIN_BYTES
    finally:
        tracemalloc.stop()
    assert (refused.value.status, refused.value.code) == (413, "body_too_long")
    assert len(encoding.decode(zstd.compress(bytes(encoding.PLAIN_BYTES)))) == encoding.PLAIN_BYTES


def test_a_far_reference_is_refused():
    """A window of more than 8 MiB would be held beside the body."""
    packer = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 24})
    body = packer.compress(b"a") + packer.compress(bytes(17 * MIB)) + packer.flush()
    with pytest.raises(BodyProblem) as refused:
        encoding.decode(body)
    assert refused.value.status == 400


def test_many_empty_frames_are_refused():
    """Millions of frames that bring nothing are not read one by one."""
    with pytest.raises(BodyProblem, match="more than 64 frames"):
        encoding.decode(zstd.compress(b"") * 1_000_000)


def test_what_is_unchanged_goes_on_as_it_came():
    """Untouched bytes keep their header; what had to change is sent plain, without it."""
    assert encoding.outgoing(field(b"zstd"), b"packed", b"plain", changed=False) == (b"packed", None)
    assert encoding.outgoing(field(b"zstd"), b"packed", b"other", changed=True) == (b"other", field())
    assert encoding.outgoing(field(b"ZSTD"), b"packed", b"plain", changed=False) == (b"plain", field())
