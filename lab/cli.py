"""`python -m lab`: real hosts with simulated GPUs on this machine."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab.hosts import tools
from lab.hosts.errors import LabError
from lab.hosts.host import ssh_command
from lab.hosts.paths import PROJECT

DEFAULT_NAME = "lab"
DEFAULT_FLEET = Path("inventories/lab")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(prog="python -m lab", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("--name", default=None, help="the lab's name (default: lab)")

    up = commands.add_parser("up", parents=[named], help="boot a lab")
    up.add_argument("--hosts", type=int, default=None, metavar="N", help="the first N hosts (default: all)")
    up.add_argument(
        "--profile", default="profiles/mixed.yaml", metavar="FILE", help="which hosts, which GPUs"
    )
    up.add_argument(
        "--fleet",
        type=Path,
        default=None,
        metavar="DIR",
        help=f"the fleet folder to write ({DEFAULT_FLEET} for the lab named {DEFAULT_NAME}, else none)",
    )
    commands.add_parser("down", parents=[named], help="remove a lab, also one that was left over")
    for name, text in (("list", "list a lab's hosts"), ("status", "what runs, of one lab or of all")):
        command = commands.add_parser(name, parents=[named], help=text)
        command.add_argument(
            "--json", action="store_true", help="for programs; `list` shows the API keys too"
        )
    ssh = commands.add_parser("ssh", parents=[named], help="a shell, or one command, on a host")
    ssh.add_argument("--user", default="root", help="root or ops (default: root)")
    ssh.add_argument("host", metavar="HOST")
    ssh.add_argument("words", nargs=argparse.REMAINDER, metavar="CMD", help="what to run there")
    logs = commands.add_parser(
        "logs", parents=[named], help="a host's console and journal; or the mirror's log"
    )
    logs.add_argument("host", metavar="HOST", help="a host, `mirror` or `supervisor`")
    for name, text in (
        ("reset", "give a host a fresh file system and boot it"),
        ("stop", "pull a host's plug"),
        ("start", "switch a stopped host on"),
    ):
        commands.add_parser(name, parents=[named], help=text).add_argument("host", metavar="HOST")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    options = parser().parse_args(arguments)
    # Also SIGINT: a shell that starts us in the background leaves it ignored, but Ctrl-C must clean up.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        tools.require_root_on_linux(f"lab {options.command}")
        from lab.hosts.lab import Lab, names  # noqa: PLC0415 - can't be imported where it can't run

        if options.command == "status" and options.name is None:
            return show_status([Lab(name) for name in names()], as_json=options.json)
        lab = Lab(options.name or _lab_of(getattr(options, "host", ""), names()), say=say)
        return COMMANDS[options.command](lab, options)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def say(line: str) -> None:
    """Print a line at once, also into a pipe."""
    print(line, flush=True)


def _up(lab: Any, options: argparse.Namespace) -> int:
    fleet = options.fleet
    if fleet is None and lab.name == DEFAULT_NAME:
        fleet = PROJECT / DEFAULT_FLEET
    lab.up(options.hosts, options.profile, fleet)
    _print_hosts(lab)
    if fleet is not None:
        say(f"fleet: {os.path.relpath(fleet)}")
    return 0


def _down(lab: Any, _options: argparse.Namespace) -> int:
    removed = lab.down()
    say(f"lab {lab.name} is down" if removed else f"lab {lab.name}: nothing to remove")
    return 0


def _list(lab: Any, options: argparse.Namespace) -> int:
    if not options.json:
        _print_hosts(lab)
        return 0
    from lab.fleet import read_secrets  # noqa: PLC0415 - needs Ansible, which takes a while to load

    secrets, spec = read_secrets(lab.name), lab.spec
    content = {
        "name": spec.name,
        "network": spec.network,
        "mirror_url": spec.mirror_url if spec.mirror_root else None,
        "fleet": spec.fleet,
        "hosts": [
            {
                "name": host.name,
                "short_name": host.short_name,
                "address": host.address,
                "gpus": list(host.gpus),
            }
            for host in spec.hosts
        ],
        "keys": {scope: secrets[scope] for scope in ("use", "admin")},
    }
    say(json.dumps(content, indent=2))
    return 0


def _status(lab: Any, options: argparse.Namespace) -> int:
    return show_status([lab], as_json=options.json)


def show_status(labs: Sequence[Any], *, as_json: bool) -> int:
    """Print what runs of these labs."""
    found = [lab.status() for lab in labs]
    if as_json:
        say(json.dumps(found, indent=2))
        return 0
    if not found:
        say("no lab is up; python -m lab up boots one")
    for one in found:
        say(f"{one['name']}: supervisor {one['supervisor']}")
        for name, child in one["children"].items():
            say(f"  {name:<24} {child['state']}, started {child['starts']} times")
        if one["supervisor"] == "gone":
            for left in one["left"]:
                say(f"  left over: {left}")
            say(f"  next: python -m lab down --name {one['name']}")
    return 0


def _ssh(lab: Any, options: argparse.Namespace) -> int:
    host = lab.host(options.host)
    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    command = ssh_command(lab.paths, host.spec, options.user)
    # One word is a shell line, as with ssh itself; several are one program and its arguments.
    line = words if len(words) < 2 else [shlex.join(words)]
    if not line and sys.stdin.isatty():
        command.insert(1, "-t")
    os.execvp(command[0], [*command, *line])  # noqa: S606 - ssh takes this process's place and terminal


def _logs(lab: Any, options: argparse.Namespace) -> int:
    if options.host == "supervisor":
        say(lab.paths.supervisor_log.read_text())
        return 0
    if options.host == "mirror":
        say(lab.paths.log("mirror").read_text())
        return 0
    host = lab.host(options.host)
    say(f"== console of {host.name}")
    say(lab.paths.log(host.name).read_text(errors="replace").replace("\r", ""))
    say(f"== journal of {host.name}")
    done = host.run("journalctl --no-pager --no-hostname", check=False)
    say(done.stdout if done.returncode == 0 else f"(not to be had: {done.stderr.strip()})")
    return 0


def _reset(lab: Any, options: argparse.Namespace) -> int:
    host = lab.reset(options.host)
    say(f"{host.name} is fresh and up")
    return 0


def _stop(lab: Any, options: argparse.Namespace) -> int:
    lab.host(options.host).stop()
    return 0


def _start(lab: Any, options: argparse.Namespace) -> int:
    lab.host(options.host).start()
    return 0


COMMANDS = {
    "up": _up,
    "down": _down,
    "list": _list,
    "status": _status,
    "ssh": _ssh,
    "logs": _logs,
    "reset": _reset,
    "stop": _stop,
    "start": _start,
}


def _print_hosts(lab: Any) -> None:
    for host in lab.hosts:
        models = [str(gpu["model"]) for gpu in host.gpus]
        gpus = ", ".join(f"{models.count(model)} x {model}" for model in dict.fromkeys(models))
        say(f"  {host.name:<24} {host.address:<14} {gpus or 'no GPU'}")


def _lab_of(host: str, there: Sequence[str]) -> str:
    """Return the lab that a host's full name speaks of, when there is one of that name; else the default."""
    name, dash, _ = host.partition("-")
    return name if dash and name in there else DEFAULT_NAME


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt
