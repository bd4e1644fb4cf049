"""Several processes of one proxy over the same instances, for the time of a handover.

`systemctl restart` leaves the old process what it has under way while the new one already serves. Each tells
the others what it holds (`holdings`), hears what they hold (SiblingsObserved), and counts it as taken:

- A slot that a sibling's request is in isn't free, and its runner can't be evicted.
- A runner that a sibling is about to unload gets nothing, and is believed in only when it is seen again.
- Only one process at a time makes room and loads. Whoever has begun goes on; else the elder goes first, and
  its waiting requests come before ours in a slot that becomes free.

The shell takes a lock around hearing, deciding and telling, so nothing is given away twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from drover_proxy.core.entities import CHANGING, STRAY, Runner
from drover_proxy.core.events import SiblingsObserved
from drover_proxy.core.loading import served
from drover_proxy.core.state import State
from drover_proxy.core.transitions import RunnerState

GOING = frozenset({RunnerState.DRAINING, RunnerState.UNLOADING})


@dataclass(frozen=True, slots=True)
class Holdings:
    """What one process holds. Runners are named by instance and blob, and by instance and name too.

    For a process may know a model by its name only: when it was deleted before that process began.
    """

    busy: Mapping[tuple[str, str], int]
    """Requests with a runner."""
    leaving: tuple[tuple[str, str], ...]
    """Runners that it unloads, or drains to unload them."""
    unloads: Mapping[tuple[str, str], int]
    """How often it has begun to unload each."""
    changes: int
    """How often it has begun or ended a load or an unload."""
    waits: tuple[str, ...]
    """Blobs that somebody waits for."""
    memory: bool
    """It makes room, loads or unloads."""
    wishes: bool
    """Somebody waits for a model that no runner serves: it would load, if it could."""


def keys(runner: Runner) -> set[tuple[str, str]]:
    """Return what a runner may be known by."""
    return {runner.key, (runner.key.instance, STRAY + runner.model)}


def holdings(state: State) -> Holdings:
    """Return what this process holds now."""
    runners = state.runners.values()
    waits = tuple({state.models[model].blob for model in state.waiting})
    return Holdings(
        busy={key: len(runner.active) for runner in runners if runner.active for key in keys(runner)},
        leaving=tuple(key for runner in runners if runner.state in GOING for key in keys(runner)),
        unloads={key: count for key, count in state.unloads.items()},  # noqa: C416 - a type of plain tuples
        changes=state.changes,
        waits=waits,
        memory=bool(state.plans) or any(runner.state in CHANGING for runner in runners),
        wishes=any(not served(state, state.models[model]) for model in state.waiting),
    )


def combined(elders: Iterable[Holdings], younger: Iterable[Holdings]) -> SiblingsObserved:
    """Make one event of what all other processes hold; those that began before us go first."""
    elders, younger = tuple(elders), tuple(younger)
    everybody = elders + younger
    return SiblingsObserved(
        busy=_sum(one.busy for one in everybody),
        leaving=frozenset(key for one in everybody for key in one.leaving),
        unloads=_sum(one.unloads for one in everybody),
        changes=sum(one.changes for one in everybody),
        waits=frozenset(blob for one in elders for blob in one.waits),
        owns_memory=any(one.memory for one in everybody) or any(one.wishes for one in elders),
    )


def _sum(counts: Iterable[Mapping[tuple[str, str], int]]) -> dict[tuple[str, str], int]:
    total: dict[tuple[str, str], int] = {}
    for one in counts:
        for key, count in one.items():
            total[key] = total.get(key, 0) + count
    return total


def observed(state: State, event: SiblingsObserved, now: float) -> None:
    """Count what siblings hold as taken; look anew at what they may have changed."""
    before = state.siblings
    if event == before:
        return
    state.story.tell(now, event)
    state.siblings = event
    for runner in state.runners.values():
        runner.elsewhere = state.elsewhere(runner.key)
        again = event.unloads.get(runner.key) != before.unloads.get(runner.key)
        if again or runner.key in event.leaving | before.leaving:
            runner.taken_away = True
            runner.suspect_since = runner.changed_at = now  # a list that was read before doesn't tell
    if event.changes != before.changes:
        state.shared_until = now
        for book in state.ledger.books.values():
            book.changed_at = now
