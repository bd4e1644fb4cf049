"""The queue: bounded, first come first served for each model, with an honest Retry-After.

A request is forwarded only to a ready runner with a free slot. Everybody else waits here, never in Ollama.

| code | status | when | Retry-After |
|---|---|---|---|
| `model_not_found` | 404 | nobody has told us of the model | none |
| `model_cannot_generate` | 400 | text is asked of an embedding model | none |
| `queue_full` | 503 | `max_waiting` requests wait | until one more could be served |
| `queue_timeout` | 503 | waited `max_wait_seconds` | until one more could be served |
| `draining` | 503 | the proxy is stopping | 5 s |
| `no_instance` | 503 | no instance that could serve it is up | 10 s |
| `insufficient_memory` | 503 | others hold the memory, and no eviction would free enough | 30 s |
| `model_too_large` | 503 | it would not fit into empty GPUs | none: asking again is of no use |
| `model_spills` | 503 | it ended up partly on the CPU, twice | rest of the cool-down |
| `load_failed` | 503, 500 | the load failed; 500 when it would fail again | rest of the cool-down; none |
| `upstream_unreachable` | 502 | it never reached the instance, though forwarded again | 1 s |
"""

from __future__ import annotations

import math
from typing import Final

from drover_proxy.core.commands import Forward, Wait
from drover_proxy.core.entities import Request, Runner, Timing
from drover_proxy.core.events import (
    ForwardFailed,
    HeadersSent,
    Needs,
    Outcome,
    RequestArrived,
)
from drover_proxy.core.state import State
from drover_proxy.core.transitions import IllegalTransition, RequestState, RunnerState
from drover_proxy.vram import ModelInfo

LEAST_RETRY_SECONDS = 1
MOST_RETRY_SECONDS = 120
DRAINING_RETRY_SECONDS = 5
ASSUMED_SERVICE_SECONDS = 5.0
ASSUMED_LOAD_SECONDS = 10.0
MOST_BOUNCES = 2
MOST_SLOTS: Final = 1 << 30
NO_RUNNERS: Final[dict[str, Runner]] = {}
READY: Final = RunnerState.READY  # as a global, it is cheap to look up


def arrive(state: State, event: RequestArrived, now: float) -> None:
    """Take in a request: forward it at once, queue it, or say why not."""
    if event.request in state.requests:
        story = state.story.of(request=event.request, model=event.model)
        before = state.requests[event.request].state.value
        raise IllegalTransition(f"request {event.request}", before, "arrived again", story)
    state.story.tell(now, event, request=event.request, model=event.model)
    request = Request(event, now)
    info = state.models.get(event.model)
    if info is not None and event.model not in state.waiting and _welcome(state, request, info):
        runner = seat_for(state, info)
        if runner is not None:
            state.admit_seated(request, runner, now)
            _send(state, request, runner, info, now)
            return
    state.admit(request)
    if info is None:
        message = f"model '{event.model}' not found"
        state.reject(request, now, 404, "model_not_found", message, None)
        return
    if _refused(state, request, info, now):
        return
    if state.waiting_count > state.config.queue.max_waiting:
        message = (
            f"the queue is full: {state.config.queue.max_waiting} requests wait on this host; "
            "ask again after the time in Retry-After"
        )
        state.reject(request, now, 503, "queue_full", message, retry_after(state, event.model))
        return
    state.emit(Wait(request.id, len(state.waiting[event.model])))


def _welcome(state: State, request: Request, info: ModelInfo) -> bool:
    """Whether nothing speaks against a request but that there may be no slot for it."""
    return (
        not state.draining
        and (request.needs is not Needs.GENERATE or info.generates)
        and info.blob not in state.cooldowns
    )


def _refused(state: State, request: Request, info: ModelInfo, now: float) -> bool:
    if state.draining:
        message = "this proxy is stopping; ask again in a few seconds"
        state.reject(request, now, 503, "draining", message, DRAINING_RETRY_SECONDS)
    elif request.needs is Needs.GENERATE and not info.generates:
        message = f'"{info.name}" does not support generate'
        state.reject(request, now, 400, "model_cannot_generate", message, None)
    elif info.blob in state.cooldowns:
        refuse_cooling(state, request, info.blob, now)
    else:
        return False
    return True


def refuse_cooling(state: State, request: Request, blob: str, now: float) -> None:
    """Reject a request for a model that could not be loaded a moment ago."""
    cooldown = state.cooldowns[blob]
    wait = _whole_seconds(cooldown.until - now) if cooldown.retryable else None
    state.reject(request, now, cooldown.status, cooldown.code, cooldown.message, wait)


