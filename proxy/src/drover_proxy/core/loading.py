"""Loads: who wants one, making room for it, and what becomes of it.

A *wish* is a model that somebody waits for and that no runner serves. A *plan* is a wish that has claimed an
instance's GPUs and makes room there: it evicts, waits until NVML shows the room, and sends the load. It is
judged anew at every step, so that whatever happens meanwhile is taken into account, and it is dropped when
nobody waits any more. A load that was sent goes on even then: cancelling it would only waste it.
"""

from __future__ import annotations

from drover_proxy.core.beside import left_bytes
from drover_proxy.core.commands import Load, Unload
from drover_proxy.core.config import MIB
from drover_proxy.core.entities import Cooldown, Failure, Plan, Runner, Timing
from drover_proxy.core.events import LoadFailed, LoadFinished
from drover_proxy.core.placement import Fit, Site, capacity, choose, judge, never_fits, survey
from drover_proxy.core.queueing import refuse_cooling, reject_waiting
from drover_proxy.core.sizing import NO_PROFILE, Need
from drover_proxy.core.state import State
from drover_proxy.core.transitions import RunnerState
from drover_proxy.vram import ModelInfo

LOAD_GRACE_SECONDS = 15.0
"""How much later than its own time limit a load may be reported, before it counts as failed anyway."""
SERVING = frozenset({RunnerState.READY, RunnerState.LOADING})


def served(state: State, info: ModelInfo) -> bool:
    """Whether a runner has the model ready, or loading, with the context it should have."""
    for runner in state.by_blob.get(info.blob, {}).values():
        spec = state.sizing.spec(info, state.instances[runner.key.instance])
        if runner.state in SERVING and runner.context == spec.context and not state.must_go(runner):
            return True
    return False


def planned_for(state: State, info: ModelInfo) -> Plan | None:
    """Return the plan that will serve a model, None if there is none."""
    for plan in state.plans.values():
        if plan.spec.key.blob == info.blob:
            spec = state.sizing.spec(info, state.instances[plan.spec.key.instance])
            if spec.context == plan.spec.context:
                return plan
    return None


def drop_plans(state: State) -> None:
    """Drop plans that nobody needs any more: no waiters, served meanwhile, instance down, withdrawn."""
    if not state.plans:
        return
    needed = set()
    if not state.draining and not state.siblings.owns_memory:
        for model in state.waiting:
            info = state.models[model]
            plan = planned_for(state, info)
            if plan is not None and not served(state, info):
                needed.add(plan.spec.key)
    for key in tuple(state.plans):
        if key not in needed or key.instance not in state.up or key.blob in state.withdrawn:
            del state.plans[key]


def advance(state: State, now: float) -> None:
    """Take every plan as far as it goes now."""
    for key in tuple(state.plans):
        plan = state.plans.get(key)
        model = _first_waiting(state, plan) if plan is not None else None
        if plan is None or model is None:
            continue
        info = state.models[model]
        site = judge(state, info, state.instances[key.instance], state.claims(), now)
        if not _act(state, site, model, now):
            del state.plans[key]


def _first_waiting(state: State, plan: Plan) -> str | None:
    for model in ordered_wishes(state):
        if planned_for(state, state.models[model]) is plan:
            return model
    return None


def ordered_wishes(state: State) -> list[str]:
    """Return the models that are waited for: who has starved first, then by priority, then by arrival."""
    if not state.waiting:
        return []
    profiles = state.config.profiles

    def order(model: str) -> tuple[int, int]:
        return (-profiles.get(model, NO_PROFILE).priority, state.oldest(model).sequence)

    return sorted(state.waiting, key=order)


def starved(state: State, model: str, now: float) -> bool:
    """Whether somebody has waited for a model so long that busy runners must make way."""
    return now - state.oldest(model).arrived_at >= state.config.queue.starve_seconds


def wish(state: State, now: float) -> None:
    """See for every model that nobody serves what can be done, those who have starved first."""
    models = ordered_wishes(state)
    models.sort(key=lambda model: not starved(state, model, now))
    for model in models:
        info = state.models[model]
        if served(state, info) or planned_for(state, info) is not None:
            state.stuck.pop(model, None)
        elif state.draining:
            message = f"this proxy is stopping and {model} is not loaded; ask again in a few seconds"
            reject_waiting(state, model, now, 503, "draining", message, 5)
        elif info.blob in state.cooldowns:
            for request in tuple(state.waiting[model].values()):
                refuse_cooling(state, request, info.blob, now)
        elif info.blob not in state.withdrawn:
            _consider(state, model, info, now)


