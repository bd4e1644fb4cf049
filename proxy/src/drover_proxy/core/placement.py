"""Where a model that is loaded nowhere is to be loaded, and what that would take.

Each instance is judged by itself; the best is chosen by these rules, in this order:

1. An instance where something can be done now goes before one where busy runners stand in the way.
2. A GPU before the CPU, always: an instance without GPUs is only for what fits on no GPU of the host.
   Fewer GPUs before more: each GPU costs a CUDA context, and a model on one GPU leaves the others alone.
3. Room that is there, before room that is coming (a load ends, freed memory comes back), before eviction.
   Who has starved doesn't wait for what is coming when an eviction would do.
4. Among evictions, the one whose victims were used longest ago; among free ones, the GPU with the most free
   memory, since that is the GPU with the least to compute.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

from drover_proxy.core.beside import Room
from drover_proxy.core.config import Instance
from drover_proxy.core.entities import LIVE, Runner
from drover_proxy.core.eviction import candidates, enough
from drover_proxy.core.ledger import NEVER, RunnerKey
from drover_proxy.core.sizing import Need, RunSpec
from drover_proxy.core.state import State
from drover_proxy.core.transitions import RunnerState
from drover_proxy.vram import ModelInfo


class Fit(IntEnum):
    """What stands between a model and an instance."""

    NOW = 0
    """There is room."""
    SOON = 1
    """There will be room without evicting anything more: wait."""
    EVICT = 2
    """Idle runners have to go."""
    CLAIMED = 3
    """Another load is under way on its GPUs: wait, then see."""
    BLOCKED = 4
    """Busy runners would have to go."""
    NO_ROOM = 5
    """Even without any runner that may be evicted there isn't enough."""
    NEVER = 6
    """It doesn't fit into the GPUs when they are empty."""


@dataclass(frozen=True, slots=True)
class Site:
    """One instance judged for one model."""

    spec: RunSpec
    need: Need
    fit: Fit
    victims: tuple[Runner, ...] = ()
    free_bytes: int = 0
    by_rule: frozenset[RunnerKey] = frozenset()
    """Those of the victims whose memory isn't needed, but beside whom Ollama would evict by its own rule."""
    refused_by_ollama: bool = False
    """There would be room, but beside those who must stay Ollama would evict one of them by its own rule."""

    @property
    def victims_used_at(self) -> float:
        """When the most recently used of the victims was last used."""
        return max((runner.last_used_at for runner in self.victims), default=NEVER)


def survey(state: State, info: ModelInfo, now: float) -> list[Site]:
    """Judge every instance that is up, those without GPUs only for what fits on no GPU of the host."""
    claims = state.claims()
    on_gpu = any(
        instance.gpu_uuids and _fits_empty(state, info, instance) for instance in state.instances.values()
    )
    return [
        judge(state, info, state.instances[name], claims, now)
        for name in sorted(state.up)
        if state.instances[name].gpu_uuids or not on_gpu
    ]


def _fits_empty(state: State, info: ModelInfo, instance: Instance) -> bool:
    need = state.sizing.need(info, instance, state.sizing.spec(info, instance))
    return need.fits(capacity(state, need))


def choose(sites: list[Site], *, starved: bool) -> Site | None:
    """Return the best of the sites; None when there are none."""

    def order(site: Site) -> tuple[object, ...]:
        coming = site.fit in {Fit.SOON, Fit.CLAIMED}
        return (
            site.fit >= Fit.BLOCKED and site.fit,
            starved and coming,
            len(site.spec.gpu_uuids),
            site.fit,
            site.victims_used_at,
            -site.free_bytes,
            site.spec.key,
        )

    return min(sites, key=order, default=None)


def never_fits(state: State, info: ModelInfo) -> Need | None:
    """Return the smallest need when a model fits into no instance, whatever is evicted; else None."""
    smallest: Need | None = None
    for instance in state.instances.values():
        spec = state.sizing.spec(info, instance)
        need = state.sizing.need(info, instance, spec)
        if need.fits(capacity(state, need)):
            return None
        if smallest is None or need.total_bytes < smallest.total_bytes:
            smallest = need
    return smallest


def capacity(state: State, need: Need) -> dict[str, int]:
    """Return what the GPUs have when they are empty."""
    return {uuid: state.ledger.books[uuid].total_bytes for uuid in need.gpu_uuids}


def judge(
    state: State, info: ModelInfo, instance: Instance, claims: dict[str, RunnerKey], now: float
) -> Site:
    """Judge one instance for one model. Claims of the model's own plan there don't count."""
    spec = state.sizing.spec(info, instance)
    need = state.sizing.need(info, instance, spec)
    if not need.fits(capacity(state, need)):
        return Site(spec, need, Fit.NEVER)
    own = state.runners.get(spec.key)
    changing = own is not None and own.state not in {RunnerState.READY, RunnerState.FAILED}
    if changing or state.blind(instance.name):
        return Site(spec, need, Fit.SOON)  # of another context, or on its way out: its state will change
    required = (own,) if own is not None and own.state is RunnerState.READY else ()
    if any(runner.unload_not_before > now for runner in required):
        return Site(spec, need, Fit.SOON)
    stays = [
        runner
        for runner in state.runners_of(instance.name)
        if runner is not own and runner.state in LIVE | {RunnerState.LOADING}
    ]
    prospect = {uuid: state.ledger.prospective(uuid) for uuid in need.gpu_uuids}
    if any(claims.get(name, spec.key) != spec.key for name in state.resources(spec)):
        soon = not required and Room(state, need, prospect, tuple(stays)).suffices()
        return Site(spec, need, Fit.SOON if soon else Fit.CLAIMED)
    free: dict[str, int] = {}
    for uuid in need.gpu_uuids:
        known = state.ledger.free(uuid, now)
        if known is None:  # NVML's next sample will tell
            return Site(spec, need, Fit.SOON)
        free[uuid] = known
    return _with_room(
        state, Site(spec, need, Fit.NO_ROOM), Room(state, need, free, tuple(stays)), required, now
    )


def _with_room(state: State, site: Site, room: Room, required: tuple[Runner, ...], now: float) -> Site:
    spec, need = site.spec, site.need
    if not required and room.suffices():
        return Site(spec, need, Fit.NOW, (), sum(room.free.values()))
    potential = {uuid: size + state.ledger.coming(uuid) for uuid, size in room.free.items()}
    for key in state.leaving:  # busy ones that are on their way out
        for uuid, size in state.ledger.shares_of(key).items():
            if uuid in potential:
                potential[uuid] += size
    staying = tuple(runner for runner in room.staying if runner.state is RunnerState.READY)
    later = Room(state, need, potential, staying)
    if not required and later.suffices():
        return Site(spec, need, Fit.SOON)
    evictable = candidates(state, need, now)
    by_size = replace(later, need=replace(need, beside_bytes=0))
    if all(runner.idle for runner in required):
        idle = enough(later, [r for r in evictable if r.idle], required)
        if idle is not None:
            needed = enough(by_size, idle, required) or []
            by_rule = frozenset(runner.key for runner in idle if runner not in needed)
            return Site(spec, need, Fit.EVICT, tuple(idle), by_rule=by_rule)
    in_turn = sorted(evictable, key=lambda r: not r.idle)
    anyone = enough(later, in_turn, required)
    if anyone is not None:
        return Site(spec, need, Fit.BLOCKED, tuple(anyone))
    return Site(spec, need, Fit.NO_ROOM, refused_by_ollama=enough(by_size, in_turn, required) is not None)
