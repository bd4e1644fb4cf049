"""Pulling from a registry on loopback: the lab's own."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab.ollama import catalogue
from lab.ollama.registry import Faults, Registry, serve
from tests.contract.harness import Ollama, kind_of_environment
from tests.support import eventually

pytestmark = [pytest.mark.needs("pull"), pytest.mark.timeout(120)]
MODEL = "nomic-embed-text"
SIZE = catalogue.header("nomic-embed-text:latest")[1]
BLOB = catalogue.package("nomic-embed-text:latest")[1][0]


@pytest.fixture(scope="module")
def empty_server(tmp_path_factory) -> Iterator[Ollama]:
    """A server without models."""
    server = (
        Ollama(kind_of_environment(), tmp_path_factory.mktemp("pull") / "server", seeds=()).prepare().start()
    )
    yield server
    server.stop()


@pytest.fixture
def server(empty_server) -> Iterator[Ollama]:
    """The server without models, which is emptied after each test."""
    yield empty_server
    for name in empty_server.names():
        empty_server.request("DELETE", "/api/delete", {"model": name})


class Recorder(Registry):
    """Remembers what it was asked."""

    def handle(self, method, path, headers):
        REQUESTS.append((method, path, {name.lower(): value for name, value in headers.items()}))
        return super().handle(method, path, headers)


REQUESTS: list[tuple[str, str, dict[str, str]]] = []


@contextmanager
def registry(faults: Faults | None = None) -> Iterator[str]:
    """A registry; gives the name of a model in it."""
    REQUESTS.clear()
    server = serve(Recorder(faults or Faults()), "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}/library/{MODEL}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def _pull(server, name, **more):
    return server.post("/api/pull", {"model": name, "insecure": True, **more}, timeout=90)


def test_pull(server):
    """A pull tells its progress and leaves the manifest byte for byte; a second one fetches nothing."""
    with registry() as name:
        answer = _pull(server, name)
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/x-ndjson"
        steps = [line["status"] for line in answer.lines]
        assert steps[0] == "pulling manifest"
        assert steps[-3:] == ["verifying sha256 digest", "writing manifest", "success"]
        whole = [line for line in answer.lines if line.get("digest") == BLOB.digest][-1]
        assert whole["status"] == f"pulling {BLOB.digest[7:19]}"
        assert whole["completed"] <= whole["total"] == SIZE
        manifest, _ = catalogue.package("nomic-embed-text:latest")
        tag = next(tag for tag in server.get("/api/tags").json["models"] if tag["name"].startswith(name))
        assert tag["digest"] == hashlib.sha256(manifest).hexdigest()
        parts = {
            headers["range"]
            for method, path, headers in REQUESTS
            if path.endswith(BLOB.digest) and "range" in headers
        }
        assert parts == {"bytes=0-99999999", "bytes=100000000-199999999", f"bytes=200000000-{SIZE - 1}"}
        REQUESTS.clear()
        again = _pull(server, name)
        assert [line["status"] for line in again.lines][-1] == "success"
        assert [(method, path.rpartition("/")[0][-9:]) for method, path, _ in REQUESTS] == [
            ("GET", "manifests")
        ]


def test_pull_without_stream(server):
    """Without streaming the answer is how it ended."""
    with registry() as name:
        answer = _pull(server, name, stream=False)
        assert (answer.status, answer.json) == (200, {"status": "success"})


def test_plain_http_needs_insecure(server):
    """Without `insecure` https is tried, and what comes back is no TLS: told in-band."""
    with registry() as name:
        answer = server.post("/api/pull", {"model": name})
    assert answer.status == 200
    assert "pull model manifest" in answer.lines[-1]["error"]
    assert "tls: first record does not look like a TLS handshake" in answer.lines[-1]["error"]


def test_missing_model(server):
    """A model that the registry hasn't is an error in-band, or a 500 without streaming; never a 404."""
    with registry() as name:
        missing = name.replace(MODEL, "nothing")
        answer = _pull(server, missing)
        assert (answer.status, answer.lines[-1]) == (
            200,
            {"error": "pull model manifest: file does not exist"},
        )
        whole = _pull(server, missing, stream=False)
        assert (whole.status, whole.json) == (500, {"error": "pull model manifest: file does not exist"})


def test_wrong_digest(server):
    """Bytes that don't fit their digest are refused after the download, and the model isn't there."""
    with registry(Faults(corrupt=frozenset({BLOB.digest}))) as name:
        last = _pull(server, name).lines[-1]
        assert last["error"].startswith(
            f"digest mismatch, file must be downloaded again: want {BLOB.digest}, got sha256:"
        )
        assert not any(found.startswith(name) for found in server.names())
    with registry() as name:
        assert _pull(server, name).lines[-1] == {"status": "success"}


def test_no_location(server):
    """A registry that hands out blobs directly can't be pulled from."""
    with registry(Faults(without_location=frozenset({BLOB.digest}))) as name:
        assert _pull(server, name).lines[-1] == {"error": "http: no Location header in response"}


def test_pull_nothing(server):
    """A pull needs a name."""
    answer = server.post("/api/pull", {"model": ""})
    assert answer.status == 400


def test_no_registry(server):
    """A registry that isn't there is told in-band."""
    answer = _pull(server, "127.0.0.1:1/library/x")
    assert answer.status == 200
    assert answer.lines[-1]["error"].endswith("dial tcp 127.0.0.1:1: connect: connection refused")


@pytest.mark.needs("simulated")
def test_pull_takes_time_and_resumes(start):
    """A pull takes the time that its speed says; who leaves ends it, and the next goes on where it was."""
    server = start(knobs={"pull_bytes_per_second": 200e6}, seeds=())
    with registry() as name:
        first = server.background("/api/pull", {"model": name, "insecure": True})
        eventually(lambda: _completed(first) > 120_000_000, timeout=20, what="more than one part")
        first.cut()
        record = server.models / "blobs" / f"{BLOB.digest.replace(':', '-')}-partial-1"
        eventually(
            lambda: record.exists() and json.loads(record.read_text())["Completed"] > 0,
            what="progress is kept",
        )
        kept = json.loads(record.read_text())
        REQUESTS.clear()
        assert _pull(server, name).lines[-1] == {"status": "success"}
        ranges = [
            headers["range"]
            for _, path, headers in REQUESTS
            if path.endswith(BLOB.digest) and "range" in headers
        ]
        assert ranges[0] == f"bytes={kept['Offset'] + kept['Completed']}-199999999"
        assert not any(method == "HEAD" and path.endswith(BLOB.digest) for method, path, _ in REQUESTS)


def _completed(request) -> int:
    found = 0
    for line in request.body.splitlines():
        if line.startswith(b"{") and b"completed" in line:
            found = json.loads(line)["completed"]
    return found