def seat_for(state: State, info: ModelInfo) -> Runner | None:
    """Return the ready runner with a free slot that has the fewest requests; None if there is none."""
    best: Runner | None = None
    fewest = MOST_SLOTS
    for runner in state.by_blob.get(info.blob, NO_RUNNERS).values():
        taken = len(runner.active)
        if taken >= fewest or runner.state is not READY or runner.suspect_since is not None:
            continue
        spec = state.sizing.spec(info, state.instances[runner.key.instance])
        slots = min(spec.slots, runner.slots)
        if spec.context == runner.context and taken + runner.elsewhere < slots and not state.must_go(runner):
            best, fewest = runner, taken
    return best


def forward(state: State, request: Request, runner: Runner, now: float) -> None:
    """Seat a request and have it sent."""
    state.seat(request, runner, now)
    _send(state, request, runner, state.models[request.model], now)


def _send(state: State, request: Request, runner: Runner, info: ModelInfo, now: float) -> None:
    spec = state.sizing.spec(info, state.instances[runner.key.instance])
    arrived_at = request.arrived_at
    loading = 0.0
    if runner.ready_at > arrived_at:
        loading = max(0.0, runner.ready_at - max(arrived_at, runner.load_began_at))
    state.out.append(
        Forward(request.id, runner.key.instance, request.model, spec.options, now - arrived_at, loading)
    )


def serve_waiting(state: State, now: float) -> None:
    """Forward those who wait and whose runner has a free slot, each model first come first served."""
    for model in tuple(state.waiting):
        info = state.models[model]
        while model in state.waiting:
            runner = seat_for(state, info)
            if runner is None:
                break
            forward(state, state.oldest(model), runner, now)


def cancel(state: State, request: Request, now: float) -> None:
    """End a request whose client left."""
    state.turn(request, RequestState.CANCELLED, now)


def headers_sent(state: State, event: HeadersSent, now: float) -> None:
    """Note that an answer has begun; one that has ended meanwhile is ignored."""
    request = state.requests.get(event.request)
    if request is not None:
        state.turn(request, RequestState.ANSWERING, now)


def finish(state: State, request: Request, outcome: Outcome, now: float) -> None:
    """End a forwarded request."""
    model, forwarded_at = request.model, request.forwarded_at
    if outcome is not Outcome.OK:
        state.story.tell(now, outcome, request=request.id, model=model)
    state.turn(request, RequestState.DONE, now)
    if outcome is Outcome.OK:
        timing = state.service_seconds.get(model)
        if timing is None:
            timing = state.service_seconds[model] = Timing(now - forwarded_at)
        timing.add(now - forwarded_at)


def bounce(state: State, event: ForwardFailed, now: float) -> None:
    """Queue a request again that never reached its instance; after so many times give up."""
    request = state.requests.get(event.request)
    if request is None:
        return
    if request.state is RequestState.FORWARDED and request.runner is not None:
        request.runner.suspect_since = now
    request_bounced = request.bounced + 1
    if request_bounced > MOST_BOUNCES:
        message = f"the instance could not be reached: {event.reason}"
        state.reject(request, now, 502, "upstream_unreachable", message, LEAST_RETRY_SECONDS)
        return
    state.turn(request, RequestState.WAITING, now, f"never reached the instance: {event.reason}")
    request.bounced = request_bounced
    if request.model not in state.models:
        message = f"model '{request.model}' not found"
        state.reject(request, now, 404, "model_not_found", message, None)


def expire(state: State, now: float) -> None:
    """Reject those who have waited too long. Within a model who came first is first, so heads suffice."""
    limit = state.config.queue.max_wait_seconds
    for model in tuple(state.waiting):
        while model in state.waiting and now - state.oldest(model).arrived_at >= limit:
            message = (
                f"waited {limit:.0f} s for a free slot of {model}; the host is overloaded, ask again later"
            )
            wait = retry_after(state, model)
            state.reject(state.oldest(model), now, 503, "queue_timeout", message, wait)


def reject_waiting(
    state: State, model: str, now: float, status: int, code: str, message: str, wait: int | None
) -> None:
    """Reject all who wait for a model."""
    for request in tuple(state.waiting.get(model, {}).values()):
        state.reject(request, now, status, code, message, wait)


def retry_after(state: State, model: str) -> int:
    """Return the seconds after which one more request for a model could be served.

    So many rounds of its slots as the waiting need, each as long as its requests took lately, and a load
    if it isn't ready.
    """
    info = state.models[model]
    service = state.service_seconds.get(model)
    seconds = ASSUMED_SERVICE_SECONDS if service is None else service.seconds
    ready = [
        runner for runner in state.by_blob.get(info.blob, {}).values() if runner.state is RunnerState.READY
    ]
    slots = sum(runner.slots for runner in ready) or 1
    ahead = len(state.waiting.get(model, ())) or 1
    total = seconds * math.ceil(ahead / slots)
    if not ready:
        load = state.load_seconds.get(info.blob)
        total += ASSUMED_LOAD_SECONDS if load is None else load.seconds
    return _whole_seconds(total)


def _whole_seconds(seconds: float) -> int:
    return max(LEAST_RETRY_SECONDS, min(MOST_RETRY_SECONDS, math.ceil(seconds)))
