"""Operations of our own: each changes nothing when nothing is to be changed, and shows no secret.

Contents travel to a host through the standard input of a command, never in its arguments, so that no process
list, log or diff can show them. Every file is written beside its place, checked, and moved there in one step.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Callable, Generator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pyinfra import host, logger
from pyinfra.api import FileUploadCommand, FunctionCommand, QuoteString, StringCommand, operation

from deploys.lib.facts import FileState, FileStateFact, Lines, Probe

Commands = Generator[Any, None, None]
RECORDS = "/var/lib/drover/record"

# Reads the digest's line and the content in base64 from stdin; $0 is the place, then mode, user and group.
PLACE = (
    'set -eu; umask 022; mkdir -p -- "$(dirname -- "$0")"; umask 077; read -r want; '
    'new=$(mktemp -- "$0.XXXXXX"); trap \'rm -f -- "$new"\' EXIT; base64 -d > "$new"; '
    'got=$(sha256sum < "$new"); '
    '[ "${got%% *}" = "$want" ] || '
    '{ echo "$0: the content arrived damaged; nothing was put in place" >&2; exit 1; }; '
    'chown -- "$2:$3" "$new"; chmod -- "$1" "$new"; mv -fT -- "$new" "$0"; trap - EXIT'
)
# $0 is the place, then URL, digest and mode; curl's login comes on stdin.
FETCH = (
    'set -eu; umask 022; mkdir -p -- "$(dirname -- "$0")"; new="$0.partial"; trap \'rm -f -- "$new"\' EXIT; '
    'curl -fsSL --retry 3 --retry-connrefused --connect-timeout 20 -K - -o "$new" -- "$1"; '
    'got=$(sha256sum < "$new"); got="${got%% *}"; '
    '[ "$got" = "$2" ] || '
    '{ echo "$1: expected SHA-256 $2, got $got; nothing was put in place" >&2; exit 1; }; '
    'chmod -- "$3" "$new"; mv -fT -- "$new" "$0"; trap - EXIT'
)


def script(text: str, *arguments: str, **connector: Any) -> StringCommand:
    """Return a command that runs a shell script with arguments that need no quoting of ours."""
    return StringCommand(
        "sh", "-c", QuoteString(text), *(QuoteString(word) for word in arguments), **connector
    )


def refusal(message: str) -> FunctionCommand:
    """Return a command that fails this host with a message.

    A generator yields it instead of raising, which would end the run of all hosts.
    """
    return FunctionCommand(_refuse, (message,), {})


def _refuse(state: Any, host: Any, message: str) -> bool:  # noqa: ARG001 - pyinfra passes all three by name
    host.log_styled(message, fg="red", log_func=logger.error)
    return False


def _place(dest: str, content: bytes, mode: str, user: str, group: str) -> StringCommand:
    digest = hashlib.sha256(content).hexdigest()
    body = base64.b64encode(content).decode()
    return script(PLACE, dest, mode, user, group, _stdin=[digest, body])


def _as_wanted(dest: str, content: str | bytes, mode: str, user: str, group: str) -> Commands:
    data = content.encode() if isinstance(content, str) else content
    wanted = FileState(hashlib.sha256(data).hexdigest(), mode.zfill(4), user, group)
    if host.get_fact(FileStateFact, path=dest) == wanted:
        host.noop(f"{dest} is as wanted")
        return
    yield _place(dest, data, mode, user, group)


@operation()
def place(
    dest: str, content: str | bytes, mode: str = "0644", user: str = "root", group: str = "root"
) -> Commands:
    """Put a file with this content, mode and owner in place, in one step.

    + dest: absolute path on the host
    + content: what it shall hold
    + mode, user, group: its permissions
    """
    yield from _as_wanted(dest, content, mode, user, group)


@operation()
def secret_file(
    dest: str, content: str | bytes, user: str = "root", group: str = "root", mode: str = "0600"
) -> Commands:
    """As `place`, for a secret: readable by its owner only from the moment it exists.

    + dest: absolute path on the host
    + content: the secret, which appears in no command line, log or diff
    """
    if int(mode, 8) & 0o007:
        yield refusal(f"{dest}: mode {mode} would let everybody read a secret")
        return
    yield from _as_wanted(dest, content, mode, user, group)


@operation()
def absent(path: str) -> Commands:
    """Remove a file, if it is there."""
    if not host.get_fact(Probe, probe=f"[ -e {_quoted(path)} ] || [ -L {_quoted(path)} ]"):
        host.noop(f"{path} isn't there")
        return
    yield StringCommand("rm", "-f", "--", QuoteString(path))


@operation()
def upload(
    src: str | Path, dest: str, mode: str = "0644", user: str = "root", group: str = "root"
) -> Commands:
    """Copy a file of the controller to the host, checked against its digest before it is put in place.

    It is staged in a folder that only the ssh user may enter.

    + src: file on the controller
    + dest: absolute path on the host
    """
    path = Path(src)
    digest = file_sha256(path)
    if host.get_fact(FileStateFact, path=dest) == FileState(digest, mode.zfill(4), user, group):
        host.noop(f"{dest} is as wanted")
        return
    home = "".join(host.get_fact(Lines, script='printf %s "$HOME"', _sudo=False)) or "/root"
    staging = f"{home}/.cache/drover-staging"
    staged = f"{staging}/{digest}"
    yield script('umask 077; mkdir -p -- "$0" && chmod 0700 -- "$0"', staging, _sudo=False)
    yield FileUploadCommand(str(path), staged, _sudo=False)
    yield script(
        'set -eu; trap \'rm -f -- "$0" "$2.partial"\' EXIT; umask 022; mkdir -p -- "$(dirname -- "$2")"; '
        'cp -- "$0" "$2.partial"; echo "$1  $2.partial" | sha256sum -c --status || '
        '{ echo "$2: the file arrived damaged; nothing was put in place" >&2; exit 1; }; '
        'chown -- "$4:$5" "$2.partial"; chmod -- "$3" "$2.partial"; mv -fT -- "$2.partial" "$2"',
        staged, digest, dest, mode, user, group,
    )  # fmt: skip


@operation()
def download(
    url: str, dest: str, sha256: str, mode: str = "0644", username: str = "", password: str = ""
) -> Commands:
    """Fetch a file on the host; it is put in place only when its SHA-256 is the one expected.

    + url: where from
    + dest: absolute path on the host
    + sha256: the expected digest
    + username, password: login at the server; handed to curl on its standard input
    """
    found = host.get_fact(FileStateFact, path=dest)
    if found and found.sha256 == sha256.lower() and found.mode == mode.zfill(4):
        host.noop(f"{dest} already has the wanted digest")
        return
    login = [f'user = "{_curl_word(username)}:{_curl_word(password)}"'] if username else ["# no login"]
    yield script(FETCH, dest, url, sha256.lower(), mode, _stdin=login)


@operation()
def guarded(commands: str | list[str], unless: str = "", only_if: str = "") -> Commands:
    """Run shell commands, but not when they aren't needed.

    + commands: one command or several, in order
    + unless: a command that succeeds when there is nothing to do
    + only_if: a command that succeeds when there is something to do
    """
    if unless and host.get_fact(Probe, probe=unless):
        host.noop("already so")
        return
    if only_if and not host.get_fact(Probe, probe=only_if):
        host.noop("not needed")
        return
    for command in [commands] if isinstance(commands, str) else commands:
        yield StringCommand(command)


@operation()
def gate(probe: str, message: str, timeout_seconds: int = 30, every_seconds: int = 1) -> Commands:
    """Wait until a probe succeeds; fail the host with a message when it doesn't in time.

    A probe that succeeds at once changes nothing, so a gate is silent on a second run.

    + probe: shell command that exits with 0 when all is well
    + message: what is wrong otherwise, and what to look at
    """
    if host.get_fact(Probe, probe=probe):
        host.noop("holds")
        return
    yield script(
        'end=$(( $(date +%s) + $1 )); while :; do out=$(sh -c "$0" 2>&1) && exit 0; '
        'if [ "$(date +%s)" -ge "$end" ]; then printf "%s\\n" "$3" >&2; '
        'printf "%s\\n" "$out" | tail -n 20 >&2; exit 1; fi; sleep "$2"; done',
        probe, str(timeout_seconds), str(every_seconds), message,
    )  # fmt: skip


@operation()
def record(layer: str, values: Mapping[str, Any] | Callable[[], Mapping[str, Any]]) -> Commands:
    """Write down what a layer has laid, with the time of the last change, unless it says so already.

    + layer: its name
    + values: what to record, or a function that finds out, called when the operation runs
    """
    content = dict(values() if callable(values) else values)
    path = f"{RECORDS}/{layer}.json"
    before = host.get_fact(Lines, script=f"cat {_quoted(path)}")
    try:
        old = json.loads("\n".join(before) or "{}")
    except ValueError:
        old = {}
    if isinstance(old, dict) and {key: old[key] for key in old if key != "changed_at"} == content:
        host.noop(f"{path} says so already")
        return
    now = datetime.now(UTC).isoformat(timespec="seconds")
    text = json.dumps({**content, "changed_at": now}, indent=2, sort_keys=True) + "\n"
    yield _place(path, text.encode(), "0644", "root", "root")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file on the controller."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _curl_word(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _quoted(text: str) -> str:
    return shlex.quote(text)
