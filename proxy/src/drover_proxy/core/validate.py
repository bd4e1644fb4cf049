"""What is true between any two events. The property tests check it after every step of invented worlds."""

from __future__ import annotations

from collections.abc import Iterator

from drover_proxy.core.entities import LIVE
from drover_proxy.core.state import State
from drover_proxy.core.transitions import RequestState, RunnerState

IN_FLIGHT = frozenset({RequestState.FORWARDED, RequestState.ANSWERING})


class InvariantError(AssertionError):
    """Collections contradict each other: a bug of the scheduler. Names every contradiction found."""


def validate(state: State) -> None:
    """Raise InvariantError when anything is wrong."""
    found = [
        *_requests(state),
        *_queues(state),
        *_in_flight(state),
        *_runners(state),
        *_ledger(state),
        *_claims(state),
        *_rest(state),
    ]
    if found:
        raise InvariantError("; ".join(found))


def _requests(state: State) -> Iterator[str]:
    waiting = [request for queue in state.waiting.values() for request in queue]
    active = [request for runner in state.runners.values() for request in runner.active]
    places = [*waiting, *active, *state.orphans.keys()]
    if len(places) != len(set(places)) or set(places) != set(state.requests):
        yield f"requests are not each in exactly one place: {sorted(map(str, places))}"
    if state.waiting_count != len(waiting):
        yield f"{len(waiting)} wait, but {state.waiting_count} are counted"
    if state.waiting_count > state.config.queue.max_waiting + _bounced(state):
        yield f"the queue holds {state.waiting_count}, more than its bound"


def _queues(state: State) -> Iterator[str]:
    for model, queue in state.waiting.items():
        if not queue:
            yield f"an empty queue of {model} is kept"
        if model not in state.models:
            yield f"{model} is waited for but not known"
        order = [request.sequence for request in queue.values()]
        if order != sorted(order):
            yield f"the queue of {model} is not in order of arrival"
        for request in queue.values():
            if request.state is not RequestState.WAITING or request.model != model or request.runner:
                yield f"request {request.id} is in the queue of {model}, but {request.state.value}"


def _in_flight(state: State) -> Iterator[str]:
    for identity, request in state.requests.items():
        if request.id != identity:
            yield f"request {request.id} is filed as {identity}"
        if request.state in IN_FLIGHT:
            runner = request.runner
            held = (
                runner is not None and runner is state.runners.get(runner.key) and identity in runner.active
            )
            if not held and identity not in state.orphans:
                yield f"request {identity} is {request.state.value}, but with nobody"
        elif request.state is not RequestState.WAITING:
            yield f"request {identity} has ended ({request.state.value}) but is kept"


def _bounced(state: State) -> int:
    """Those who came back from a failed forward may exceed the bound: they had been let in before."""
    return sum(1 for queue in state.waiting.values() for request in queue.values() if request.bounced)


def _runners(state: State) -> Iterator[str]:
    by_blob = {(key.blob, key.instance): runner for key, runner in state.runners.items() if runner.key == key}
    index = {
        (blob, instance): runner
        for blob, siblings in state.by_blob.items()
        for instance, runner in siblings.items()
    }
    if by_blob != index or len(by_blob) != len(state.runners):
        yield "runners and their index by blob differ"
    if any(not siblings for siblings in state.by_blob.values()):
        yield "an empty index of a blob is kept"
    draining = {key for key, runner in state.runners.items() if runner.state is RunnerState.DRAINING}
    if state.leaving != draining:
        yield f"{sorted(draining)} drain, but {sorted(state.leaving)} are listed"
    for key, runner in state.runners.items():
        name = f"{runner.model} in {key.instance}"
        if len(runner.active) > runner.slots:
            yield f"{name} has {len(runner.active)} requests in {runner.slots} slots"
        if runner.active and runner.state not in {RunnerState.READY, RunnerState.DRAINING}:
            yield f"{name} is {runner.state.value} with requests {sorted(map(str, runner.active))}"
        if runner.state is RunnerState.ABSENT:
            yield f"{name} is absent but kept"
        if key.instance not in state.up:
            yield f"{name} is {runner.state.value} in an instance that is down"
        timed = runner.state in {RunnerState.LOADING, RunnerState.UNLOADING, RunnerState.FAILED}
        if timed != (runner.deadline is not None):
            yield f"{name} is {runner.state.value} with deadline {runner.deadline}"
        if runner.elsewhere != state.elsewhere(key):
            yield f"{name} has {runner.elsewhere} slots taken by siblings, who say {state.elsewhere(key)}"
        if runner.drained_for is not None and runner.state is not RunnerState.DRAINING:
            yield f"{name} drains for {runner.drained_for} but is {runner.state.value}"


