"""Serves a mirror over HTTP: files with ranges and a login, the model registry without one."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import hmac
import os
import posixpath
import re
import signal
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

from lab.mirror import faults
from lab.ollama.registry import Registry

GUARDED = ("apt/", "ollama/")
PIECE = 256 * 1024
TYPES = {".gz": "application/gzip", ".json": "application/json", ".txt": "text/plain", ".asc": "text/plain"}
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class MirrorServer(ThreadingHTTPServer):
    """One mirror: its root, its login, its registry, its access log."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], root: Path, login: str | None, log: Path | None) -> None:
        self.root = root
        self.login = base64.b64encode(login.encode()).decode() if login else None
        self.registry = Registry()
        self.log = log.open("a", encoding="utf-8", buffering=1) if log else sys.stderr
        self.log_lock = threading.Lock()
        super().__init__(address, Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that leave; the rest as ever."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "drover-lab-mirror"
    sys_version = ""
    timeout = 120
    disable_nagle_algorithm: ClassVar[bool] = True
    server: MirrorServer

    def do_GET(self) -> None:  # noqa: N802
        """Answer a file or the registry."""
        self._answer()

    def do_HEAD(self) -> None:  # noqa: N802
        """As GET, without the body."""
        self._answer()

    def _answer(self) -> None:
        target = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        path = posixpath.normpath(target).lstrip("/")
        if path == "v2" or path.startswith("v2/"):
            self._registry()
        elif path == ".." or path.startswith("../") or "\0" in path:
            self._send(HTTPStatus.BAD_REQUEST, {}, b"")
        elif path.startswith(GUARDED) and not self._may_enter():
            realm = {"WWW-Authenticate": 'Basic realm="drover lab mirror"'}
            self._send(HTTPStatus.UNAUTHORIZED, realm, b"a login is needed\n")
        else:
            self._file(path)

    def _may_enter(self) -> bool:
        if self.server.login is None:
            return True
        scheme, _, given = self.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "basic" and hmac.compare_digest(given.strip(), self.server.login)

    def _registry(self) -> None:
        answer = self.server.registry.handle(self.command, self.path, dict(self.headers.items()))
        self._begin(answer.status, answer.headers)
        if self.command != "HEAD":
            self._write(
                answer.body_chunks,
                has_length=any(name.lower() == "content-length" for name in answer.headers),
            )

    def _file(self, path: str) -> None:
        active = faults.active(self.server.root)
        file = self.server.root / path
        allowed = path.startswith(GUARDED) or path == "mirror.json" or path.startswith("files/")
        if not allowed or not file.is_file() or faults.hides(active, path):
            self._send(HTTPStatus.NOT_FOUND, {}, b"no such file\n")
            return
        whole = file.read_bytes()
        content = faults.spoil(active, path, whole)
        # Other bytes have another date, or a client would resume one version with the end of the other.
        source = file if content == whole else self.server.root / faults.CONTROL
        modified = source.stat().st_mtime
        headers = {
            "Content-Type": TYPES.get(file.suffix, "application/octet-stream"),
            "Last-Modified": email.utils.formatdate(modified, usegmt=True),
            "Accept-Ranges": "bytes",
        }
        if self._is_fresh(modified):
            self._send(HTTPStatus.NOT_MODIFIED, headers, None)
            return
        wanted = self._range(len(content)) if self._may_resume(modified) else None
        if wanted is None:
            self._send(HTTPStatus.OK, headers, content)
        elif wanted[0] >= len(content):
            headers["Content-Range"] = f"bytes */{len(content)}"
            self._send(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, headers, b"")
        else:
            first, last = wanted
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            self._send(HTTPStatus.PARTIAL_CONTENT, headers, content[first : last + 1])

    def _is_fresh(self, modified: float) -> bool:
        since = self.headers.get("If-Modified-Since")
        if not since or "Range" in self.headers:
            return False
        with contextlib.suppress(ValueError, TypeError):
            return int(modified) == email.utils.parsedate_to_datetime(since).timestamp()
        return False

    def _may_resume(self, modified: float) -> bool:
        """Whether the part that the client has is of these bytes, as far as If-Range says."""
        known = self.headers.get("If-Range")
        return known is None or known == email.utils.formatdate(modified, usegmt=True)

    def _range(self, size: int) -> tuple[int, int] | None:
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        if match is None or match.groups() == ("", ""):
            return None
        if not match[1]:
            return max(0, size - int(match[2])), size - 1
        return int(match[1]), min(size - 1, int(match[2])) if match[2] else size - 1

    def _send(self, status: HTTPStatus, headers: dict[str, str], body: bytes | None) -> None:
        length = {} if body is None else {"Content-Length": str(len(body))}
        self._begin(status, {**headers, **length})
        if body and self.command != "HEAD":
            self._write(body[at : at + PIECE] for at in range(0, len(body), PIECE))

    def _begin(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _write(self, pieces: Iterable[bytes], *, has_length: bool = True) -> None:
        try:
            for piece in pieces:
                self.wfile.write(piece)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        if not has_length:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Write the access log: who, when, what; no header ever."""
        line = f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {self.client_address[0]} {format % args}\n"
        with self.server.log_lock:
            self.server.log.write(line)


def read_login(path: Path) -> str:
    """Read `user:password` from a file that only its owner may read."""
    if path.stat().st_mode & 0o077:
        raise PermissionError(f"{path}: others may read the mirror's login: chmod 600 {path}")
    return path.read_text(encoding="utf-8").strip()


def serve(
    root: Path, bind: str, port: int, *, auth_file: Path | None, pid_file: Path | None, log: Path | None
) -> None:
    """Serve until SIGTERM."""
    login = read_login(auth_file) if auth_file else None
    server = MirrorServer((bind, port), root, login, log)

    def stop(*_: object) -> None:
        threading.Thread(target=server.shutdown, daemon=True).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    if pid_file:
        pid_file.write_text(f"{os.getpid()}\n", encoding="ascii")
    print(f"mirror: {root} on http://{bind}:{server.server_address[1]}/", file=sys.stderr, flush=True)
    try:
        server.serve_forever(poll_interval=0.1)
    finally:
        server.server_close()
        if pid_file:
            pid_file.unlink(missing_ok=True)