def _consider(state: State, model: str, info: ModelInfo, now: float) -> None:
    need = never_fits(state, info)
    if need is not None:
        reject_waiting(state, model, now, 503, "model_too_large", _too_large(state, model, need), None)
        return
    if state.siblings.owns_memory:
        return  # one process at a time makes room
    site = choose(survey(state, info, now), starved=starved(state, model, now))
    if site is None or site.fit is Fit.NEVER:
        _stuck(state, model, "no_instance", now)
        return
    if site.fit is Fit.NO_ROOM:
        _stuck(state, model, "insufficient_memory", now, site)
        return
    state.stuck.pop(model, None)
    if site.fit in {Fit.SOON, Fit.CLAIMED}:
        return
    state.plans[site.spec.key] = Plan(site.spec, now)
    if not _act(state, site, model, now):
        state.plans.pop(site.spec.key, None)


def _act(state: State, site: Site, model: str, now: float) -> bool:
    """Do what a plan can do now; return whether it is to be kept (or has become a load)."""
    if site.fit is Fit.NOW:
        send_load(state, site, now)
    elif site.fit is Fit.EVICT:
        for runner in site.victims:
            why = "room by Ollama's own rule" if runner.key in site.by_rule else "room"
            send_unload(state, runner, f"{why} for {model}", now)
    elif site.fit is Fit.BLOCKED:
        tenure = state.config.queue.starve_seconds
        busy = [runner for runner in site.victims if not runner.idle]
        if not starved(state, model, now) or any(now - runner.ready_at < tenure for runner in busy):
            return False
        for runner in busy:
            state.move(runner, RunnerState.DRAINING, now, f"{model} has waited too long for its room")
            runner.drained_for = site.spec.key
    else:
        return site.fit in {Fit.SOON, Fit.CLAIMED}
    return True


def send_load(state: State, site: Site, now: float) -> None:
    """Promise the memory and send the load; the plan is done."""
    spec, need = site.spec, site.need
    info = state.models[spec.model]
    limit = state.config.loads.timeout_seconds
    runner = state.runner(spec)
    free = {uuid: state.ledger.free(uuid, now) or 0 for uuid in spec.gpu_uuids}
    state.move(runner, RunnerState.LOADING, now)
    state.ledger.promise(spec.key, need.shares(free), now)
    runner.spec, runner.need, runner.free_at_load = spec, need, free
    runner.model, runner.context, runner.slots = spec.model, spec.context, spec.runner_slots
    runner.names, runner.spilled = {spec.model}, False
    runner.load_began_at = now
    runner.deadline = now + limit + LOAD_GRACE_SECONDS
    state.plans.pop(spec.key, None)
    state.emit(
        Load(
            spec.key.instance,
            spec.model,
            spec.context,
            options=spec.options,
            embedding_only=info.embedding_only,
            predicted_bytes=need.total_bytes,
            timeout_seconds=limit,
        )
    )


def send_unload(state: State, runner: Runner, reason: str, now: float) -> None:
    """Unload an idle runner."""
    state.move(runner, RunnerState.UNLOADING, now, reason)
    runner.names.add(runner.model)
    state.emit(Unload(runner.key.instance, runner.model, reason))


