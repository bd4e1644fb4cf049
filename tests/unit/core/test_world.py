"""Invented worlds: loads that fail and spill, memory that lags, clients that leave, instances that crash.

Hypothesis plays the world against the scheduler. After every event the invariants are checked, every command
is checked against the truth of the world, and at the end, when all has become quiet, nobody may be left
without an answer and nothing may be left behind.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from drover_proxy.core import CoreConfig, Gpu, Instance, LoadLimits, Profile, QueueLimits, Scheduler
from drover_proxy.core import commands as c
from drover_proxy.core import events as e
from drover_proxy.core.state import LIVE
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.unit.core.desk import GIB, model

MODELS = {
    info.name: info
    for info in (
        model("small", 3),
        model("alias", 3, blob="blob-small"),
        model("wide", 3, blob="blob-small", num_ctx=16384),
        model("mid", 9),
        model("big", 15),
        model("other", 15),
        model("huge", 34),
        model("monster", 99),
        model("embed", 2, capabilities=frozenset({"embedding"})),
    )
}
NAMES = sorted(MODELS)
INSTANCES = (
    Instance(name="g0", gpu_uuids=("G0",), slots=2),
    Instance(name="g1", gpu_uuids=("G1",), slots=1),
    Instance(name="both", gpu_uuids=("G0", "G1"), slots=2),
)
TOTAL = {"G0": 24 * GIB, "G1": 20 * GIB}
CONFIG = CoreConfig(
    gpus=tuple(Gpu(uuid, total) for uuid, total in TOTAL.items()),
    instances=INSTANCES,
    profiles={"mid": Profile(slots=1, priority=1), "embed": Profile(pin=True)},
    queue=QueueLimits(max_waiting=6, max_wait_seconds=120, starve_seconds=5, no_instance_seconds=20),
    loads=LoadLimits(
        timeout_seconds=60, memory_timeout_seconds=10, unload_timeout_seconds=8, cooldown_seconds=15
    ),
)


@dataclass
class Process:
    """A runner of the invented Ollama."""

    name: str
    context: int
    slots: int
    taken: dict[str, int] = field(default_factory=dict)


class World(RuleBasedStateMachine):
    """Three overlapping instances over two GPUs, and the people who use them."""

    def __init__(self) -> None:
        super().__init__()
        self.core = Scheduler(CONFIG)
        self.now = 50.0
        self.counter = 0
        self.up: set[str] = set()
        self.loading: dict[str, c.Load] = {}
        self.load_began: dict[str, float] = {}
        self.running: dict[tuple[str, str], Process] = {}
        self.unloading: list[tuple[str, str]] = []
        self.late: dict[str, int] = dict.fromkeys(TOTAL, 0)
        self.foreign: dict[str, int] = dict.fromkeys(TOTAL, 0)
        self.open: dict[int, str] = {}
        self.forwarded: dict[int, tuple[str, str]] = {}
        self.withdrawals: dict[int, str] = {}
        self.sampled_at = self.disturbed_at = 0.0
        """When NVML was last asked, and when somebody else last changed the memory."""
        self.known: set[str] = set()
        self.drained = False

    # The world's own bookkeeping

    def free(self, uuid: str) -> int:
        taken = sum(process.taken.get(uuid, 0) for process in self.running.values())
        return max(0, TOTAL[uuid] - taken - self.late[uuid] - self.foreign[uuid])

    def send(self, event: e.Event) -> None:
        for command in self.core.handle(event, self.now):
            self.obey(command)
        self.core.validate()

    def obey(self, command: c.Command) -> None:
        match command:
            case c.Forward():
                self.check_forward(command)
            case c.Reject():
                assert self.open.pop(command.request) is not None
                assert command.retry_after_seconds is None or command.retry_after_seconds >= 1
            case c.Load():
                self.check_load(command)
            case c.Unload():
                blob = MODELS[command.model].blob
                busy = [r for r, (i, b) in self.forwarded.items() if (i, b) == (command.instance, blob)]
                assert not busy, "a busy runner was unloaded"
                self.unloading.append((command.instance, blob))
            case c.Withdrawn():
                name = self.withdrawals[command.ticket]
                holders = [i for (i, b) in self.running if b == MODELS[name].blob and i in self.up]
                if command.ok and holders:
                    assert all((i, MODELS[name].blob) in self.unseen for i in holders)
            case c.Drained():
                assert self.drained
                assert not self.open

    def check_forward(self, command: c.Forward) -> None:
        name = self.open.pop(command.request)
        blob = MODELS[name].blob
        self.forwarded[command.request] = (command.instance, blob)
        assert command.instance in self.up
        process = self.running.get((command.instance, blob))
        if process is None:
            assert (command.instance, blob) in self.dead, "forwarded to a runner that never was"
            self.forwarded[command.request] = ("gone", blob)
            return
        mates = [r for r, where in self.forwarded.items() if where == (command.instance, blob)]
        assert len(mates) <= process.slots, "more requests than slots"
        wanted = MODELS[name].num_ctx or 4096
        assert process.context == wanted, "forwarded to a runner of another context"

    def check_load(self, command: c.Load) -> None:
        gpus = next(i.gpu_uuids for i in INSTANCES if i.name == command.instance)
        for other in self.loading:
            taken = next(i.gpu_uuids for i in INSTANCES if i.name == other)
            assert not set(gpus) & set(taken), "two loads on a GPU at once"
        assert command.instance in self.up
        if self.sampled_at > self.disturbed_at and self.now - self.sampled_at < 10:
            room = sum(max(0, self.free(uuid) - GIB) for uuid in gpus)
            assert room >= command.predicted_bytes - 2, "loaded into memory that isn't there"
        self.loading[command.instance] = command
        self.load_began[command.instance] = self.now

    # Rules

    @initialize()
    def start(self) -> None:
        self.dead: set[tuple[str, str]] = set()
        self.unseen: set[tuple[str, str]] = set()
        for name in NAMES:
            self.known.add(name)
            self.send(e.ModelKnown(name, MODELS[name]))
        for instance in INSTANCES:
            self.up.add(instance.name)
            self.send(e.InstanceUp(instance.name))
        self.sample()

    @rule(seconds=st.sampled_from([0.1, 0.5, 2.0, 6.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for instance, since in tuple(self.load_began.items()):
            if instance in self.loading and self.now - since >= CONFIG.loads.timeout_seconds:
                command = self.loading.pop(instance)  # the driver's own time limit; closing aborts the load
                self.send(e.LoadFailed(instance, command.model, "timeout", "took too long"))
        self.send(e.Tick())

    @rule()
    def sample(self) -> None:
        self.now += 0.1
        self.sampled_at = self.now
        self.send(
            e.MemoryObserved(
                {uuid: e.GpuMemory(TOTAL[uuid], self.free(uuid), self.foreign[uuid]) for uuid in TOTAL}
            )
        )

    @rule(name=st.sampled_from(NAMES))
    def arrive(self, name: str) -> None:
        self.counter += 1
        self.open[self.counter] = name
        self.send(e.RequestArrived(self.counter, name, needs=e.Needs.EMBED))

    @rule(name=st.sampled_from(["mid", "big", "other"]), count=st.integers(2, 4))
    def crowd(self, name: str, count: int) -> None:
        for _ in range(count):
            self.arrive(name)

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        everyone = sorted([*self.open, *self.forwarded])
        if not everyone:
            return
        request = data.draw(st.sampled_from(everyone))
        self.open.pop(request, None)
        self.forwarded.pop(request, None)
        self.send(e.RequestCancelled(request))

    @rule(data=st.data(), headers=st.booleans())
    def finish(self, data: st.DataObject, headers: bool) -> None:
        if not self.forwarded:
            return
        request = data.draw(st.sampled_from(sorted(self.forwarded)))
        if headers:
            self.send(e.HeadersSent(request))
        del self.forwarded[request]
        self.now += 0.2
        self.send(e.RequestFinished(request, data.draw(st.sampled_from(list(e.Outcome)))))

    @rule(data=st.data())
    def forward_fails(self, data: st.DataObject) -> None:
        fresh = [r for r in sorted(self.forwarded) if self.core.state.requests[r].state.value == "forwarded"]
        if not fresh:
            return
        request = data.draw(st.sampled_from(fresh))
        blob = self.forwarded.pop(request)[1]
        self.open[request] = next(n for n in NAMES if n == self.core.state.requests[request].model)
        assert MODELS[self.open[request]].blob == blob
        self.send(e.ForwardFailed(request, "connection refused"))

    @rule(data=st.data(), seconds=st.sampled_from([0.2, 3.0]))
    def load_ends(self, data: st.DataObject, seconds: float) -> None:
        if not self.loading:
            return
        self.now += seconds
        self.end_load(data.draw(st.sampled_from(sorted(self.loading))))

    def end_load(self, instance: str) -> None:
        command = self.loading.pop(instance)
        info = MODELS[command.model]
        gpus = next(i for i in INSTANCES if i.name == instance)
        size = info.size_bytes
        overhead = GIB // 2
        free = {uuid: self.free(uuid) for uuid in gpus.gpu_uuids}
        usable = {uuid: max(0, room - overhead - GIB) for uuid, room in free.items()}
        on_gpu = min(size, sum(usable.values()))
        whole = sum(usable.values()) or 1
        taken = {uuid: overhead + on_gpu * room // whole for uuid, room in usable.items()}
        taken = {uuid: min(amount, free[uuid]) for uuid, amount in taken.items()}
        slots = 1 if info.embedding_only else gpus.slots
        key = (instance, info.blob)
        self.running[key] = Process(command.model, command.context, slots, taken)
        self.dead.discard(key)
        seen = e.RunnerSeen(command.model, size, on_gpu, command.context, sum(taken.values()))
        self.send(e.LoadFinished(instance, command.model, seen))

    @rule()
    def all_goes_well(self) -> None:
        """What is under way ends well, but nobody leaves."""
        for instance in sorted(self.loading):
            self.end_load(instance)
        for instance, blob in sorted(self.unloading):
            self.end_unload(instance, blob, late=False, tell=True)
        self.memory_comes_back()

    @rule(name=st.sampled_from(["small", "mid", "big"]), instance=st.sampled_from(INSTANCES[:2]))
    def stranger_loads(self, name: str, instance: Instance) -> None:
        """Somebody uses Ollama past the proxy."""
        key = (instance.name, MODELS[name].blob)
        gpu = instance.gpu_uuids[0]
        size = MODELS[name].size_bytes + GIB // 2
        if instance.name in self.up and key not in self.running and self.free(gpu) > size:
            self.running[key] = Process(name, 4096, instance.slots, {gpu: size})
            self.disturbed_at = self.now
            self.unseen.add(key)  # the scheduler can't know of it yet

    @rule()
    def restart_proxy(self) -> None:
        """A new proxy finds what the old one left."""
        if self.counter % 4:
            return
        self.core = Scheduler(CONFIG)
        self.open.clear()
        self.forwarded.clear()
        self.loading.clear()
        self.unloading.clear()
        self.withdrawals.clear()
        for name in sorted(self.known):
            self.send(e.ModelKnown(name, MODELS[name]))
        for instance in sorted(self.up):
            self.send(e.InstanceUp(instance))
            self.list_runners(instance)
        self.sample()

    @rule(data=st.data(), retryable=st.booleans())
    def load_fails(self, data: st.DataObject, retryable: bool) -> None:
        if not self.loading:
            return
        instance = data.draw(st.sampled_from(sorted(self.loading)))
        command = self.loading.pop(instance)
        self.send(e.LoadFailed(instance, command.model, "terminated", "exit status 1", retryable))

    @rule(data=st.data(), late=st.booleans(), tell=st.booleans())
    def unload_ends(self, data: st.DataObject, late: bool, tell: bool) -> None:
        if not self.unloading:
            return
        instance, blob = data.draw(st.sampled_from(sorted(self.unloading)))
        self.end_unload(instance, blob, late=late, tell=tell)

    def end_unload(self, instance: str, blob: str, *, late: bool, tell: bool) -> None:
        if (instance, blob) in self.forwarded.values():
            return  # Ollama waits for requests that came after the unload
        self.unloading.remove((instance, blob))
        process = self.running.pop((instance, blob), None)
        if process is None:
            return
        for uuid, amount in process.taken.items():
            self.late[uuid] += amount if late else 0
        self.now += 0.1
        if tell:
            self.send(e.UnloadObserved(instance, process.name))
        else:
            self.list_runners(instance)

    @rule(data=st.data())
    def unload_fails(self, data: st.DataObject) -> None:
        if not self.unloading:
            return
        instance, blob = data.draw(st.sampled_from(sorted(self.unloading)))
        self.unloading.remove((instance, blob))
        process = self.running.get((instance, blob))
        if process is not None:
            self.send(e.UnloadFailed(instance, process.name, "still listed"))

    @rule()
    def memory_comes_back(self) -> None:
        self.late = dict.fromkeys(TOTAL, 0)
        self.sample()

    @rule(uuid=st.sampled_from(sorted(TOTAL)), gib=st.sampled_from([0, 4, 16]))
    def foreign_process(self, uuid: str, gib: int) -> None:
        self.foreign[uuid] = gib * GIB
        self.disturbed_at = self.now

    @rule(instance=st.sampled_from([i.name for i in INSTANCES]), age=st.sampled_from([0.0, 0.0, 5.0]))
    def list_runners(self, instance: str, age: float = 0.0) -> None:
        if instance not in self.up:
            return
        self.now += 0.1
        runners = tuple(
            e.RunnerSeen(
                process.name,
                MODELS[process.name].size_bytes,
                min(MODELS[process.name].size_bytes, sum(process.taken.values())),
                process.context,
                sum(process.taken.values()),
            )
            for (where, _), process in sorted(self.running.items())
            if where == instance
        )
        self.send(e.RunnersObserved(instance, runners, self.now - age))

    @rule(data=st.data())
    def runner_dies(self, data: st.DataObject) -> None:
        if not self.running:
            return
        key = data.draw(st.sampled_from(sorted(self.running)))
        del self.running[key]
        self.dead.add(key)
        self.orphan(key)

    def orphan(self, key: tuple[str, str]) -> None:
        """The runner of these requests is gone: they hold no slot of a later one."""
        for request, where in self.forwarded.items():
            if where == key:
                self.forwarded[request] = ("gone", key[1])

    @rule(instance=st.sampled_from([i.name for i in INSTANCES]), late=st.booleans())
    def crash(self, instance: str, late: bool) -> None:
        if instance not in self.up:
            return
        self.up.discard(instance)
        self.loading.pop(instance, None)
        self.unloading = [key for key in self.unloading if key[0] != instance]
        for key in {where for where in self.forwarded.values() if where[0] == instance}:
            self.orphan(key)
        for key in [key for key in self.running if key[0] == instance]:
            process = self.running.pop(key)
            for uuid, amount in process.taken.items():
                self.late[uuid] += amount if late else 0
        self.send(e.InstanceDown(instance, "exit"))

    @rule(instance=st.sampled_from([i.name for i in INSTANCES]))
    def come_up(self, instance: str) -> None:
        if instance not in self.up:
            self.up.add(instance)
            self.send(e.InstanceUp(instance))
            self.list_runners(instance)

    @rule(name=st.sampled_from(["small", "mid", "big"]))
    def withdraw(self, name: str) -> None:
        if self.withdrawals or self.counter % 3:
            return
        self.counter += 1
        self.withdrawals[self.counter] = name
        self.unseen = set(self.running) - {
            tuple(key) for key, runner in self.core.state.runners.items() if runner.state in LIVE
        }
        self.send(e.WithdrawModel(self.counter, name))

    @rule(data=st.data())
    def end_withdrawal(self, data: st.DataObject) -> None:
        if self.withdrawals:
            ticket = data.draw(st.sampled_from(sorted(self.withdrawals)))
            name = self.withdrawals.pop(ticket)
            how = data.draw(st.sampled_from(["ended", "known"]))
            if how == "ended":
                self.send(e.WithdrawalEnded(ticket))
            else:
                self.withdrawals = {t: n for t, n in self.withdrawals.items() if n != name}
                self.send(e.ModelKnown(name, MODELS[name]))

    @rule(name=st.sampled_from(["alias", "other"]))
    def forget(self, name: str) -> None:
        self.send(e.ModelGone(name))
        self.known.discard(name)

    @rule(name=st.sampled_from(["alias", "other"]))
    def learn(self, name: str) -> None:
        self.send(e.ModelKnown(name, MODELS[name]))
        self.known.add(name)

    @invariant()
    def everybody_is_somewhere(self) -> None:
        inside = set(self.core.state.requests)
        assert set(self.open) | set(self.forwarded) == inside

    # The end

    def teardown(self) -> None:
        if not self.up and not hasattr(self, "dead"):
            return
        self.foreign = dict.fromkeys(TOTAL, 0)
        for ticket in tuple(self.withdrawals):
            self.send(e.WithdrawalEnded(ticket))
        for instance in INSTANCES:
            self.come_up(instance.name)
        for _ in range(200):
            self.settle_world()
            if not self.open and not self.forwarded:
                break
        assert not self.open, f"left without an answer: {self.open}"
        self.drained = True
        self.send(e.DrainRequested())
        for _ in range(15):
            self.settle_world(4.0)  # an unload that failed is tried again after half a minute
        state = self.core.state
        assert not state.requests
        assert not state.waiting
        assert not state.plans
        assert not state.stuck
        assert not state.orphans
        assert not state.cooldowns
        assert not state.failures
        assert all(not book.releases and book.promise is None for book in state.ledger.books.values())
        assert {runner.state.value for runner in state.runners.values()} <= {"ready"}
        assert sorted(key.instance for key in state.runners) == sorted(key[0] for key in self.running)

    def settle_world(self, seconds: float = 2.0) -> None:
        """Some quiet seconds: what is under way ends well, memory is back, everybody is observed."""
        for instance in sorted(self.loading):
            self.end_load(instance)
        for instance, blob in sorted(self.unloading):
            self.end_unload(instance, blob, late=False, tell=True)
        for request in sorted(self.forwarded):
            del self.forwarded[request]
            self.send(e.RequestFinished(request))
        self.memory_comes_back()
        for instance in sorted(self.up):
            self.list_runners(instance)
        self.time_passes(seconds)


EXPLORE = int(os.environ.get("DROVER_WORLDS", "0"))
"""How many new worlds to try; without it always the same ones are played, so that a run is repeatable."""

World.TestCase.settings = settings(
    max_examples=EXPLORE or 100,
    derandomize=not EXPLORE,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestWorld = World.TestCase
