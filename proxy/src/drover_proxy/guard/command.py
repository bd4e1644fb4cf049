"""`drover-proxy keys`: who may come in, by command."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from drover_proxy.guard import sshkey
from drover_proxy.guard.certificate import FORMS, read_identity
from drover_proxy.guard.keys import SCOPES, WAYS, expiry_time, hash_of
from drover_proxy.guard.store import PREFIX, Entry, alone, new_key, read_entries, write_entries

FAILED, USAGE_ERROR = 1, 2
FILE = Path("/etc/drover/keys.yaml")


class UsageError(Exception):
    """An argument that can't be used; the message says what is."""


def add_parser(commands: Any) -> None:
    """Add `keys` and its commands to a parser."""
    keys = commands.add_parser(
        "keys",
        help="manage the keys file",
        description="Manage the keys file. A running proxy takes every change within seconds.",
    )
    sub = keys.add_subparsers(dest="keys_command", required=True, metavar="COMMAND")
    add = sub.add_parser(
        "add",
        help="make a key, or let a client certificate in",
        description="Make a key and print it, once: the file keeps only its SHA-256. With --certificate no "
        "key is made: the name stands for the client certificate.",
    )
    add.add_argument("name", help="what logs and metrics call the caller")
    add.add_argument("--certificate", metavar="IDENTITY", help=FORMS)
    ssh = sub.add_parser(
        "import-ssh",
        help="let in whoever signs with an SSH key",
        description="Let in the stock `ollama` command by its own key: give the client's "
        "~/.ollama/id_ed25519.pub (ssh-keygen -t ed25519 -f ~/.ollama/id_ed25519 makes one).",
    )
    ssh.add_argument("name", help="what logs and metrics call the caller")
    ssh.add_argument("key", metavar="FILE", help="the public key's file; - reads standard input")
    for command in (add, ssh):
        command.add_argument("--scope", action="append", choices=SCOPES, help="good for what (default: use)")
        command.add_argument("--model", action="append", metavar="PATTERN", help="may use these (default: *)")
        command.add_argument("--expires", metavar="DATE", help="2027-01-31, or 2027-01-31T12:00:00Z")
    listing = sub.add_parser("list", help="list the callers", description="List the callers, without hashes.")
    revoke = sub.add_parser("revoke", help="remove a caller", description="Remove a caller by its name.")
    revoke.add_argument("name")
    for command in (add, ssh, listing, revoke):
        command.add_argument("--file", type=Path, default=FILE, metavar="FILE", help=f"default: {FILE}")


def run(options: argparse.Namespace) -> int:
    """Run one of the commands; the exit code is 0, 1 (not done) or 2 (usage)."""
    command = {"add": _add, "import-ssh": _import_ssh, "list": _list, "revoke": _revoke}
    try:
        return command[options.keys_command](options)
    except UsageError as error:
        print(f"drover-proxy keys {options.keys_command}: {error}", file=sys.stderr)
        return USAGE_ERROR
    except OSError as error:
        print(f"{error.filename or options.file}: {error.strerror}", file=sys.stderr)
        return FAILED


def _new_entry(options: argparse.Namespace, way: Entry) -> Entry:
    entry: Entry = {
        "name": options.name,
        **way,
        "scopes": options.scope or ["use"],
        "models": options.model or ["*"],
    }
    if options.expires:
        try:
            expiry_time(options.expires)
        except ValueError as error:
            message = f"--expires: expected 2027-01-31 or 2027-01-31T12:00:00Z, found {options.expires!r}"
            raise UsageError(message) from error
        entry["expires"] = options.expires
    return entry


def _append(file: Path, entry: Entry) -> bool:
    """Write one more entry, unless there is one of the same name or known by the same thing."""
    with alone(file):
        entries = read_entries(file)
        for other in entries:
            if other["name"] == entry["name"]:
                print(f"{file}: there is a caller named {entry['name']!r}; revoke it first", file=sys.stderr)
                return False
            if _same(other, entry):
                print(f"{file}: that is {other['name']!r} already; revoke it first", file=sys.stderr)
                return False
        write_entries(file, [*entries, entry])
    return True


def _same(one: Entry, other: Entry) -> bool:
    if one.get("ssh") and other.get("ssh"):
        return sshkey.read_line(one["ssh"]) == sshkey.read_line(other["ssh"])
    if one.get("certificate") and other.get("certificate"):
        return read_identity(one["certificate"]) == read_identity(other["certificate"])
    return False


def _add(options: argparse.Namespace) -> int:
    if options.certificate:
        try:
            way = {"certificate": read_identity(options.certificate)}
        except ValueError as error:
            raise UsageError(f"--certificate: {error}") from error
        return 0 if _append(options.file, _new_entry(options, way)) else FAILED
    key = new_key()
    if not _append(options.file, _new_entry(options, {"sha256": hash_of(key)})):
        return FAILED
    print(key)
    return 0


def _import_ssh(options: argparse.Namespace) -> int:
    source = "standard input" if options.key == "-" else options.key
    try:
        text = sys.stdin.read() if options.key == "-" else Path(options.key).read_text(encoding="utf-8")
        key = sshkey.read_line(text)
    except UnicodeDecodeError as error:
        raise UsageError(f"{source}: this is no text; expected {sshkey.EXAMPLE}") from error
    except ValueError as error:
        raise UsageError(f"{source}: {error}") from error
    return 0 if _append(options.file, _new_entry(options, {"ssh": sshkey.to_line(key)})) else FAILED


def _list(options: argparse.Namespace) -> int:
    for entry in read_entries(options.file):
        ways = ",".join("key" if way == "sha256" else way for way in WAYS if entry.get(way))
        scopes = ",".join(entry.get("scopes") or ["use"])
        models = ",".join(entry.get("models") or ["*"])
        expires = entry.get("expires") or "never"
        print(f"{entry['name']}\tby={ways}\tscopes={scopes}\tmodels={models}\texpires={expires}")
    return 0


def _revoke(options: argparse.Namespace) -> int:
    with alone(options.file):
        entries = read_entries(options.file)
        kept = [entry for entry in entries if entry["name"] != options.name]
        if len(kept) == len(entries):
            hint = " (give its name, not the key itself)" if options.name.startswith(PREFIX) else ""
            name = "what you gave" if hint else repr(options.name)
            print(f"{options.file}: no caller is named {name}{hint}", file=sys.stderr)
            return FAILED
        write_entries(options.file, kept)
    return 0
