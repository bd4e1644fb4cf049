"""The command `drover-proxy`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from drover_proxy import __version__
from drover_proxy.build import BUILD
from drover_proxy.config import ConfigError, load
from drover_proxy.guard import command
from drover_proxy.guard.keys import keys_path, load_keys

USAGE_ERROR = 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="drover-proxy",
        description="The door of a drover host: routes, queues, loads and evicts models on Ollama instances.",
    )
    parser.add_argument("--version", action="version", version=f"drover-proxy {__version__} ({BUILD})")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the proxy", description="Run the proxy until SIGTERM.")
    serve.add_argument("--config", type=Path, default=Path("/etc/drover/proxy.yaml"), metavar="FILE")
    check = commands.add_parser(
        "check",
        help="check a configuration file",
        description="Check a configuration file, and the files that it names, without binding a port. "
        "Exit code 0: usable; 2: not, and every mistake is named.",
    )
    check.add_argument("file", type=Path, metavar="FILE")
    reload = commands.add_parser(
        "reload",
        help="have the running proxy read its files again",
        description="Have the proxy that runs read its configuration and the files that it names again. Exit "
        "code 0: all of it is in force; 1 or 2: refused, every mistake is named and nothing has changed; 3: "
        "what is named takes a restart, the rest is in force.",
    )
    reload.add_argument("--config", type=Path, default=Path("/etc/drover/proxy.yaml"), metavar="FILE")
    command.add_parser(commands)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code is 0, 1 (failed), 2 (usage or configuration) or 3 (needs a restart)."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "serve":
            return _serve(options.config)
        if options.command == "check":
            return _check(options.file)
        if options.command == "reload":
            from drover_proxy.admin import asking  # noqa: PLC0415 - the other commands ask nobody

            return asking.reload(options.config)
        return command.run(options)
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
    from drover_proxy.drivers.tls import TlsFiles  # noqa: PLC0415 - the other commands need none of it

    config = load(path)
    if config.tls:
        TlsFiles(config.tls).load()
    if config.auth.keys_file:
        ring = load_keys(keys_path(config.auth.keys_file))
        if ring.by_certificate and not (config.tls and config.tls.client_ca):
            print(f"{path}: warning: without tls.client_ca nobody is asked for a certificate; keys name some")
    else:
        print(f"{path}: warning: auth.keys_file is not set: everybody may use and manage all models")
    print(f"{path}: good: {len(config.instances)} instances, {len(config.models)} profiles of models")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
