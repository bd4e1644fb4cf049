"""The `drover` command.

Exit codes: 0 all well; 1 problems were found; 2 the fleet can't be read; 64 the command was used wrongly.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

EXIT_PROBLEMS = 1
EXIT_UNREADABLE = 2
EXIT_USAGE = 64

FLEET = click.argument("fleet", type=click.Path(path_type=Path))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="drover")
def cli() -> None:
    """Look after a fleet of NVIDIA machines that serve language models with Ollama.

    FLEET is a folder such as inventories/lab: hosts.yml, group_vars/, host_vars/. Secrets are ansible-vault
    values; their password is read from ANSIBLE_VAULT_PASSWORD_FILE, or from .vault-password in the folder.
    """


@cli.command()
@FLEET
@click.option("--json", "as_json", is_flag=True, help="Print the problems as JSON.")
def validate(fleet: Path, as_json: bool) -> int:
    """Check every variable of every host, without connecting to any."""
    from drover.errors import report  # noqa: PLC0415 - the command line answers fast when nothing is loaded
    from drover.inventory import Fleet  # noqa: PLC0415 - as above

    loaded = Fleet.load(fleet)
    problems = loaded.problems()
    if as_json:
        found = [problem.to_dict() for problem in problems]
        click.echo(json.dumps({"ok": not found, "hosts": sorted(loaded.hosts), "problems": found}, indent=2))
    elif problems:
        click.echo(report(problems), err=True)
    else:
        click.echo(f"{len(loaded.hosts)} host(s), no problems.")
    return EXIT_PROBLEMS if problems else 0


@cli.command(name="vars")
@click.argument("fleet", type=click.Path(path_type=Path), required=False)
@click.option("--host", "only", metavar="HOST", help="Only this host.")
@click.option("--names", is_flag=True, help="List every variable that drover knows, with its description.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def variables(fleet: Path | None, only: str | None, names: bool, as_json: bool) -> int:
    """Show what holds for each host, and where each value was set. Secrets are shown as stars."""
    if names:
        _print_names(as_json=as_json)
        return 0
    if fleet is None:
        raise click.UsageError("Missing argument 'FLEET' (or --names).")
    from drover.inventory import Fleet  # noqa: PLC0415 - see validate

    loaded = Fleet.load(fleet)
    if only is not None and only not in loaded.hosts:
        raise click.UsageError(f"{fleet} has no host {only!r}; it has {', '.join(loaded.hosts)}.")
    chosen = [only] if only else list(loaded.hosts)
    shown = {name: loaded.host_vars(name).redacted() for name in chosen}
    if as_json:
        click.echo(json.dumps(shown, indent=2, default=str))
        return 0
    for name in chosen:
        _print_host(name, shown[name], loaded.hosts[name].sources)
    return 0


def _print_host(name: str, values: dict[str, Any], sources: dict[str, str]) -> None:
    click.echo(f"{name}:")
    for key, value in values.items():
        text = json.dumps(value, default=str, ensure_ascii=False)
        click.echo(f"  {key}: {text}  # {sources.get(key, 'default')}")


def _print_names(*, as_json: bool) -> None:
    from drover.schema import load_defaults, load_options  # noqa: PLC0415 - see validate

    defaults = load_defaults()
    options = load_options()
    if as_json:
        rows = {
            name: {
                "type": option.get("type", "str"),
                "choices": option.get("choices"),
                "default": defaults.get(name),
                "secret": bool(option.get("no_log")),
                "description": option.get("description", ""),
            }
            for name, option in options.items()
        }
        click.echo(json.dumps(rows, indent=2))
        return
    for name, option in options.items():
        click.echo(f"{name} ({option.get('type', 'str')}): {option.get('description', '')}")


def main() -> None:
    """Run the command and exit with its code; errors are one message, never a traceback."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    from drover.errors import DroverError  # noqa: PLC0415 - see validate

    try:
        code = cli.main(args=arguments, prog_name="drover", standalone_mode=False)
    except click.UsageError as error:
        error.show()
        return EXIT_USAGE
    except (click.Abort, KeyboardInterrupt):
        click.echo("Stopped.", err=True)
        return 130
    except DroverError as error:
        click.echo(f"drover: {error}", err=True)
        return EXIT_UNREADABLE
    return code if isinstance(code, int) else 0
