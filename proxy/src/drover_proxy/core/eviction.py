"""Who leaves for a load: the least recently used idle ones, no more than needed, pinned ones never."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from drover_proxy.core.sizing import Need
from drover_proxy.core.state import Runner, State
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


def enough(
    state: State,
    need: Need,
    free: Mapping[str, int],
    runners: Iterable[Runner],
    required: tuple[Runner, ...] = (),
) -> list[Runner] | None:
    """Return the victims, taken in this order, that make `need` fit; None when all of them don't.

    What turns out not to be needed is left out again, the most recently used first: a small old runner isn't
    evicted when the large one after it must go anyway. `required` go in any case.
    """
    chosen = list(required)
    if not need.fits(_freed(state, free, chosen)):
        for runner in runners:
            if runner in required:
                continue
            chosen.append(runner)
            if need.fits(_freed(state, free, chosen)):
                break
        else:
            return None
    for runner in reversed(tuple(chosen)):
        rest = [other for other in chosen if other is not runner]
        if runner not in required and need.fits(_freed(state, free, rest)):
            chosen = rest
    return chosen


def _freed(state: State, free: Mapping[str, int], victims: Iterable[Runner]) -> dict[str, int]:
    total = dict(free)
    for runner in victims:
        for uuid, size in state.ledger.shares_of(runner.key).items():
            if uuid in total:
                total[uuid] += size
    return total
