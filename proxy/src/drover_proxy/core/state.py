"""Everything the scheduler knows, and the only functions that change a runner's or a request's state.

Which collection holds what is in docs/explanation/scheduler.md; validate.py checks that it is so.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from drover_proxy.core.commands import Alert, Command, Reject, Remember
from drover_proxy.core.config import CoreConfig, Instance
from drover_proxy.core.entities import (
    ALL_SLOTS,
    CHANGING,
    LIVE,
    Cooldown,
    Failure,
    Plan,
    Request,
    Runner,
    Timing,
    Withdrawal,
)
from drover_proxy.core.events import RequestId, SiblingsObserved
from drover_proxy.core.learned import Learned, LearnedBook
from drover_proxy.core.ledger import NEVER, Ledger, RunnerKey
from drover_proxy.core.sizing import RunSpec, Sizing
from drover_proxy.core.story import Story
from drover_proxy.core.transitions import (
    ENDED,
    REQUEST_TRANSITIONS,
    RUNNER_TRANSITIONS,
    RequestState,
    RunnerState,
    check,
)
from drover_proxy.vram import ModelInfo


class State:
    """All collections. Other modules read them freely, and change them only through these methods."""

    def __init__(self, config: CoreConfig, learned: Learned | None = None) -> None:
        self.config = config
        self.instances: dict[str, Instance] = {instance.name: instance for instance in config.instances}
        self.up: set[str] = set()
        self.models: dict[str, ModelInfo] = {}
        self.ledger = Ledger(config.gpus, config.loads.memory_timeout_seconds)
        self.sizing = Sizing(config)
        learned = learned or Learned()
        self.sizing.recall(learned.sizes)
        self.books = {RunnerKey(book.instance, book.blob): book for book in learned.books}
        """Of runners that were loaded before the proxy was restarted."""
        self.story = Story()
        self.runners: dict[RunnerKey, Runner] = {}
        self.by_blob: dict[str, dict[str, Runner]] = {}
        self.leaving: set[RunnerKey] = set()
        self.requests: dict[RequestId, Request] = {}
        self.waiting: dict[str, dict[RequestId, Request]] = {}
        self.waiting_count = 0
        self.orphans: dict[RequestId, RunnerKey] = {}
        self.left_at: dict[RunnerKey, float] = {}
        self.plans: dict[RunnerKey, Plan] = {}
        self.failures: dict[str, Failure] = {}
        self.cooldowns: dict[str, Cooldown] = {}
        self.stuck: dict[str, tuple[float, str]] = {}
        self.withdrawals: dict[Hashable, Withdrawal] = {}
        self.withdrawn: set[str] = set()
        self.siblings = SiblingsObserved()
        self.shared_until = NEVER
        """When a sibling last stopped to load: what was seen of instances before doesn't count."""
        self.observed_at: dict[str, float] = {}
        self.unloads: dict[RunnerKey, int] = {}
        self.changes = 0
        """Loads and unloads begun or ended, for siblings."""
        self.draining = False
        self.drained_told = False
        self.service_seconds: dict[str, Timing] = {}
        self.load_seconds: dict[str, Timing] = {}
        self.out: list[Command] = []
        self._sequence = 0

    def reconfigure(self, config: CoreConfig) -> None:
        """Take over another configuration of the same instances and GPUs."""
        self.config = self.sizing.config = config
        self.instances = {instance.name: instance for instance in config.instances}
        self.ledger.timeout_seconds = config.loads.memory_timeout_seconds
        for model in self.models:
            self.sizing.forget(model)

    def remember(self) -> None:
        """Hand out what a restart should not forget."""
        books = tuple(
            LearnedBook(*key, runner.context, sum(runner.reported_bytes.values()), dict(runner.left_bytes))
            for key, runner in self.runners.items()
            if runner.state in LIVE and runner.left_bytes
        )
        self.emit(Remember(Learned(self.sizing.learned(), books)))

    def emit(self, command: Command) -> None:
        """Add a command to the answer of the event at hand."""
        self.out.append(command)

    def alert(self, code: str, message: str, *, instance: str = "", model: str = "") -> None:
        """Tell the operator."""
        self.emit(Alert(code, message, instance, model))

    # Runners

    def runner(self, spec: RunSpec) -> Runner:
        """Return the runner of that identity, made absent if there is none yet."""
        runner = self.runners.get(spec.key)
        if runner is None:
            runner = Runner(spec.key, spec.model, spec.context, spec.runner_slots)
            self.file(runner)
        return runner

    def file(self, runner: Runner) -> None:
        """Take in a new runner."""
        runner.elsewhere = self.elsewhere(runner.key)
        self.runners[runner.key] = runner
        self.by_blob.setdefault(runner.key.blob, {})[runner.key.instance] = runner

    def elsewhere(self, key: RunnerKey) -> int:
        """Return the slots of a runner that siblings have: all, where an elder's requests wait for one."""
        return self.siblings.busy.get(key, 0) + (ALL_SLOTS if key.blob in self.siblings.waits else 0)

    def blind(self, instance: str) -> bool:
        """Whether a sibling may have changed what an instance has loaded since we last saw it."""
        return self.observed_at.get(instance, NEVER) < self.shared_until

    def move(self, runner: Runner, after: RunnerState, now: float, why: str = "") -> None:
        """Take a runner to another state, with what that means for its memory and its requests."""
        before = runner.state
        name = f"runner {runner.model} of {runner.key.instance}"
        if (before, after) not in RUNNER_TRANSITIONS:
            check(RUNNER_TRANSITIONS, name, before, after, self.story.of(model=runner.model))
        why = why or RUNNER_TRANSITIONS[before, after]
        told = f"{runner.key.instance}: {before.value} -> {after.value} ({why})"
        self.story.tell(now, told, model=runner.model)
        runner.state = after
        runner.changed_at = now
        runner.deadline = runner.drained_for = None
        key = runner.key
        self.changes += before in CHANGING or after in CHANGING
        self.leaving.discard(key)
        if after is RunnerState.DRAINING:
            self.leaving.add(key)
        elif after is RunnerState.UNLOADING:
            runner.deadline = now + self.config.loads.unload_timeout_seconds
            self.unloads[key] = self.unloads.get(key, 0) + 1
            self.ledger.expect(key)
        elif after is RunnerState.READY:
            if before is RunnerState.UNLOADING:
                self.ledger.stop_expecting(key)
            elif before is not RunnerState.DRAINING:
                runner.ready_at = runner.last_used_at = now
                runner.unload_failures = 0
        elif after is RunnerState.FAILED:
            self.ledger.break_promise(key, now)
        elif after is RunnerState.ABSENT:
            self.ledger.break_promise(key, now)
            self.ledger.let_go(key, now)
            self._forget(runner)

    def _forget(self, runner: Runner) -> None:
        """Drop an absent runner; requests that are still with it are left to the wire."""
        for request in runner.active:
            self.requests[request].runner = None
            self.orphans[request] = runner.key
        runner.active.clear()
        self.left_at[runner.key] = runner.changed_at
        del self.runners[runner.key]
        siblings = self.by_blob[runner.key.blob]
        del siblings[runner.key.instance]
        if not siblings:
            del self.by_blob[runner.key.blob]

    def take_back(self, runner: Runner) -> None:
        """Give an adopted runner its requests back: it may have been there all the time, its slots taken.

        If it is a new one after all, the wire ends these requests soon.
        """
        for request, key in tuple(self.orphans.items()):
            if key == runner.key and len(runner.active) < runner.slots:
                del self.orphans[request]
                self.requests[request].runner = runner
                runner.active.add(request)

    def runners_of(self, instance: str) -> Iterator[Runner]:
        """Iterate over the runners of an instance, safely while they change."""
        return iter([runner for runner in self.runners.values() if runner.key.instance == instance])

    def find(self, instance: str, model: str) -> Runner | None:
        """Return the runner that an instance means by a model's name: by its blob, else by its own name."""
        info = self.models.get(model)
        if info is not None:
            runner = self.runners.get(RunnerKey(instance, info.blob))
            if runner is not None:
                return runner
        return next(
            (
                runner
                for runner in self.runners_of(instance)
                if runner.model == model or model in runner.names
            ),
            None,
        )

    def must_go(self, runner: Runner) -> bool:
        """Whether a runner is to be unloaded whoever needs its room."""
        return runner.spilled or runner.key.blob in self.withdrawn

    def wants_gone(self, runner: Runner) -> bool:
        """Whether something is to be done with a runner as soon as it is idle."""
        return runner.state is not RunnerState.READY or self.must_go(runner)

    # Claims

    def resources(self, spec: RunSpec) -> tuple[str, ...]:
        """Return what a load has for itself while it lasts: its GPUs, or the instance if it has none."""
        return spec.gpu_uuids or (f"instance {spec.key.instance}",)

    def claims(self) -> dict[str, RunnerKey]:
        """Return who has claimed what: plans and loads under way."""
        taken = {name: plan.spec.key for plan in self.plans.values() for name in self.resources(plan.spec)}
        for runner in self.runners.values():
            if runner.state is RunnerState.LOADING and runner.spec is not None:
                for name in self.resources(runner.spec):
                    taken[name] = runner.key
        return taken

    # Requests

    def admit(self, request: Request) -> None:
        """Take in a new request, at the end of the queue."""
        self._sequence += 1
        request.sequence = self._sequence
        self.requests[request.id] = request
        self.waiting.setdefault(request.model, {})[request.id] = request
        self.waiting_count += 1

    def turn(self, request: Request, after: RequestState, now: float, why: str = "") -> None:
        """Take a request to another state and move it between the collections accordingly."""
        before = request.state
        if (before, after) not in REQUEST_TRANSITIONS:
            story = self.story.of(request=request.id, model=request.model)
            check(REQUEST_TRANSITIONS, f"request {request.id}", before, after, story)
        self.story.tell(now, why or after, request=request.id, model=request.model)
        request.state = after
        if after is RequestState.ANSWERING:
            return
        if before is RequestState.WAITING:
            queue = self.waiting[request.model]
            del queue[request.id]
            self.waiting_count -= 1
            if not queue:
                del self.waiting[request.model]
                self.stuck.pop(request.model, None)
        else:
            self._leave_runner(request, now)
        if after is RequestState.WAITING:
            self._put_back(request)
        elif after in ENDED:
            del self.requests[request.id]

    def reject(
        self, request: Request, now: float, status: int, code: str, message: str, retry_after: int | None
    ) -> None:
        """End a request with an error."""
        self.turn(request, RequestState.REJECTED, now, f"rejected: {code}")
        self.emit(Reject(request.id, status, code, message, retry_after))

    def admit_seated(self, request: Request, runner: Runner, now: float) -> None:
        """Take in a new request straight into a free slot: it never waits."""
        request.state = RequestState.FORWARDED
        self._sequence += 1
        request.sequence = self._sequence
        self.requests[request.id] = request
        self._sit(request, runner, now)

    def seat(self, request: Request, runner: Runner, now: float) -> None:
        """Take a waiting request into a free slot."""
        self.turn(request, RequestState.FORWARDED, now)
        self._sit(request, runner, now)

    def _sit(self, request: Request, runner: Runner, now: float) -> None:
        request.runner = runner
        request.forwarded_at = now
        runner.active.add(request.id)
        runner.last_used_at = now

    def _leave_runner(self, request: Request, now: float) -> None:
        self.orphans.pop(request.id, None)
        runner = request.runner
        if runner is not None:
            runner.active.discard(request.id)
            runner.last_used_at = now
            request.runner = None

    def _put_back(self, request: Request) -> None:
        """Return a request to its old place: before all who came after it."""
        queue = self.waiting.pop(request.model, {})
        queue[request.id] = request
        order = sorted(queue.values(), key=lambda item: item.sequence)
        self.waiting[request.model] = {item.id: item for item in order}
        self.waiting_count += 1

    def oldest(self, model: str) -> Request:
        """Return who has waited longest for a model."""
        return next(iter(self.waiting[model].values()))
