"""What the world shows: instances that come and go, runners listed by /api/ps, unloads that worked or didn't.

The world is right and the scheduler adapts. An answer that comes too late to be true is told by its time and
ignored; nothing that comes from outside can raise.
"""

from __future__ import annotations

from drover_proxy.core.entities import STRAY, Runner
from drover_proxy.core.events import (
    InstanceDown,
    InstanceUp,
    MemoryObserved,
    RunnerSeen,
    RunnersObserved,
    UnloadFailed,
    UnloadObserved,
)
from drover_proxy.core.ledger import NEVER, RunnerKey
from drover_proxy.core.loading import fail, send_unload
from drover_proxy.core.state import State
from drover_proxy.core.transitions import RunnerState
from drover_proxy.vram.footprint import CUDA_CONTEXT_BYTES

SUSPICION_SECONDS = 2.0
UNLOAD_BACKOFF_SECONDS = 30.0
GONE = frozenset({RunnerState.READY, RunnerState.DRAINING, RunnerState.UNLOADING})


def memory_observed(state: State, event: MemoryObserved, now: float) -> None:
    """Write a sample into the ledger."""
    sampled_at = now if event.sampled_at is None else event.sampled_at
    for uuid, memory in event.gpus.items():
        state.ledger.observe(uuid, memory, sampled_at)


def instance_up(state: State, event: InstanceUp, now: float) -> None:
    """An instance answers."""
    if event.instance in state.instances and event.version:
        state.sizing.learn_version(event.instance, event.version)
    if event.instance in state.instances and event.instance not in state.up:
        state.story.tell(now, event)
        state.up.add(event.instance)


def instance_down(state: State, event: InstanceDown, now: float) -> None:
    """An instance is gone with all its runners; loads there are nobody's failure."""
    if event.instance not in state.up:
        return
    state.story.tell(now, event)
    state.up.discard(event.instance)
    for runner in state.runners_of(event.instance):
        state.move(runner, RunnerState.ABSENT, now, f"instance down: {event.reason}")
    state.alert("instance_down", f"{event.instance} is down: {event.reason}", instance=event.instance)


def runners_observed(state: State, event: RunnersObserved, now: float) -> None:
    """Compare /api/ps with what we believe: adopt what is new, drop what has vanished."""
    if event.instance not in state.up:
        return
    sampled_at = now if event.sampled_at is None else event.sampled_at
    state.observed_at[event.instance] = max(sampled_at, state.observed_at.get(event.instance, NEVER))
    listed: set[RunnerKey] = set()
    for seen in event.runners:
        runner = state.find(event.instance, seen.model)
        key = runner.key if runner is not None else _key(state, event.instance, seen.model)
        if key in listed:
            continue
        listed.add(key)
        if runner is None:
            if sampled_at > state.left_at.get(key, NEVER):
                _adopt(state, key, seen, now)
        elif sampled_at > runner.changed_at:
            _refresh(state, runner, seen, now)
    for runner in state.runners_of(event.instance):
        if runner.key in listed or runner.state not in GONE or sampled_at <= runner.changed_at:
            continue
        if runner.state is not RunnerState.UNLOADING and not runner.taken_away:
            state.alert(
                "runner_vanished",
                f"{runner.model} is no longer loaded in {event.instance}, though nobody unloaded it",
                instance=event.instance,
                model=runner.model,
            )
        state.move(runner, RunnerState.ABSENT, now)


def _key(state: State, instance: str, model: str) -> RunnerKey:
    info = state.models.get(model)
    return RunnerKey(instance, STRAY + model if info is None else info.blob)


