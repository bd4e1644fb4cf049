"""The runtime: events in order, commands carried out, and bugs that cost one request at most."""

from __future__ import annotations

import io
import json

import pytest
from drover_proxy.admin.metrics import Metrics
from drover_proxy.app.runtime import Runtime
from drover_proxy.core.commands import Forward, Load, Reject, Unload, Withdrawn
from drover_proxy.core.events import (
    RequestArrived,
    RequestFinished,
    Tick,
    WithdrawalEnded,
    WithdrawModel,
)
from drover_proxy.drivers.log import Log


class Script:
    """A core that answers each kind of event with given commands, and keeps what it was told."""

    def __init__(self, **answers):
        self.answers = answers
        self.seen = []

    def handle(self, event, now):
        self.seen.append(event)
        answer = self.answers.get(type(event).__name__, [])
        if isinstance(answer, Exception):
            raise answer
        return list(answer)


class Waiter:
    """Keeps what it is told; `breaks` makes it fail when it may go."""

    def __init__(self, breaks=False):
        self.told = []
        self.breaks = breaks

    def forward(self, command):
        self.told.append(command)
        if self.breaks:
            raise RuntimeError("a bug")

    def reject(self, command):
        self.told.append(command)


class Loader:
    """Keeps what it is to do."""

    def __init__(self):
        self.told = []

    def load(self, command):
        self.told.append(command)

    def unload(self, command):
        self.told.append(command)


@pytest.fixture
def log():
    """What the runtime logs."""
    return io.StringIO()


async def runtime_of(core, log):
    """Return a runtime around a scripted core."""
    runtime = Runtime(Log("info", log), Metrics("0"))
    runtime.core = core
    return runtime


async def test_before_the_gpus_are_known_requests_are_told_to_come_again(log):
    """There is no scheduler yet: 503 with Retry-After, and nothing is kept."""
    runtime, waiter = await runtime_of(None, log), Waiter()
    runtime.arrive(RequestArrived(1, "m"), waiter)

    assert [(told.status, told.code, told.retry_after_seconds) for told in waiter.told] == [
        (503, "starting", 2)
    ]
    assert runtime.waiters == {}


async def test_commands_reach_whom_they_are_for(log):
    """A request hears of its forward, an instance of its load and unload."""
    commands = [
        Load("gpu0", "m", 4096),
        Unload("gpu0", "n"),
        Forward(1, "gpu0", "m"),
        Forward(9, "gpu0", "m"),
    ]
    runtime, waiter, loader = await runtime_of(Script(RequestArrived=commands), log), Waiter(), Loader()
    runtime.loaders["gpu0"] = loader
    runtime.arrive(RequestArrived(1, "m"), waiter)

    assert loader.told == commands[:2]
    assert waiter.told == [commands[2]]


async def test_events_posted_meanwhile_follow_in_order(log):
    """What a waiter causes while it is told comes after what was there before."""
    core = Script(RequestArrived=[Reject(1, 503, "queue_full", "no"), Reject(2, 503, "queue_full", "no")])
    runtime = await runtime_of(core, log)

    class Posting(Waiter):
        def reject(self, command):
            runtime.post(Tick())
            assert len(core.seen) == 1
            super().reject(command)

    first, second = Posting(), Posting()
    runtime.waiters[2] = second
    runtime.arrive(RequestArrived(1, "m"), first)

    assert len(first.told) == len(second.told) == 1
    assert core.seen[1:] == [Tick(), Tick()]
    assert runtime.waiters == {}


async def test_a_bug_of_the_core_costs_one_request(log):
    """The request is answered 500, the log says so, and the next event is handled."""
    core = Script(RequestArrived=ValueError("odd"))
    runtime, waiter = await runtime_of(core, log), Waiter()
    runtime.arrive(RequestArrived(1, "m"), waiter)
    runtime.post(Tick())

    assert [told.status for told in waiter.told] == [500]
    assert core.seen[-1] == Tick()
    assert json.loads(log.getvalue())["event"] == "core_error"


async def test_a_request_that_cant_be_sent_frees_its_slot(log):
    """When forwarding fails by a bug, the client hears it, and the core that it is over."""
    core = Script(RequestArrived=[Forward(1, "gpu0", "m"), Forward(2, "gpu0", "m")])
    runtime, broken, good = await runtime_of(core, log), Waiter(breaks=True), Waiter()
    runtime.waiters[2] = good
    runtime.arrive(RequestArrived(1, "m"), broken)

    assert [type(told) for told in broken.told] == [Forward, Reject]
    assert good.told == [Forward(2, "gpu0", "m")]
    assert isinstance(core.seen[-1], RequestFinished)


async def test_a_withdrawal_waits_for_its_end(log):
    """`withdraw` returns when the core says so, and gives up in time."""
    core = Script(WithdrawModel=[])
    runtime = await runtime_of(core, log)
    ticket, late = await runtime.withdraw("m", 0.01)
    assert not late.ok
    assert core.seen == [WithdrawModel(ticket, "m")]

    core.answers["WithdrawModel"] = [Withdrawn("withdrawal-2")]
    ticket, done = await runtime.withdraw("m", 1)
    assert done.ok
    runtime.end_withdrawal(ticket)
    assert core.seen[-1] == WithdrawalEnded("withdrawal-2")
