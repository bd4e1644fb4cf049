"""Fetching blobs from a registry: in parts, resumable, at a set speed.

Between this client and the lab's own registry zeros are not sent: the client says that it can do without
them, and the registry says where they begin. Any other registry is read as it is.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, urljoin, urlsplit

from lab.ollama import VERSION, log
from lab.ollama.catalogue import MANIFEST_TYPE, zeros_digest
from lab.ollama.names import Name
from lab.ollama.progress import ProgressError

PART_BYTES = 100_000_000
STALL_SECONDS = 30.0
ATTEMPTS = 6
WITHOUT_ZEROS = "X-Without-Zeros"  # asked by the client; answered with the offset from which all is zero
_READ_BYTES = 1 << 20


class Cancelled(Exception):  # noqa: N818 - not an error: the last client has left
    """Nobody waits for this download any more."""


@dataclass
class Part:
    """A stretch of a blob."""

    number: int
    offset: int
    size: int
    completed: int = 0


def connect(url: SplitResult) -> http.client.HTTPConnection:
    """A connection to a registry."""
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    return kind(url.hostname or "", url.port, timeout=STALL_SECONDS)


def request(
    method: str, url: str, headers: dict[str, str]
) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    """One request; failures in Go's words."""
    split = urlsplit(url)
    target = split.path + (f"?{split.query}" if split.query else "")
    agent = {"User-Agent": f"ollama/{VERSION} (amd64 linux) simulated"}
    connection = connect(split)
    try:
        connection.request(method, target, headers=agent | headers)
        return connection, connection.getresponse()
    except ssl.SSLError as error:
        text = "tls: first record does not look like a TLS handshake"
        if isinstance(error, ssl.SSLCertVerificationError):
            text = "tls: failed to verify certificate: x509: certificate signed by unknown authority"
        raise ProgressError(f'{method.title()} "{url}": {text}') from error
    except socket.gaierror as error:
        raise ProgressError(
            f'{method.title()} "{url}": dial tcp: lookup {split.hostname}: no such host'
        ) from error
    except ConnectionRefusedError as error:
        where = f"{split.hostname}:{split.port or (443 if split.scheme == 'https' else 80)}"
        raise ProgressError(
            f'{method.title()} "{url}": dial tcp {where}: connect: connection refused'
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise ProgressError(f'{method.title()} "{url}": EOF') from error


def base_url(name: Name, insecure: bool) -> str:
    """Where a name's registry is."""
    scheme = "http" if insecure else "https"
    return f"{scheme}://{name.host}/v2/{name.namespace}/{name.model}"


def fetch_manifest(name: Name, insecure: bool) -> bytes:
    """The manifest of a model, byte for byte."""
    url = f"{base_url(name, insecure)}/manifests/{name.tag}"
    connection, answer = request("GET", url, {"Accept": MANIFEST_TYPE})
    try:
        if answer.status == 404:
            raise ProgressError("file does not exist")
        if answer.status >= 400:
            raise ProgressError(f"{answer.status}: {answer.read(4096).decode(errors='replace')}")
        return answer.read()
    finally:
        connection.close()


def blob_size(url: str) -> int:
    """What HEAD says about a blob."""
    connection, answer = request("HEAD", url, {})
    connection.close()
    if answer.status == 404:
        raise ProgressError("file does not exist")
    if answer.status >= 400:
        raise ProgressError(f"{answer.status}: ")
    return int(answer.headers.get("Content-Length", "0"))


def direct_url(url: str) -> str:
    """Where a blob's bytes are really served: the registry must say so by `Location`."""
    host = urlsplit(url).hostname
    for _ in range(10):
        connection, answer = request("GET", url, {})
        connection.close()
        if answer.status >= 400:
            raise ProgressError(f"{answer.status}: ")
        location = answer.headers.get("Location")
        if location is None:
            raise ProgressError("http: no Location header in response")
        target = urljoin(url, location)
        if answer.status == 200 or urlsplit(target).hostname != host:
            return target
        url = target
    raise ProgressError("maximum redirects exceeded")


@dataclass
class Download:
    """One blob on its way; several clients may wait for it."""

    url: str
    digest: str
    path: Path
    bytes_per_second: float
    total: int = 0
    completed: int = 0
    clients: int = 0
    cancelled: threading.Event = field(default_factory=threading.Event)
    zeros_from: int | None = None

    def run(self) -> None:
        """Fetch what is missing; ProgressError when it can't be had, Cancelled when nobody wants it."""
        parts = self._resume()
        if not parts:
            self.total = blob_size(self.url)
            parts = self._plan()
        self.completed = sum(part.completed for part in parts)
        target = direct_url(self.url)
        partial = self._partial()
        with partial.open("r+b" if partial.exists() else "w+b") as file:
            file.truncate(self.total)
        for part in parts:
            if part.completed < part.size:
                self._fetch(target, part)
        partial.replace(self.path)
        for part in parts:
            self._record(part).unlink(missing_ok=True)

    def _partial(self) -> Path:
        return self.path.with_name(self.path.name + "-partial")

    def _record(self, part: Part) -> Path:
        return self.path.with_name(f"{self.path.name}-partial-{part.number}")

    def _save(self, part: Part) -> None:
        record = {"N": part.number, "Offset": part.offset, "Size": part.size, "Completed": part.completed}
        self._record(part).write_text(json.dumps(record, separators=(",", ":")), encoding="utf-8")

    def _plan(self) -> list[Part]:
        size = max(PART_BYTES, min(10 * PART_BYTES, self.total // 16))
        starts = range(0, self.total, size)
        parts = [Part(number, at, min(size, self.total - at)) for number, at in enumerate(starts)]
        for part in parts:
            self._save(part)
        return parts

    def _resume(self) -> list[Part]:
        parts = []
        for record in self.path.parent.glob(f"{self.path.name}-partial-*"):
            try:
                data = json.loads(record.read_text(encoding="utf-8"))
            except ValueError:
                return []
            parts.append(Part(data["N"], data["Offset"], data["Size"], data["Completed"]))
        parts.sort(key=lambda part: part.number)
        self.total = sum(part.size for part in parts)
        return parts

    def _fetch(self, target: str, part: Part) -> None:
        for attempt in range(ATTEMPTS):
            try:
                self._attempt(target, part)
            except Cancelled:  # noqa: PERF203 - a try is what an attempt is
                self._save(part)
                raise
            except TimeoutError:
                self.completed -= part.completed
                part.completed = 0
                log.info(
                    f"{self.digest[7:19]} part {part.number} stalled; retrying. "
                    "If this persists, press ctrl-c to exit, "
                    "then 'ollama pull' to find a faster connection.",
                    source="download.go:295",
                )
            except (OSError, http.client.HTTPException, ProgressError) as error:
                self._save(part)
                wait = 2**attempt
                text = str(error) if isinstance(error, ProgressError) else "unexpected EOF"
                log.info(
                    f"{self.digest[7:19]} part {part.number} attempt {attempt} failed: {text}, "
                    f"retrying in {wait}s",
                    source="download.go:173",
                )
                if self.cancelled.wait(wait):
                    raise Cancelled from error
            else:
                self._save(part)
                return
        raise ProgressError("max retries exceeded: unexpected EOF")

    def _attempt(self, target: str, part: Part) -> None:
        first, last = part.offset + part.completed, part.offset + part.size - 1
        headers = {"Range": f"bytes={first}-{last}", WITHOUT_ZEROS: "1"}
        connection, answer = request("GET", target, headers)
        try:
            if answer.status >= 400:
                raise ProgressError(f"unexpected status code {answer.status}")
            if (told := answer.headers.get(WITHOUT_ZEROS)) is not None:
                self.zeros_from = int(told)
                self._take(part, first, answer.read())
                self._skip_zeros(part)
                return
            while part.completed < part.size:
                piece = answer.read(min(_READ_BYTES, part.size - part.completed))
                if not piece:
                    raise ProgressError("unexpected EOF")
                self._take(part, part.offset + part.completed, piece)
                self._pace(len(piece))
        finally:
            connection.close()

    def _take(self, part: Part, at: int, piece: bytes) -> None:
        with self._partial().open("r+b") as file:
            file.seek(at)
            file.write(piece)
        part.completed += len(piece)
        self.completed += len(piece)

    def _pace(self, size: int) -> None:
        if self.cancelled.is_set():
            raise Cancelled
        if self.bytes_per_second and self.cancelled.wait(size / self.bytes_per_second):
            raise Cancelled

    def _skip_zeros(self, part: Part) -> None:
        """Let the time pass that the zeros would have taken."""
        step = int(self.bytes_per_second * 0.05) or part.size
        while left := part.size - part.completed:
            size = min(step, left)
            self._pace(size)
            part.completed += size
            self.completed += size


def verify(download: Download) -> None:
    """Check what was fetched; a file that is wrong is removed."""
    path, size = download.path, download.path.stat().st_size
    if download.zeros_from is not None:
        with path.open("rb") as file:
            got = zeros_digest(file.read(min(download.zeros_from, size)), size)
    else:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(1 << 22):
                digest.update(piece)
        got = "sha256:" + digest.hexdigest()
    if got != download.digest:
        path.unlink()
        raise ProgressError(
            f"digest mismatch, file must be downloaded again: want {download.digest}, got {got}"
        )


class Downloads:
    """All blobs on their way; a second client for one joins the first."""

    def __init__(self) -> None:
        self._running: dict[str, tuple[Download, threading.Thread, list[Exception]]] = {}
        self._lock = threading.Lock()

    def join(self, make: Callable[[], Download]) -> tuple[Download, threading.Thread, list[Exception]]:
        """Start a download, or join the one that runs."""
        wanted = make()
        with self._lock:
            entry = self._running.get(wanted.digest)
            if entry is None or entry[0].cancelled.is_set():
                problems: list[Exception] = []
                thread = threading.Thread(target=self._run, args=(wanted, problems), daemon=True)
                entry = (wanted, thread, problems)
                self._running[wanted.digest] = entry
                thread.start()
            entry[0].clients += 1
        return entry

    def _run(self, download: Download, problems: list[Exception]) -> None:
        try:
            download.run()
        except (ProgressError, Cancelled, OSError) as error:
            problems.append(error)
        finally:
            with self._lock:
                current = self._running.get(download.digest)
                if current is not None and current[0] is download:
                    del self._running[download.digest]

    def leave(self, download: Download) -> None:
        """A client has left; with the last one the download ends."""
        with self._lock:
            download.clients -= 1
            if download.clients <= 0:
                download.cancelled.set()
