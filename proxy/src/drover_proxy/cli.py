"""The command `drover-proxy`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

from drover_proxy import __version__
from drover_proxy.config import ConfigError, load
from drover_proxy.guard.keys import (
    PREFIX,
    SCOPES,
    expiry_time,
    hash_of,
    keys_path,
    load_keys,
    new_key,
    read_keys,
    write_keys,
)

USAGE_ERROR = 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="drover-proxy",
        description="The door of a drover host: routes, queues, loads and evicts models on Ollama instances.",
    )
    parser.add_argument("--version", action="version", version=f"drover-proxy {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the proxy", description="Run the proxy until SIGTERM.")
    serve.add_argument("--config", type=Path, default=Path("/etc/drover/proxy.yaml"), metavar="FILE")
    check = commands.add_parser(
        "check",
        help="check a configuration file",
        description="Check a configuration file, and the keys file it names, without binding a port. "
        "Exit code 0: usable; 2: not, and every mistake is named.",
    )
    check.add_argument("file", type=Path, metavar="FILE")
    keys = commands.add_parser("keys", help="manage the keys file", description="Manage the keys file.")
    _add_keys(keys.add_subparsers(dest="keys_command", required=True, metavar="COMMAND"))
    return parser


def _add_keys(commands: Any) -> None:
    add = commands.add_parser(
        "add",
        help="make a key",
        description="Make a key and print it, once: the file keeps only its SHA-256. "
        "A running proxy takes it at its next reload; one that has its keys as a systemd credential, at its "
        "next restart, which loses no request.",
    )
    add.add_argument("name", help="what logs and metrics call the key")
    add.add_argument("--scope", action="append", choices=SCOPES, help="what it is good for (default: use)")
    add.add_argument("--model", action="append", metavar="PATTERN", help="models it may use (default: *)")
    add.add_argument("--expires", metavar="DATE", help="2027-01-31, or 2027-01-31T12:00:00Z")
    listing = commands.add_parser(
        "list", help="list the keys", description="List the keys, without their hashes."
    )
    revoke = commands.add_parser("revoke", help="remove a key", description="Remove a key by its name.")
    revoke.add_argument("name")
    for command in (add, listing, revoke):
        command.add_argument("--file", type=Path, default=Path("/etc/drover/keys.yaml"), metavar="FILE")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code is 0, 1 (failed) or 2 (usage or configuration)."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "serve":
            return _serve(options.config)
        if options.command == "check":
            return _check(options.file)
        return {"add": _keys_add, "list": _keys_list, "revoke": _keys_revoke}[options.keys_command](options)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return USAGE_ERROR


def _serve(path: Path) -> int:
    import uvloop  # noqa: PLC0415 - the other commands start faster without the server

    from drover_proxy.app.service import StartError, serve  # noqa: PLC0415

    try:
        return int(uvloop.run(serve(path)))
    except StartError as error:
        print(f"drover-proxy: {error}", file=sys.stderr)
        return 1


def _check(path: Path) -> int:
    config = load(path)
    if config.keys_file:
        load_keys(keys_path(config.keys_file))
    else:
        print(f"{path}: warning: auth.keys_file is not set: everybody may use and manage all models")
    print(f"{path}: good: {len(config.instances)} instances, {len(config.models)} profiles of models")
    return 0


def _entries(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    content = path.read_text(encoding="utf-8")
    read_keys(content, str(path))
    # Dates stay text: what is written back must be what was read.
    entries: list[dict[str, Any]] = yaml.load(content, Loader=yaml.BaseLoader)["keys"] or []  # noqa: S506
    return entries


def _keys_add(options: argparse.Namespace) -> int:
    entries = _entries(options.file)
    if any(entry["name"] == options.name for entry in entries):
        print(f"{options.file}: there is a key named {options.name!r}; revoke it first", file=sys.stderr)
        return 1
    key = new_key()
    entry: dict[str, Any] = {
        "name": options.name,
        "sha256": hash_of(key),
        "scopes": options.scope or ["use"],
        "models": options.model or ["*"],
    }
    if options.expires:
        try:
            expiry_time(options.expires)
        except ValueError:
            print(
                f"--expires: expected 2027-01-31 or 2027-01-31T12:00:00Z, found {options.expires!r}",
                file=sys.stderr,
            )
            return USAGE_ERROR
        entry["expires"] = options.expires
    write_keys(options.file, [*entries, entry])
    print(key)
    return 0


def _keys_list(options: argparse.Namespace) -> int:
    for entry in _entries(options.file):
        scopes = ",".join(entry.get("scopes") or ["use"])
        models = ",".join(entry.get("models") or ["*"])
        print(f"{entry['name']}\tscopes={scopes}\tmodels={models}\texpires={entry.get('expires') or 'never'}")
    return 0


def _keys_revoke(options: argparse.Namespace) -> int:
    entries = _entries(options.file)
    kept = [entry for entry in entries if entry["name"] != options.name]
    if len(kept) == len(entries):
        print(f"{options.file}: no key is named {options.name!r} (keys start with {PREFIX})", file=sys.stderr)
        return 1
    write_keys(options.file, kept)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