def _ledger(state: State) -> Iterator[str]:
    for book in state.ledger.books.values():
        loading = [
            key
            for key, runner in state.runners.items()
            if runner.state is RunnerState.LOADING and book.uuid in state.instances[key.instance].gpu_uuids
        ]
        promised = [book.promise.key] if book.promise is not None else []
        if loading != promised:
            yield f"GPU {book.uuid}: promised to {promised}, but {loading} load"
        holding = {
            key
            for key, runner in state.runners.items()
            if runner.state in LIVE and book.uuid in state.instances[key.instance].gpu_uuids
        }
        if holding != set(book.charges):
            yield f"GPU {book.uuid}: charged to {sorted(book.charges)}, but held by {sorted(holding)}"
        if any(release.missing_bytes < 0 for release in book.releases.values()):
            yield f"GPU {book.uuid}: a release gives back more than it is"
        for key, release in book.releases.items():
            runner = state.runners.get(key)
            if release.until is None and (runner is None or runner.state is not RunnerState.UNLOADING):
                yield f"GPU {book.uuid}: memory of {key} is expected, but it is not being unloaded"


def _claims(state: State) -> Iterator[str]:
    holders: dict[str, set[object]] = {}
    for plan in state.plans.values():
        for name in state.resources(plan.spec):
            holders.setdefault(name, set()).add(plan.spec.key)
    for runner in state.runners.values():
        if runner.state is RunnerState.LOADING and runner.spec is not None:
            for name in state.resources(runner.spec):
                holders.setdefault(name, set()).add(runner.key)
    for name, keys in holders.items():
        if len(keys) > 1:
            yield f"{name} is claimed by {len(keys)} loads at once"
    for key, plan in state.plans.items():
        if plan.spec.key != key:
            yield f"the plan of {plan.spec.key} is filed as {key}"
        if key.instance not in state.up or key.blob in state.withdrawn or state.draining:
            yield f"a plan of {key} is kept that can't come true"
        target = state.runners.get(key)
        if target is not None and target.state is RunnerState.LOADING:
            yield f"{key} is planned and loading at once"
        if target is not None and target.drained_for not in {None, key}:
            yield f"{key} is to be loaded and makes way for {target.drained_for}"


def _rest(state: State) -> Iterator[str]:
    if state.plans and state.siblings.owns_memory:
        yield f"room is made for {sorted(state.plans)} while a sibling does so"
    if not state.up <= set(state.instances):
        yield f"unknown instances are up: {sorted(state.up - set(state.instances))}"
    if not set(state.stuck) <= set(state.waiting):
        yield "models are stuck that nobody waits for"
    if state.withdrawn != {withdrawal.blob for withdrawal in state.withdrawals.values()}:
        yield "withdrawn blobs and withdrawals differ"
    for model, queue in state.waiting.items():
        blob = state.models[model].blob if model in state.models else ""
        if blob in state.cooldowns and queue:
            ready = any(
                runner.state in {RunnerState.READY, RunnerState.LOADING}
                for runner in state.by_blob.get(blob, {}).values()
            )
            if not ready:
                yield f"{model} is waited for while it cools down"
