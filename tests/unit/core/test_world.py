"""Invented worlds: loads that fail and spill, memory that lags, clients that leave, instances that crash.

Hypothesis plays the world against the scheduler. After every event the invariants are checked, every command
is checked against the truth of the world, and at the end, when all has become quiet, nobody may be left
without an answer and nothing may be left behind.
"""

from __future__ import annotations

import os

from drover_proxy.core import Instance, Scheduler
from drover_proxy.core import events as e
from drover_proxy.core.entities import LIVE
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from tests.unit.core.desk import GIB
from tests.unit.core.invented_host import CONFIG, INSTANCES, MODELS, NAMES, TOTAL, InventedHost, Process


class World(InventedHost):
    """Three overlapping instances over two GPUs, and the people who use them."""

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
        for process in self.running.values():
            process.left.clear()
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