def _adopt(state: State, key: RunnerKey, seen: RunnerSeen, now: float) -> None:
    """Take over a runner that we didn't load: after a restart of the proxy, or somebody else's."""
    instance = state.instances[key.instance]
    info = state.models.get(seen.model)
    slots = 1 if info is None else state.sizing.spec(info, instance).runner_slots
    runner = state.runners.get(key)
    if runner is None:
        runner = Runner(key, seen.model, seen.context, slots)
        state.file(runner)
    runner.model, runner.context, runner.slots = seen.model, seen.context, slots
    runner.seen_context = seen.context
    _trust(state, runner, now)
    gpus = instance.gpu_uuids
    total = seen.measured_bytes or seen.size_vram_bytes + CUDA_CONTEXT_BYTES * len(gpus)
    state.ledger.keep(key, {uuid: total // len(gpus) for uuid in gpus}, now)
    runner.reported_bytes = {uuid: seen.size_vram_bytes // len(gpus) for uuid in gpus}
    book = state.books.pop(key, None)
    known = book is not None and (book.context, book.reported_bytes) == (
        seen.context,
        sum(runner.reported_bytes.values()),
    )
    runner.left_bytes = dict(book.left_bytes) if book is not None and known else {}
    state.move(runner, RunnerState.READY, now)
    state.take_back(runner)
    _look_for_spill(state, runner, seen)


def _refresh(state: State, runner: Runner, seen: RunnerSeen, now: float) -> None:
    if runner.state is RunnerState.FAILED:
        _adopt(state, runner.key, seen, now)
    elif runner.state in {RunnerState.READY, RunnerState.DRAINING}:
        _trust(state, runner, now)
        if seen.context != runner.seen_context:  # somebody reloaded it behind our back
            runner.context = runner.seen_context = seen.context
        _look_for_spill(state, runner, seen)


def _trust(state: State, runner: Runner, now: float) -> None:
    """A runner was seen: it can be used, unless a sibling is about to unload it."""
    runner.taken_away = runner.key in state.siblings.leaving
    runner.suspect_since = now if runner.taken_away else None


def _look_for_spill(state: State, runner: Runner, seen: RunnerSeen) -> None:
    if runner.spilled or seen.model not in state.models or not state.instances[runner.key.instance].gpu_uuids:
        return
    if seen.size_vram_bytes < seen.size_bytes:
        runner.spilled = True
        state.alert(
            "runner_spilled",
            f"{seen.model} in {runner.key.instance} runs partly on the CPU; it is unloaded when idle",
            instance=runner.key.instance,
            model=seen.model,
        )


def unload_observed(state: State, event: UnloadObserved, now: float) -> None:
    """A runner is gone; its memory follows. So is one whose unload had been given up."""
    state.story.tell(now, event, model=event.model)
    runner = state.find(event.instance, event.model)
    if runner is not None and runner.state in GONE:
        state.move(runner, RunnerState.ABSENT, now)


def unload_failed(state: State, event: UnloadFailed, now: float) -> None:
    """A runner would not go."""
    state.story.tell(now, event, model=event.model)
    runner = state.find(event.instance, event.model)
    if runner is not None and runner.state is RunnerState.UNLOADING:
        _still_there(state, runner, event.message, now)


def _still_there(state: State, runner: Runner, message: str, now: float) -> None:
    failures = runner.unload_failures + 1
    state.move(runner, RunnerState.READY, now, message)
    runner.unload_failures = failures
    runner.unload_not_before = now + UNLOAD_BACKOFF_SECONDS * 2 ** min(failures - 1, 5)
    state.alert(
        "unload_failed",
        f"{runner.model} could not be unloaded from {runner.key.instance}: {message}",
        instance=runner.key.instance,
        model=runner.model,
    )


def send_away(state: State, now: float) -> None:
    """Unload what must go and is idle; stop admitting to what must go and is busy; stop draining in vain."""
    may_unload = not state.siblings.owns_memory
    for runner in tuple(state.runners.values()):
        must_go = state.must_go(runner)
        if runner.state is RunnerState.DRAINING:
            wanted = runner.drained_for is not None and runner.drained_for in state.plans
            if not must_go and not wanted:
                state.move(runner, RunnerState.READY, now)
            elif runner.idle and may_unload:
                send_unload(state, runner, "drained", now)
        elif runner.state is RunnerState.READY and must_go and runner.unload_not_before <= now:
            if runner.idle and may_unload:
                send_unload(state, runner, "partly on the CPU" if runner.spilled else "withdrawn", now)
            elif not runner.idle:
                state.move(runner, RunnerState.DRAINING, now)


def run_timers(state: State, now: float) -> None:
    """End what takes too long, and forget what is long ago."""
    for runner in tuple(state.runners.values()):
        suspicion_ends = runner.suspect_since is not None and now - runner.suspect_since >= SUSPICION_SECONDS
        if suspicion_ends and not runner.taken_away:  # else it has to be seen
            runner.suspect_since = None
        if runner.deadline is None or now < runner.deadline:
            continue
        if runner.state is RunnerState.LOADING:
            fail(state, runner, f"loading {runner.model} took too long", now, retryable=True)
        elif runner.state is RunnerState.UNLOADING:
            _still_there(state, runner, "still listed after the time limit", now)
        elif runner.state is RunnerState.FAILED:
            state.move(runner, RunnerState.ABSENT, now)
    for uuid, key, missing in state.ledger.expire(now):
        state.alert(
            "memory_late",
            f"GPU {uuid}: {missing} bytes that unloading {key.blob} should have freed have not come back; "
            "another process may have taken them, or the runner is an orphan (see `nvidia-smi`)",
            instance=key.instance,
        )
    for blob in [blob for blob, cooldown in state.cooldowns.items() if now >= cooldown.until]:
        del state.cooldowns[blob]
    for blob in [blob for blob, failure in state.failures.items() if now >= failure.forget_at]:
        del state.failures[blob]
