"""Which build of the proxy a host gets: machine code where it can be made, else the wheel that fits all.

Found out in preflight, and made there too, so that a compiler that fails changes what goes out and breaks no
host. What keeps hosts from machine code is told in one line for all of them.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from pyinfra import host, logger, state

from deploys.lib import compiled, wheelhouse
from deploys.lib.compiled import Obstacle
from deploys.lib.facts import Lines
from deploys.lib.stage import Context
from drover.errors import DroverError

NAMED_HOSTS = 5
FOUND = "getconf GNU_LIBC_VERSION; ls {folder}/.complete {folder}.failed"


@dataclass(slots=True)
class Roll:
    """What each host of a run gets, until it is told."""

    held_back: dict[str, tuple[Obstacle, ...]] = field(default_factory=dict)
    is_told: bool = False

    def note(self, name: str, obstacles: Iterable[Obstacle], others: Iterable[str]) -> None:
        """Note what keeps a host from machine code; tell it when all others have been noted too."""
        if not self.held_back:
            atexit.register(self.tell)  # where some host never comes so far
        self.held_back[name] = tuple(obstacles)
        if self.held_back.keys() >= set(others):
            self.tell()

    def tell(self) -> None:
        """Say once, in one line, which hosts get the pure wheel, why, and what to do about it."""
        if not self.is_told and (line := self.line()):
            logger.info(line)
        self.is_told = True

    def line(self) -> str:
        """Return that line; "" where every host gets what is asked for."""
        groups: dict[tuple[Obstacle, ...], list[str]] = {}
        for name, obstacles in sorted(self.held_back.items()):
            if obstacles:
                groups.setdefault(obstacles, []).append(name)
        said = [f"{_names(names)} ({explained(obstacles)})" for obstacles, names in groups.items()]
        return f"The proxy isn't compiled for {'; nor for '.join(said)}" if said else ""


ROLL = Roll()


def explained(obstacles: Iterable[Obstacle]) -> str:
    """Return all reasons, and what to do about them."""
    found = list(obstacles)
    remedies = " && ".join(dict.fromkeys(obstacle.remedy for obstacle in found))
    return f"{'; '.join(obstacle.reason for obstacle in found)}. Next: {remedies}"


def _names(names: list[str]) -> str:
    more = len(names) - NAMED_HOSTS
    return ", ".join(names[:NAMED_HOSTS]) + (f" and {more} more" if more > 0 else "")


def chosen(ctx: Context, pure: wheelhouse.Target, releases: str) -> wheelhouse.Target:
    """Return what the host gets by proxy_compiled; refuse the host where that can't be had.

    Args:
        ctx: The layer's context.
        pure: The wheel that fits every machine, for the host's Python.
        releases: Where releases lie on the host.
    """
    wish = ctx.vars["proxy_compiled"]
    obstacles = [] if wish is False else _obstacles(replace(pure, compiled=True), releases)
    if wish is True and obstacles:
        ctx.refuse(
            f"proxy_compiled is true, but {explained(obstacles)}, or set proxy_compiled: auto, which takes "
            "the pure wheel here"
        )
    note_host(obstacles)
    return replace(pure, compiled=wish is not False and not obstacles)


def note_host(obstacles: Iterable[Obstacle] = ()) -> None:
    """Note the host at hand; without obstacles it gets what is asked for, or no proxy at all."""
    ROLL.note(host.name, obstacles, (other.name for other in state.inventory.get_active_hosts()))


def _obstacles(target: wheelhouse.Target, releases: str) -> list[Obstacle]:
    folder = f"{releases}/{wheelhouse.release_name(target)}"
    lines = host.get_fact(Lines, script=FOUND.format(folder=folder))
    if f"{folder}/.complete" in lines:
        return []  # laid by a controller that could make it; this one needn't
    if (failed := f"{folder}.failed") in lines:
        return [Obstacle(f"it didn't start there, as {failed} tells", f"rm {failed} there, to try again")]
    libc = "".join(line.removeprefix("glibc").strip() for line in lines if line.startswith("glibc"))
    found = compiled.obstacles(target.python, target.machine, libc)
    # A dry run plans with the wheel without making it. Where that isn't noticed, it takes a minute longer.
    if found or "--dry" in sys.argv:
        return found
    try:
        compiled.wheel(logger.info)
    except DroverError:
        return compiled.obstacles(target.python, target.machine, libc)
    return []
