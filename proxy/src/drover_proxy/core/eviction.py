"""Who leaves for a load: the least recently used idle ones, no more than needed, pinned ones never."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from drover_proxy.core.beside import Room
from drover_proxy.core.entities import Runner
from drover_proxy.core.sizing import Need
from drover_proxy.core.state import State
from drover_proxy.core.transitions import RunnerState


def pinned(state: State, runner: Runner) -> bool:
    """Whether any name of its blob is pinned by a profile: names that share a blob share the runner."""
    models = state.models
    return any(
        profile.pin and name in models and models[name].blob == runner.key.blob
        for name, profile in state.config.profiles.items()
    )


def candidates(state: State, need: Need, now: float) -> list[Runner]:
    """Return the runners on these GPUs that may be evicted, least recently used first, busy ones too.

    A runner that can't be unloaded (a ghost, or one that lately refused to go) isn't among them.
    """
    gpus = set(need.gpu_uuids)
    found = [
        runner
        for runner in state.runners.values()
        if runner.state is RunnerState.READY
        and not runner.ghost
        and runner.unload_not_before <= now
        and not gpus.isdisjoint(state.instances[runner.key.instance].gpu_uuids)
        and not pinned(state, runner)
    ]
    return sorted(found, key=lambda runner: (runner.last_used_at, runner.key))


def enough(room: Room, runners: Iterable[Runner], required: tuple[Runner, ...] = ()) -> list[Runner] | None:
    """Return the victims, taken in this order, that make the load possible; None when all of them don't.

    `required` go in any case. First it is seen who would have to go if Ollama's books were fresh, then who
    must go besides because they are stale (see beside.py). Were both one step, the runner loaded last, whose
    books are the worst, would always go instead of the one used longest ago: two models in use would evict
    each other for ever beside an old one that nobody asks for.
    """
    order = tuple(runners)
    first = _fewest(replace(room, fresh=True), order, required)
    return None if first is None else _fewest(room, order, tuple(first))


def _fewest(room: Room, runners: tuple[Runner, ...], required: tuple[Runner, ...]) -> list[Runner] | None:
    """Return the first of the runners that suffice.

    What turns out not to be needed is left out again, the most recently used first: a small old runner isn't
    evicted when the large one after it must go anyway.
    """
    chosen = list(required)
    if not room.suffices(chosen):
        for runner in runners:
            if runner in required:
                continue
            chosen.append(runner)
            if room.suffices(chosen):
                break
        else:
            return None
    for runner in reversed(tuple(chosen)):
        rest = [other for other in chosen if other is not runner]
        if runner not in required and room.suffices(rest):
            chosen = rest
    return chosen
