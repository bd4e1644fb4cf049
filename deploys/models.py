"""The models of a host: pulled and created through Ollama's API, and only where they differ.

pyinfra -y inventories/FLEET/inventory.py deploys/models.py
"""

from __future__ import annotations

import json
import shlex
from typing import Any

from pyinfra import host
from pyinfra.api import StringCommand, operation

from deploys.lib import operations, serving
from deploys.lib.facts import Lines
from deploys.lib.instances import planned
from deploys.lib.model_list import all_filled, file_name
from deploys.lib.operations import Commands
from deploys.lib.stage import Context, Layer, SkipLayerError

FOLDER = "/etc/drover/models"
WANTED = "/etc/drover/models.json"
PROGRAM = f"{serving.LIBRARY}/models.py"
APPLY = (
    f"timeout {{seconds}} {PROGRAM} apply {{name}} || {{{{ rc=$?; [ $rc -ne 124 ] || "
    "echo 'not done after {seconds} s (models_pull_timeout_seconds); what is pulled stays. Next: again' >&2; "
    "exit $rc; }}"
)


def preflight(ctx: Context) -> None:
    """Fill in where each model comes from; models need an Ollama to live in."""
    if not ctx.vars["models_enabled"] or not ctx.vars["models_list"]:
        raise SkipLayerError
    instances = planned(ctx)
    if not instances:
        ctx.refuse("no Ollama instance to pull models with. Next: set models_enabled: false for this host")
    ctx.notes["api"] = instances[0].url
    ctx.notes["models"] = all_filled(ctx.vars)


def install(_ctx: Context) -> None:
    """Lay the program that talks to Ollama."""
    operations.place(
        name="Place what pulls and creates models",
        dest=PROGRAM,
        content=serving.static("models", "models.py"),
        mode="0755",
    )


def configure(ctx: Context) -> None:
    """Lay what is wanted, and the Modelfiles that say the same, for the record."""
    content = ctx.render("models.json.j2", models_api=ctx.notes["api"], models=ctx.notes["models"])
    operations.place(name="Place the list of models", dest=WANTED, content=content)
    files = {
        file_name(model["name"]): ctx.render("Modelfile.j2", model=model) for model in ctx.notes["models"]
    }
    modelfiles(name="Place the Modelfiles", files=files)


@operation()
def modelfiles(files: dict[str, str]) -> Commands:
    """Lay the Modelfiles, and remove those of models that are no longer listed.

    + files: name to content
    """
    for name, content in files.items():
        yield from operations.place._inner(dest=f"{FOLDER}/{name}", content=content)  # noqa: SLF001 - nested
    found = host.get_fact(Lines, script=f"ls {FOLDER}")
    for name in sorted(set(found) - set(files)):
        yield operations.script('rm -f -- "$0"', f"{FOLDER}/{name}")


def activate(ctx: Context) -> None:
    """Pull and create what differs; what is there serves until its successor is whole."""
    models(
        name="Pull and create the models that differ",
        timeout_seconds=ctx.vars["models_pull_timeout_seconds"],
    )


@operation()
def models(timeout_seconds: int) -> Commands:
    """Pull and create the models that differ, one after the other, telling how far it is.

    + timeout_seconds: how long each may take
    """
    plan = differing()
    if plan == []:
        host.noop("all models are as wanted")
        return
    # Before the first run the host can't say what differs: then everything does.
    for name in [entry["name"] for entry in plan] if plan else [""]:
        # One after the other: two pulls would share the line, and a failure names its model.
        yield Shown(APPLY.format(seconds=timeout_seconds, name=shlex.quote(name) if name else ""))


class Shown(StringCommand):
    """A command whose output is shown as it comes: a pull takes minutes."""

    def execute(self, state: Any, host: Any, connector_arguments: Any) -> Any:  # noqa: ARG002 - pyinfra's
        """Run it."""
        return host.run_shell_command(self, print_output=True, print_input=False, **connector_arguments)


def differing() -> list[dict[str, str]] | None:
    """Return which models differ, and in what; None when the host can't say yet."""
    lines = host.get_fact(Lines, script=f"{PROGRAM} plan")
    try:
        found: list[dict[str, str]] = json.loads("\n".join(lines))
    except ValueError:
        return None
    return found


def verify(_ctx: Context) -> None:
    """See that nothing differs any more."""
    operations.gate(
        name="See that every model is as wanted",
        probe=f'test "$({PROGRAM} plan)" = "[]"',
        message=f"A model isn't as wanted. Next: {PROGRAM} plan",
        timeout_seconds=10,
    )


def record(ctx: Context) -> None:
    """Write down each model and its digest."""

    def values() -> dict[str, Any]:
        made = "\n".join(host.get_fact(Lines, script="cat /var/lib/drover/models.json")) or "{}"
        names = {model["name"]: model["source"] for model in ctx.notes["models"]}
        return {"models": names, "made": json.loads(made)}

    operations.record(name="Record what is there", layer=ctx.layer, values=values)


LAYER = Layer("models", preflight, install, configure, activate, verify, record)
LAYER.run_if_main(__file__)
