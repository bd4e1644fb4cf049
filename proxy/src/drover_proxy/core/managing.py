"""Models that appear, change and go, and taking one out of all instances first."""

from __future__ import annotations

from collections.abc import Hashable

from drover_proxy.core.commands import Withdrawn
from drover_proxy.core.entities import STRAY, Withdrawal
from drover_proxy.core.events import ModelGone, ModelKnown, WithdrawalEnded, WithdrawModel
from drover_proxy.core.queueing import reject_waiting
from drover_proxy.core.state import State
from drover_proxy.core.transitions import RunnerState

MOST_UNLOAD_FAILURES = 2


def model_known(state: State, event: ModelKnown, now: float) -> None:
    """A model exists or has changed."""
    before = state.models.get(event.model)
    state.models[event.model] = event.info
    state.sizing.forget(event.model)
    _end_withdrawals(state, model=event.model)
    if before == event.info:
        return
    state.story.tell(now, f"known, blob {event.info.blob}", model=event.model)
    state.cooldowns.pop(event.info.blob, None)
    if before is not None and before.blob != event.info.blob:
        _rename(state, event.model, before.blob)
    for runner in tuple(state.by_blob.get(event.info.blob, {}).values()):
        if runner.ghost:
            runner.ghost, runner.model = False, event.model
    if event.info.blob != STRAY + event.model:  # a runner of that name is now known for what it is
        for runner in tuple(state.by_blob.get(STRAY + event.model, {}).values()):
            if runner.state in {RunnerState.READY, RunnerState.DRAINING, RunnerState.FAILED}:
                state.move(runner, RunnerState.ABSENT, now, "its model is known now")
                state.left_at.pop(runner.key, None)


def model_gone(state: State, event: ModelGone, now: float) -> None:
    """A model was deleted."""
    info = state.models.get(event.model)
    _end_withdrawals(state, model=event.model)
    if info is None:
        return
    state.story.tell(now, event, model=event.model)
    reject_waiting(state, event.model, now, 404, "model_not_found", f"model '{event.model}' not found", None)
    del state.models[event.model]
    state.sizing.forget(event.model)
    _rename(state, event.model, info.blob)


def _rename(state: State, model: str, blob: str) -> None:
    """Call runners of a blob by another of its names, as `model` isn't one any more; else they are ghosts."""
    other = next((name for name, info in state.models.items() if info.blob == blob), None)
    for runner in state.by_blob.get(blob, {}).values():
        if runner.model != model or runner.state is RunnerState.FAILED:
            continue
        if other is not None:
            runner.model = other
        else:
            runner.ghost = True
            state.alert(
                "ghost_runner",
                f"{model} is deleted but still loaded in {runner.key.instance}: Ollama unloads it only when "
                "it is restarted or another model of the same blob is unloaded",
                instance=runner.key.instance,
                model=model,
            )


def withdraw(state: State, event: WithdrawModel, now: float) -> None:
    """Begin to take a model out of all instances."""
    info = state.models.get(event.model)
    state.story.tell(now, event, model=event.model)
    if info is None:
        state.emit(Withdrawn(event.ticket))
        return
    state.withdrawals[event.ticket] = Withdrawal(event.ticket, event.model, info.blob)
    _recount(state)


def withdrawal_ended(state: State, event: WithdrawalEnded, now: float) -> None:
    """The management call is over."""
    if event.ticket in state.withdrawals:
        state.story.tell(now, event, model=state.withdrawals[event.ticket].model)
        _end_withdrawals(state, ticket=event.ticket)


def tell_withdrawn(state: State) -> None:
    """Report the withdrawals that are complete, or that can't be completed."""
    for withdrawal in state.withdrawals.values():
        if withdrawal.told:
            continue
        left = [
            runner
            for runner in state.by_blob.get(withdrawal.blob, {}).values()
            if runner.state is not RunnerState.FAILED
        ]
        stubborn = [runner for runner in left if runner.unload_failures >= MOST_UNLOAD_FAILURES]
        if not left:
            withdrawal.told = True
            state.emit(Withdrawn(withdrawal.ticket))
        elif stubborn:
            withdrawal.told = True
            message = f"{withdrawal.model} could not be unloaded from {stubborn[0].key.instance}"
            state.emit(Withdrawn(withdrawal.ticket, ok=False, message=message))


def _end_withdrawals(state: State, *, model: str | None = None, ticket: Hashable | None = None) -> None:
    for key, withdrawal in tuple(state.withdrawals.items()):
        if withdrawal.model == model or (ticket is not None and key == ticket):
            del state.withdrawals[key]
    _recount(state)


def _recount(state: State) -> None:
    state.withdrawn = {withdrawal.blob for withdrawal in state.withdrawals.values()}
