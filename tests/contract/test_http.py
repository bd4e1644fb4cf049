"""The HTTP surface below the API: paths, methods, headers, framing."""

from __future__ import annotations

import gzip
import json

import pytest


def test_root(server):
    """GET and HEAD / say that Ollama is running, as plain text without a newline."""
    answer = server.get("/")
    assert (answer.status, answer.body) == (200, b"Ollama is running")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert server.request("HEAD", "/").status == 200


def test_version(server):
    """The version is an object with one key, in UTF-8 JSON with a length, and no Server header."""
    answer = server.get("/api/version")
    assert set(answer.json) == {"version"}
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert "server" not in answer.headers
    assert server.request("HEAD", "/api/version").status == 200


@pytest.mark.parametrize(
    "path", ["/nope", "/api/load", "/metrics", "/api/unload", "/debug/pprof", "/healthz"]
)
def test_unknown_path(server, path):
    """What doesn't exist is a 404 in plain text."""
    answer = server.get(path)
    assert (answer.status, answer.body) == (404, b"404 page not found")
    assert answer.headers["content-type"] == "text/plain"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("HEAD", "/api/ps", "GET"),
        ("GET", "/api/generate", "POST"),
        ("POST", "/api/tags", "GET"),
        ("GET", "/api/delete", "DELETE"),
        ("GET", "/v1/chat/completions", "POST"),
    ],
)
def test_wrong_method(server, method, path, allowed):
    """A known path with another method is a 405 that names the right ones."""
    answer = server.request(method, path)
    assert answer.status == 405
    assert allowed in answer.headers["allow"]
    if method != "HEAD":
        assert answer.body == b"405 method not allowed"
        assert answer.headers["content-type"] == "text/plain"


@pytest.mark.parametrize(
    ("path", "status", "location"),
    [
        ("//api/tags", 307, "/api/tags"),
        ("/api/../api/tags", 307, "/api/tags"),
        ("/api/tags/", 301, "/api/tags"),
    ],
)
def test_path_cleaning(server, path, status, location):
    """An unclean path is redirected to the clean one."""
    raw = server.raw(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    head = raw.partition(b"\r\n\r\n")[0].decode()
    assert head.startswith(f"HTTP/1.1 {status} ")
    assert f"Location: {location}" in head


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:11434", 200),
        ("192.168.1.5", 200),
        ("x.local", 200),
        ("x.internal", 200),
        ("x.localhost", 200),
        ("", 200),
        ("evil.example", 403),
        ("8.8.8.8", 403),
        ("nobody-knows-this", 403),
    ],
)
def test_host(server, host, status):
    """Bound to loopback, only local names are let in; others get an empty 403."""
    raw = server.raw(f"GET /api/version HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode())
    assert (body == b"") is (status == 403)


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost", 200),
        ("https://localhost:3000", 200),
        ("http://127.0.0.1:8080", 200),
        ("app://x", 200),
        ("http://evil.example", 403),
        ("null", 403),
        ("http://192.168.1.5", 403),
    ],
)
def test_origin(server, origin, status):
    """Foreign origins get an empty 403."""
    answer = server.get("/api/version", headers={"Origin": origin})
    assert answer.status == status
    if status == 403:
        assert answer.body == b""


def test_options(server):
    """OPTIONS is answered without content where the Host is a name; to an address it is a wrong method."""
    named = server.request("OPTIONS", "/api/tags", headers={"Host": "localhost"})
    assert (named.status, named.body) == (204, b"")
    assert server.request("OPTIONS", "/api/tags").status == 405


def test_preflight(server):
    """A browser's question from an allowed origin is answered with what it may do."""
    answer = server.request("OPTIONS", "/api/chat", headers={"Origin": "http://localhost:3000"})
    assert answer.status == 204
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert server.request("OPTIONS", "/api/chat", headers={"Origin": "http://evil.example"}).status == 403


def test_allowed_origin_is_told(server):
    """An answer to an allowed origin names it."""
    answer = server.get("/api/version", headers={"Origin": "http://localhost"})
    assert answer.headers["access-control-allow-origin"] == "http://localhost"


def test_keep_alive_and_pipelining(server):
    """Two requests in one write are answered one after the other on the same connection."""
    one = b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    raw = server.raw(one + last)
    assert raw.count(b"HTTP/1.1 200 OK") == 2
    assert raw.endswith(b"Ollama is running")


def test_http_1_0(server):
    """A client of HTTP/1.0 is served, and the connection closed."""
    raw = server.raw(b"GET / HTTP/1.0\r\n\r\n")
    assert b" 200 OK\r\n" in raw
    assert raw.endswith(b"Ollama is running")


def test_expect_continue(server):
    """Who waits for leave to send the body is given it."""
    body = json.dumps({"model": "none"}).encode()
    head = (
        f"POST /api/show HTTP/1.1\r\nHost: x.local\r\nExpect: 100-continue\r\nContent-Length: {len(body)}\r\n"
    )
    raw = server.raw(head.encode() + b"Connection: close\r\n\r\n" + body)
    assert raw.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\n")


def test_chunked_request(server):
    """A request's body may come in chunks."""
    head = b"POST /api/show HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
    raw = server.raw(head + b'Connection: close\r\n\r\n8\r\n{"model"\r\n8\r\n:"none"}\r\n0\r\n\r\n')
    assert raw.startswith(b"HTTP/1.1 404 Not Found\r\n")


def test_content_type_does_not_matter(server):
    """A body is read as JSON whatever its type is called."""
    assert server.post("/api/show", {"model": "none"}, headers={"Content-Type": "text/plain"}).status == 404


def test_gzip_body(server):
    """A compressed body isn't understood."""
    packed = gzip.compress(b'{"model":"none"}')
    answer = server.post("/api/show", packed, headers={"Content-Encoding": "gzip"})
    assert answer.status == 400
    assert answer.json == {"error": "invalid character '\\x1f' looking for beginning of value"}


def test_no_compression(server):
    """Answers are never compressed."""
    answer = server.get("/api/tags", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in answer.headers
    assert "models" in answer.json