def load_finished(state: State, event: LoadFinished, now: float) -> None:
    """A load was answered: its runner is ready, unless part of it ended up on the CPU."""
    state.story.tell(now, event, model=event.model)
    runner = state.find(event.instance, event.model)
    if runner is None or runner.state is not RunnerState.LOADING:
        return  # too late: it was given up, or the instance went down; /api/ps will tell
    spec, need, seen = runner.spec, runner.need, event.runner
    if spec is None or need is None:
        raise AssertionError(f"{runner.key} is loading without a spec")
    promised = state.ledger.promised(runner.key)
    total = seen.measured_bytes or need.total_bytes
    whole = sum(promised.values()) or 1
    state.ledger.keep(runner.key, {uuid: total * size // whole for uuid, size in promised.items()}, now)
    runner.reported_bytes = {uuid: seen.size_vram_bytes * size // whole for uuid, size in promised.items()}
    runner.left_bytes = left_bytes(runner.free_at_load, runner.reported_bytes)
    took = now - runner.load_began_at
    state.load_seconds.setdefault(runner.key.blob, Timing(took)).add(took)
    runner.seen_context = seen.context
    runner.suspect_since = None
    if spec.gpu_uuids and seen.size_vram_bytes < seen.size_bytes:
        _spilled(state, runner, event, now)
        state.remember()
        return
    state.move(runner, RunnerState.READY, now)
    state.failures.pop(runner.key.blob, None)
    if seen.measured_bytes and spec.gpu_uuids:
        state.sizing.learn(spec, seen.measured_bytes)
    state.remember()
    if seen.context != spec.context:
        state.alert(
            "context_differs",
            f"{runner.model} was to have {spec.context} tokens of context and has {seen.context}: compare "
            f"the proxy's settings of instance {runner.key.instance} with its environment",
            instance=runner.key.instance,
            model=runner.model,
        )


def _spilled(state: State, runner: Runner, event: LoadFinished, now: float) -> None:
    spec, need, seen = runner.spec, runner.need, event.runner
    missing = seen.size_bytes - seen.size_vram_bytes
    runner.spilled = True
    if spec is not None and need is not None:
        state.sizing.learn_spill(spec, need, missing, capacity(state, need))
    send_unload(state, runner, "partly on the CPU", now)
    message = (
        f"{runner.model} did not fit on the GPUs of instance {runner.key.instance}: {missing // MIB} MiB of "
        "it ended up on the CPU"
    )
    _count_failure(state, runner, "model_spills", message, now, retryable=True)


def load_failed(state: State, event: LoadFailed, now: float) -> None:
    """A load failed: try again, or reject all who wait for it and let it be for a while."""
    state.story.tell(now, event, model=event.model)
    runner = state.find(event.instance, event.model)
    if runner is not None and runner.state is RunnerState.LOADING:
        fail(state, runner, event.message or event.reason, now, retryable=event.retryable)


def fail(state: State, runner: Runner, message: str, now: float, *, retryable: bool) -> None:
    """Take a loading runner to failed, and decide what becomes of those who wait."""
    state.move(runner, RunnerState.FAILED, now, message)
    runner.deadline = now + state.config.loads.cooldown_seconds
    _count_failure(state, runner, "load_failed", message, now, retryable=retryable)


def _count_failure(
    state: State, runner: Runner, code: str, message: str, now: float, *, retryable: bool
) -> None:
    blob, limits = runner.key.blob, state.config.loads
    failure = state.failures.setdefault(blob, Failure())
    failure.count += 1
    failure.forget_at = now + limits.cooldown_seconds
    again = retryable and failure.count <= limits.retries
    note = "trying again" if again else f"not tried again for {limits.cooldown_seconds:.0f} s"
    alert = "load_spilled" if code == "model_spills" else code
    state.alert(alert, f"{message}; {note}", instance=runner.key.instance, model=runner.model)
    if again:
        return
    del state.failures[blob]
    state.cooldowns[blob] = Cooldown(
        now + limits.cooldown_seconds, 503 if retryable else 500, code, message, retryable
    )
    for model in tuple(state.waiting):
        if state.models[model].blob == blob and not served(state, state.models[model]):
            for request in tuple(state.waiting[model].values()):
                refuse_cooling(state, request, blob, now)


def _stuck(state: State, model: str, code: str, now: float, site: Site | None = None) -> None:
    since, before = state.stuck.get(model, (now, code))
    if before != code:
        since = now
    state.stuck[model] = (since, code)
    if code == "no_instance":
        if now - since >= state.config.queue.no_instance_seconds:
            message = f"no Ollama instance that could serve {model} is up; see `systemctl status 'ollama@*'`"
            reject_waiting(state, model, now, 503, code, message, 10)
    elif now - since >= state.config.loads.memory_timeout_seconds and site is not None:
        foreign = sum(state.ledger.books[uuid].foreign_bytes for uuid in site.need.gpu_uuids)
        free = sum(state.ledger.free(uuid, now) or 0 for uuid in site.need.gpu_uuids)
        message = (
            f"{model} needs {(site.need.total_bytes + site.need.reserve_bytes) // MIB} MiB of GPU memory in "
            f"instance {site.spec.key.instance}; {free // MIB} MiB are free, {foreign // MIB} MiB belong to "
            "other processes, and no model there may be evicted for it"
        )
        if site.refused_by_ollama:
            message = (
                f"{model} would fit into instance {site.spec.key.instance}, but beside runners that can't be "
                f"evicted Ollama wants {site.need.beside_bytes // MIB} MiB free by its own rough guess of "
                "it, and would evict one of them: give it an instance of its own, or unpin one of them"
            )
        reject_waiting(state, model, now, 503, code, message, 30)


def _too_large(state: State, model: str, need: Need) -> str:
    room = sum(capacity(state, need).values()) - need.reserve_bytes * len(need.gpu_uuids)
    return (
        f"{model} needs {need.total_bytes // MIB} MiB of GPU memory; the most an instance here can give is "
        f"{room // MIB} MiB. Use a smaller quantisation, a shorter context, or an instance over more GPUs"
    )
