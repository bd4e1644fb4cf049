"""The catalogue as a model registry: what the lab's mirror serves under /v2/.

A real Ollama can pull from it: blobs are answered with a `Location` and in ranges. Its own simulated client
asks to leave out the zeros that the weights are made of; only the few kilobytes before them are then sent.

    python -m lab.ollama.registry --port 5000      a registry of its own, for tests
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from lab.ollama import catalogue
from lab.ollama.catalogue import MANIFEST_TYPE, Blob
from lab.ollama.download import WITHOUT_ZEROS

_MANIFEST = re.compile(r"^/v2/(?P<name>.+)/manifests/(?P<tag>[^/]+)$")
_BLOB = re.compile(r"^/v2/(?P<name>.+)/blobs/(?P<digest>sha256[:-][0-9a-f]{64})$")
_RANGE = re.compile(r"^bytes=(\d+)-(\d*)$")
_ZEROS = bytes(1 << 20)


@dataclass(frozen=True)
class RegistryAnswer:
    """What to send back; `body_chunks` is made as it is read."""

    status: int
    headers: dict[str, str]
    body_chunks: Iterable[bytes] = ()


@dataclass(frozen=True)
class Faults:
    """What a test wants to go wrong; each is a set of blob digests or of `model:tag` names."""

    missing: frozenset[str] = frozenset()  # 404
    corrupt: frozenset[str] = frozenset()  # other bytes than the digest says
    without_location: frozenset[str] = frozenset()  # blobs served directly, which Ollama can't pull
    without_range: frozenset[str] = frozenset()  # ranges ignored


@lru_cache(maxsize=1)
def _blobs() -> dict[str, Blob]:
    """Every blob of the catalogue by its digest."""
    return {blob.digest: blob for name in catalogue.MODELS for blob in catalogue.package(name)[1]}


def _slice(blob: Blob, first: int, last: int, *, corrupt: bool) -> Iterator[bytes]:
    """Bytes `first` to `last` of a blob."""
    content = blob.content
    if corrupt and content:
        content = content[:-1] + bytes([content[-1] ^ 1])
    if first < len(content):
        piece = content[first : last + 1]
        yield piece
        first += len(piece)
    while first <= last:
        piece = _ZEROS[: min(len(_ZEROS), last + 1 - first)]
        yield piece
        first += len(piece)


@dataclass(frozen=True)
class Registry:
    """Answers requests for the catalogue's models as `library/<model>:<tag>`."""

    faults: Faults = field(default_factory=Faults)

    def handle(self, method: str, path: str, headers: Mapping[str, str]) -> RegistryAnswer:
        """Answer one request; header names may be of any case."""
        path = path.partition("?")[0]
        given = {name.lower(): value for name, value in headers.items()}
        if method not in {"GET", "HEAD"}:
            return self._error(405, "UNSUPPORTED", "this registry can only be read")
        if path in {"/v2", "/v2/"}:
            return self._document(method, "application/json", b"{}")
        if match := _MANIFEST.match(path):
            return self._manifest(method, match["name"], match["tag"])
        if match := _BLOB.match(path):
            return self._blob(method, path, match["digest"].replace("-", ":"), given)
        return self._error(404, "NOT_FOUND", f"no such resource: {path}")

    @staticmethod
    def _error(status: int, code: str, message: str) -> RegistryAnswer:
        body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        return RegistryAnswer(status, headers, (body,))

    @staticmethod
    def _document(method: str, kind: str, body: bytes) -> RegistryAnswer:
        headers = {"Content-Type": kind, "Content-Length": str(len(body))}
        return RegistryAnswer(200, headers, () if method == "HEAD" else (body,))

    def _manifest(self, method: str, name: str, tag: str) -> RegistryAnswer:
        namespace, _, short = name.rpartition("/")
        model = catalogue.find(f"{short}:{tag}") if namespace == "library" else None
        if model is None or f"{short}:{tag}" in self.faults.missing:
            return self._error(404, "MANIFEST_UNKNOWN", f"manifest unknown: {name}:{tag}")
        return self._document(method, MANIFEST_TYPE, catalogue.package(model.name)[0])

    def _blob(self, method: str, path: str, digest: str, given: Mapping[str, str]) -> RegistryAnswer:
        blob = _blobs().get(digest)
        if blob is None or digest in self.faults.missing:
            return self._error(404, "BLOB_UNKNOWN", f"blob unknown: {digest}")
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        if digest not in self.faults.without_location:
            headers["Location"] = path
        first, last, status = 0, blob.size - 1, 200
        match = _RANGE.match(given.get("range", ""))
        if match and digest not in self.faults.without_range:
            first = int(match[1])
            last = min(int(match[2]) if match[2] else last, last)
            if first > last:
                headers |= {"Content-Range": f"bytes */{blob.size}", "Content-Length": "0"}
                return RegistryAnswer(416, headers)
            status = 206
            headers["Content-Range"] = f"bytes {first}-{last}/{blob.size}"
        if WITHOUT_ZEROS.lower() in given:
            headers[WITHOUT_ZEROS] = str(len(blob.content))
            last = min(last, len(blob.content) - 1)
        headers["Content-Length"] = str(max(0, last + 1 - first))
        if method == "HEAD":
            return RegistryAnswer(status, headers)
        return RegistryAnswer(
            status, headers, _slice(blob, first, last, corrupt=digest in self.faults.corrupt)
        )


def serve(registry: Registry, host: str, port: int) -> ThreadingHTTPServer:
    """A server of its own around a registry; the caller runs `serve_forever` and `shutdown`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer = registry.handle(self.command, self.path, dict(self.headers.items()))
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                for chunk in answer.body_chunks:
                    self.wfile.write(chunk)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        do_HEAD = do_GET  # noqa: N815 - the names that http.server looks for

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's own name
            """Say nothing; whoever runs it may log."""

    return ThreadingHTTPServer((host, port), Handler)


def main() -> None:
    """Serve the catalogue."""
    parser = argparse.ArgumentParser(description="A model registry that serves the lab's catalogue.")
    parser.add_argument("--bind", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=5000)
    options = parser.parse_args()
    server = serve(Registry(), options.bind, options.port)
    print(f"http://{options.bind}:{server.server_port}/v2/", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
