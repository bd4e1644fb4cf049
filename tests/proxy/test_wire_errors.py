"""The wire's own errors, through real sockets: in the body of the dialect that was called."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator

import pytest

from tests.proxy.rig import KEYS, Rig
from tests.support import eventually

KEY = b"Host: a\r\nAuthorization: Bearer " + KEYS["use"].encode() + b"\r\n"
LIMITS = {"head_seconds": 1, "body_seconds": 1, "body_bytes": 2048, "header_bytes": 4096, "header_count": 40}


def start(path: str, version: str = "1.1") -> bytes:
    """Write a request's first line and its fields so far."""
    return f"POST {path} HTTP/{version}\r\n".encode() + KEY


ERRORS = {
    "two lengths": (400, "bad_request", b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx"),
    "folded line": (400, "bad_request", b"X: a\r\n b\r\nContent-Length: 1\r\n\r\nx"),
    "bare LF": (400, "bad_request", b"X: a\nContent-Length: 1\r\n\r\nx"),
    "bare CR": (400, "bad_request", b"X: a\rb\r\nContent-Length: 1\r\n\r\nx"),
    "NUL": (400, "bad_request", b"X: a\0b\r\nContent-Length: 1\r\n\r\nx"),
    "space before the colon": (400, "bad_request", b"Content-Length : 1\r\n\r\nx"),
    "bad chunk": (400, "bad_request", b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
    "slow head": (408, "head_timeout", b"X: a"),
    "slow body": (408, "body_timeout", b"Content-Length: 9\r\n\r\nx"),
    "long body": (413, "body_too_long", b"Content-Length: 9999\r\n\r\n"),
    "long chunked body": (413, "body_too_long", b"Transfer-Encoding: chunked\r\n\r\n1000\r\n" + b"x" * 4096),
    "expectation": (417, "expectation_failed", b"Expect: tea\r\nContent-Length: 1\r\n\r\nx"),
    "long field": (431, "head_too_long", b"X: " + b"y" * 5000 + b"\r\n\r\n"),
    "many fields": (431, "too_many_headers", b"X: y\r\n" * 50 + b"\r\n"),
    "long trailers": (
        431,
        "trailers_too_long",
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 2000 + b"\r\n",
    ),
    "upgrade": (
        501,
        "upgrade_refused",
        b"Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n",
    ),
}


@pytest.fixture(scope="module")
def strict(tmp_path_factory, nvml) -> Iterator[Rig]:
    """A rig with narrow limits."""
    rig = Rig(tmp_path_factory.mktemp("strict"), nvml, extra={"limits": LIMITS})
    try:
        yield rig.start()
    finally:
        rig.stop()


def talk(rig: Rig, data: bytes) -> tuple[int, dict[str, str], dict]:
    """Send bytes, and read until the connection is closed; returns status, fields and body."""
    with socket.create_connection(("127.0.0.1", rig.port), timeout=20) as client:
        client.sendall(data)
        got = b""
        while piece := client.recv(65536):
            got += piece
    head, _, body = got.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    fields = dict(line.lower().split(": ", 1) for line in lines)
    assert int(fields["content-length"]) == len(body)
    return int(first.split()[1]), fields, json.loads(body)


def shape(path: str, body: dict) -> str:
    """Name the dialect whose error body this is."""
    if isinstance(body["error"], str):
        return "ollama"
    return "anthropic" if body.get("type") == "error" else "openai"


@pytest.mark.parametrize(
    ("path", "dialect"),
    [("/api/chat", "ollama"), ("/v1/chat/completions", "openai"), ("/v1/messages", "anthropic")],
)
@pytest.mark.parametrize("name", ERRORS)
def test_in_the_dialect_that_was_called(strict, name, path, dialect):
    """Status, code and closed connection as ever, and a body that the caller's package understands."""
    status, code, rest = ERRORS[name]
    got, fields, body = talk(strict, start(path) + rest)
    assert (got, fields["x-drover-error"], fields["connection"]) == (status, code, "close")
    assert shape(path, body) == dialect
    assert fields["content-type"].startswith("application/json")


def test_version_method_and_connect(strict):
    """505 and 501 are told apart from what is merely unknown."""
    assert talk(strict, start("/v1/messages", "2.0") + b"\r\n")[0] == 505
    status, fields, body = talk(strict, b"FLY /v1/models HTTP/1.1\r\n" + KEY + b"\r\n")
    assert (status, fields["x-drover-error"], shape("", body)) == (501, "unknown_method", "openai")
    assert talk(strict, b"CONNECT a:1 HTTP/1.1\r\n" + KEY + b"\r\n")[1]["x-drover-error"] == "connect_refused"


def test_what_the_wire_refuses_is_counted(strict):
    """Each code has its count among the proxy's errors."""

    def count() -> float:
        page = strict.admin("/metrics").text
        lines = [line for line in page.splitlines() if 'code="expectation_failed"' in line]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    before = count()
    talk(strict, start("/api/chat") + ERRORS["expectation"][2])
    eventually(lambda: count() > before)


@pytest.mark.parametrize("name", ["long body", "slow body", "bad chunk", "long trailers"])
def test_what_is_refused_behind_a_head_is_in_the_access_log(strict, name):
    """With its code, whose key and which route it was, under the id that the answer names."""
    status, code, rest = ERRORS[name]
    _, fields, _ = talk(strict, start("/api/chat") + rest)

    def told() -> list[dict]:
        return [line for line in strict.lines("access") if line["id"] == fields["x-request-id"]]

    (line,) = eventually(told)
    assert (line["status"], line["code"], line["kind"]) == (status, code, "refused")
    assert (line["key"], line["route"]) == ("user", "/api/chat")


def test_what_is_refused_before_a_head_is_whole_has_a_line(make_rig):
    """It never was a request, so the access log has none; the line names who, and why."""
    rig = make_rig(extra={"limits": LIMITS})
    rig.start()
    for name in ("two lengths", "slow head", "long field"):
        status, code, rest = ERRORS[name]
        assert "x-request-id" not in talk(rig, start("/api/chat") + rest)[1]
        line = rig.lines("rejected")[-1]
        assert (line["status"], line["code"], line["client"]) == (status, code, "127.0.0.1")
        assert line["message"]
    page = rig.admin("/metrics").text
    assert 'drover_wire_refusals_total{code="head_timeout"} 1.0' in page
    assert 'drover_errors_total{code="head_timeout"} 1.0' in page


def test_caps_on_connections(make_rig):
    """Beyond the caps a client gets 503 with Retry-After and is closed; whoever is in stays in."""
    rig = make_rig()
    rig.write_config(limits={"max_connections": 3, "max_connections_per_client": 2})
    rig.start()
    with (
        socket.create_connection(("127.0.0.1", rig.port), timeout=10) as first,
        socket.create_connection(("127.0.0.1", rig.port), timeout=10),
    ):
        status, fields, body = talk(rig, b"")
        assert (status, fields["x-drover-error"], fields["retry-after"]) == (503, "too_many_connections", "1")
        assert "from 127.0.0.1" in body["error"]
        first.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert first.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_plain_http_at_a_tls_door(make_rig, tmp_path):
    """Who speaks plain HTTP to TLS is cut off, and nothing of it is taken for a request."""
    from tests.proxy.authority import Authority

    authority = Authority(tmp_path)
    rig = make_rig()
    authority.furnish(rig)
    rig.start()
    with socket.create_connection(("127.0.0.1", rig.port), timeout=10) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert not client.recv(1000).startswith(b"HTTP/")
    assert 'drover_tls_handshakes_failed_total{reason="http_request"} 1.0' in rig.admin("/metrics").text
    context = ssl.create_default_context(cafile=str(authority.file))
    with (
        socket.create_connection(("127.0.0.1", rig.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secure,
    ):
        secure.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert secure.recv(1000).startswith(b"HTTP/1.1 200 ")
