"""Ollama's release: fetched, checked, and unpacked beside the others before anything points to it."""

from __future__ import annotations

import base64
import hashlib
import shlex
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from pyinfra import host
from pyinfra.api import operation

from deploys.lib import operations
from deploys.lib.facts import Lines
from deploys.lib.operations import Commands
from drover.schema import ROOT

RELEASES = "/opt/drover/ollama"
ARCHIVES = "/var/cache/drover"
DOWNLOADS = ROOT / ".cache" / "downloads"
# The digest of the archive that a release was unpacked from; written last.
MARK = ".drover-sha256"

# $0 is the archive, then folder, version and digest. Nothing is seen in its place before it is whole.
UNPACK = (
    'set -eu; umask 022; cd "$1"; rm -rf .new-*; new=$(mktemp -d ".new-$2.XXXXXX"); '
    'trap \'rm -rf -- "$new" "$0"\' EXIT; chmod 0755 "$new"; '
    'zstd -dcq -- "$0" | tar -x -f - -C "$new" --no-same-owner; '
    '[ -x "$new/bin/ollama" ] || { echo "$0: holds no bin/ollama" >&2; exit 1; }; '
    'echo "$3" > "$new/' + MARK + '"; '
    'if [ -e "$2" ]; then rm -rf ".old-$2"; mv -T -- "$2" ".old-$2"; fi; '
    'mv -T -- "$new" "$2"; rm -rf -- ".old-$2"'
)
_one_at_a_time = threading.Lock()


class FetchError(Exception):
    """The controller couldn't fetch the archive; the message names the URL and the reason."""


@dataclass(frozen=True, slots=True)
class Login:
    """A login at the server that holds the archive."""

    username: str = ""
    password: str = ""

    def __repr__(self) -> str:
        return f"Login({self.username!r})"


@operation()
def release(version: str, url: str, sha256: str, fetch: str, login: Login) -> Commands:
    """Have a release of Ollama unpacked; its archive is checked before anything of it is unpacked.

    + version: the release, and the name of its folder
    + url: where its archive is
    + sha256: the digest that the archive must have
    + fetch: host or controller
    + login: sent to the server, never shown
    """
    mark = shlex.quote(f"{RELEASES}/{version}/{MARK}")
    if host.get_fact(Lines, script=f"cat {mark}") == [sha256]:
        host.noop(f"release {version} is there")
        return
    archive = f"{ARCHIVES}/ollama-{version}.tar.zst"
    if fetch == "controller":
        yield operations.script('install -d -m 0755 -- "$0"', ARCHIVES)
        try:
            file = fetched(url, sha256, login)
        except FetchError as error:
            yield operations.refusal(str(error))
            return
        yield from operations.upload._inner(src=file, dest=archive)  # noqa: SLF001 - pyinfra's way to nest
    else:
        yield from operations.download._inner(  # noqa: SLF001 - as above
            url=url, dest=archive, sha256=sha256, username=login.username, password=login.password
        )
    yield operations.script(UNPACK, archive, RELEASES, version, sha256)


def fetched(url: str, sha256: str, login: Login) -> Path:
    """Fetch the archive to the controller, once for all hosts and runs, and return where it lies."""
    DOWNLOADS.mkdir(parents=True, exist_ok=True)
    file = DOWNLOADS / sha256
    with _one_at_a_time:
        if file.is_file() and operations.file_sha256(file) == sha256:
            return file
        request = urllib.request.Request(url)
        if login.username:
            token = base64.b64encode(f"{login.username}:{login.password}".encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {token}")
        new = file.with_name(f"{sha256}.partial")
        digest = hashlib.sha256()
        try:
            with urllib.request.urlopen(request, timeout=60) as answer, new.open("wb") as out:
                while block := answer.read(1 << 20):
                    digest.update(block)
                    out.write(block)
        except (urllib.error.URLError, OSError) as error:
            new.unlink(missing_ok=True)
            raise FetchError(f"{url}: {error}; nothing was put in place") from error
        if digest.hexdigest() != sha256:
            new.unlink()
            raise FetchError(
                f"{url}: expected SHA-256 {sha256}, got {digest.hexdigest()}; nothing was put in place"
            )
        new.replace(file)
    return file
