"""The scheduler: an event goes in with its time, commands come out. It holds no clock and does no I/O.

`handle` first applies the event, then settles: whatever follows from the new state is done in one fixed
order, in which each step only needs what the steps before it did.

1. Who has waited too long is rejected.
2. Plans that nobody needs are dropped; runners drained in vain are ready again.
3. Who waits is forwarded, where a ready runner has a free slot.
4. What must go is unloaded, when idle.
5. Plans go on: evict, wait, load.
6. Who is served by nobody gets a plan, or an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from drover_proxy.core import events, loading, managing, observing, queueing, sharing
from drover_proxy.core.commands import Command, Drained
from drover_proxy.core.config import CoreConfig
from drover_proxy.core.learned import Learned
from drover_proxy.core.snapshot import snapshot
from drover_proxy.core.state import State
from drover_proxy.core.story import Entry
from drover_proxy.core.validate import validate

Handler = Callable[[State, Any, float], None]


def _tick(state: State, event: events.Tick, now: float) -> None:  # noqa: ARG001 - every handler has this form
    observing.run_timers(state, now)


def _drain(state: State, event: events.DrainRequested, now: float) -> None:
    state.story.tell(now, event)
    state.draining = True


HANDLERS: dict[type[object], Handler] = {
    events.HeadersSent: queueing.headers_sent,
    events.ForwardFailed: queueing.bounce,
    events.LoadFinished: loading.load_finished,
    events.LoadFailed: loading.load_failed,
    events.UnloadObserved: observing.unload_observed,
    events.UnloadFailed: observing.unload_failed,
    events.MemoryObserved: observing.memory_observed,
    events.RunnersObserved: observing.runners_observed,
    events.InstanceUp: observing.instance_up,
    events.InstanceDown: observing.instance_down,
    events.ModelKnown: managing.model_known,
    events.ModelGone: managing.model_gone,
    events.WithdrawModel: managing.withdraw,
    events.WithdrawalEnded: managing.withdrawal_ended,
    events.SiblingsObserved: sharing.observed,
    events.DrainRequested: _drain,
    events.Tick: _tick,
}


class Scheduler:
    """Decides what is loaded, what is evicted, who waits and where a request runs."""

    def __init__(self, config: CoreConfig, learned: Learned | None = None) -> None:
        self.state = State(config, learned)

    def handle(self, event: events.Event, now: float) -> list[Command]:
        """Take an event and return what is to be done, in order. `now` is monotonic, in seconds."""
        state = self.state
        out: list[Command] = []
        state.out = out
        if not state.ledger.begun:
            state.ledger.begin(now)
        if isinstance(event, events.RequestArrived):
            restless = self._arrived(event, now)
        elif isinstance(event, (events.RequestFinished, events.RequestCancelled)):
            restless = self._ended(event, now)
        else:
            HANDLERS[type(event)](state, event, now)
            restless = not isinstance(event, events.HeadersSent)
        if restless:
            self._settle(now)
        return out

    def reconfigure(self, config: CoreConfig) -> None:
        """Let other limits, profiles and settings of instances take effect; loaded runners stay as they are.

        The GPUs and the names and GPUs of the instances must be the same: others need a restart.
        """
        state = self.state
        before = {name: instance.gpu_uuids for name, instance in state.instances.items()}
        after = {instance.name: instance.gpu_uuids for instance in config.instances}
        if before != after or {gpu.uuid for gpu in config.gpus} != set(state.ledger.books):
            raise ValueError("instances or GPUs differ from those the proxy started with: restart it")
        state.reconfigure(config)

    def holdings(self) -> sharing.Holdings:
        """Return what this process holds, for its siblings during a handover."""
        return sharing.holdings(self.state)

    def validate(self) -> None:
        """Check every invariant across the collections; raise InvariantError naming what is broken."""
        validate(self.state)

    def snapshot(self) -> dict[str, Any]:
        """Return the state as plain data, for /drover/v1/state and the metrics."""
        return snapshot(self.state)

    def story(self, *, request: Hashable | None = None, model: str | None = None) -> tuple[Entry, ...]:
        """Return what happened to a request or a model, oldest first."""
        return self.state.story.of(request=request, model=model)

    # What happens to one request is the data path: it must not cost more when many wait. So only what can
    # follow from it is done, and whether to settle is returned. What only time changes is left to Tick.

    def _arrived(self, event: events.RequestArrived, now: float) -> bool:
        state = self.state
        waited = event.model in state.waiting
        queueing.arrive(state, event, now)
        # The first who waits for a model may need a load.
        return state.draining or (not waited and event.model in state.waiting)

    def _ended(self, event: events.RequestFinished | events.RequestCancelled, now: float) -> bool:
        state = self.state
        request = state.requests.get(event.request)
        if request is None:
            return state.draining
        runner = request.runner
        if isinstance(event, events.RequestFinished):
            queueing.finish(state, request, event.outcome, now)
        else:
            queueing.cancel(state, request, now)
        if state.draining:
            return True
        if runner is None:  # the last who leaves may leave a plan behind
            return request.model not in state.waiting
        if state.waiting:
            queueing.serve_waiting(state, now)  # its slot, which is free now
            return runner.idle
        return not runner.active and (bool(state.plans) or state.wants_gone(runner))

    def _settle(self, now: float) -> None:
        state = self.state
        queueing.expire(state, now)
        loading.drop_plans(state)
        observing.send_away(state, now)
        queueing.serve_waiting(state, now)
        loading.advance(state, now)
        loading.wish(state, now)
        managing.tell_withdrawn(state)
        if state.draining and not state.requests and not state.drained_told:
            state.drained_told = True
            state.emit(Drained())
