"""A layer and its six stages, in both engines the same and in this order.

preflight reads only and refuses early; install fetches; configure writes settings; activate starts and
restarts; verify proves; record writes down what is there. Operations are shown as `layer | stage | Sentence`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pyinfra
from pyinfra import host, logger, state
from pyinfra.context import ctx_state

from deploys.lib import templates
from deploys.lib import vars as variables_of
from deploys.lib.facts import Machine, MachineFact
from drover.inventory import HostVars

STAGES = ("preflight", "install", "configure", "activate", "verify", "record")


class RefusedError(Exception):
    """Preflight found a reason not to touch this host; it has been logged."""


@dataclass(slots=True)
class Context:
    """What a layer's stages get: the host's variables, what it is, and a place to pass values on."""

    layer: str
    vars: HostVars
    machine: Machine
    notes: dict[str, Any] = field(default_factory=dict)

    def render(self, name: str, **extra: Any) -> str:
        """Render templates/<layer>/<name> with the host's variables and `extra`."""
        return templates.render(self.layer, name, {**self.vars, **extra})

    def refuse(self, message: str) -> NoReturn:
        """Drop this host from the run with a message; the other hosts go on, and the run exits with 1."""
        logger.error(f"[{host.name}] {self.layer} | preflight | refused: {message}")
        state.fail_hosts({host})
        raise RefusedError(message)


Stage = Callable[[Context], None]


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a host."""

    name: str
    preflight: Stage
    install: Stage
    configure: Stage
    activate: Stage
    verify: Stage
    record: Stage

    def run(self) -> None:
        """Register the operations of all six stages for the host at hand."""
        if host in state.failed_hosts:
            return
        context = Context(self.name, variables_of.current(), machine())
        if host in state.failed_hosts:  # the facts couldn't be read
            return
        with _named(self.name):
            try:
                # One line a stage: pyinfra tells operations apart by the lines they come from.
                with _named("preflight"):
                    self.preflight(context)
                with _named("install"):
                    self.install(context)
                with _named("configure"):
                    self.configure(context)
                with _named("activate"):
                    self.activate(context)
                with _named("verify"):
                    self.verify(context)
                with _named("record"):
                    self.record(context)
            except (RefusedError, SkipLayerError):
                return

    def run_if_main(self, file: str) -> None:
        """Run the layer when pyinfra was given this very file; do nothing when it was imported."""
        if not pyinfra.is_cli or not ctx_state.isset():
            return
        given = state.current_deploy_filename
        if given and Path(given).resolve() == Path(file).resolve():
            self.run()


class SkipLayerError(Exception):
    """The host's variables switch this layer off."""


@contextmanager
def _named(name: str) -> Iterator[None]:
    with host.deploy(name, None, None, in_deploy=False):
        yield


def machine() -> Machine:
    """Return what this host is, read once a run and passed on (as it was before the first operation)."""
    cache = host.connector_data.setdefault("drover", {})
    if "machine" not in cache:
        cache["machine"] = host.get_fact(MachineFact)
    found: Machine = cache["machine"]
    return found
