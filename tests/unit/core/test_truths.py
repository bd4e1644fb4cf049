"""What /api/ps and the life of instances teach: adoption, vanished runners, ghosts, spills, withdrawals."""

from __future__ import annotations

from dataclasses import replace

import pytest
from drover_proxy.core import Instance, LoadLimits, Profile, Scheduler
from drover_proxy.core import commands as c
from drover_proxy.core import events as e

from tests.unit.core.desk import GIB, Desk, alerts, kinds, model, only


@pytest.fixture
def desk():
    """One GPU of 24 GiB, and models a (8), its alias, and b (9)."""
    desk = Desk()
    desk.know(model("a", 8), model("alias", 8, blob="blob-a"), model("b", 9), model("big", 16))
    return desk


# The proxy starts anew


def test_runners_that_are_there_are_adopted(desk):
    """After a restart of the proxy, what is loaded is used, not loaded again."""
    desk.listed("g0", desk.seen("a"))
    desk.memory(G0=16)
    assert desk.arrive(1, "a") == [c.Forward(1, "g0", "a")]
    assert kinds(desk.arrive(2, "b")) == ["Wait", "Load"]


def test_adopted_runners_count_and_can_be_evicted(desk):
    """An adopted runner holds memory, and goes for another model like any."""
    desk.listed("g0", desk.seen("a", measured=8.5))
    desk.memory(G0=15)
    assert desk.core.snapshot()["gpus"][0]["held_bytes"] == int(8.5 * GIB)
    assert only(desk.arrive(1, "big"), c.Unload).model == "a"


def test_adopted_runner_of_another_context_is_replaced(desk):
    """A runner that was loaded with another context isn't sent requests that would reload it."""
    desk.listed("g0", desk.seen("a", context=32768))
    desk.memory(G0=16)
    assert only(desk.arrive(1, "a"), c.Unload).model == "a"


def test_stray_runner_can_be_evicted(desk):
    """A runner of a model that nobody has told of is evicted when its room is needed."""
    desk.listed("g0", desk.seen("stranger", gib=12))
    desk.memory(G0=12)
    assert only(desk.arrive(1, "big"), c.Unload).model == "stranger"
    desk.unloaded("stranger")
    assert kinds(desk.memory()) == ["Load"]


def test_stray_runner_becomes_known(desk):
    """When its model is made known, the runner is adopted for what it is."""
    desk.listed("g0", desk.seen("late", gib=8))
    desk.know(model("late", 8))
    desk.listed("g0", desk.seen("late", gib=8))
    assert kinds(desk.arrive(1, "late")) == ["Forward"]


def test_nothing_is_adopted_from_an_instance_that_is_down(desk):
    """What an instance listed before it died isn't believed."""
    desk.send(e.InstanceDown("g0", "exit"))
    desk.listed("g0", desk.seen("a"))
    assert desk.state_of("a") == "absent"


def test_adopted_runner_partly_on_the_cpu_goes(desk):
    """A spilled runner is unloaded, so that the model can be loaded properly."""
    answer = desk.listed("g0", desk.seen("a", gib=8, vram_gib=5))
    assert alerts(answer) == ["runner_spilled"]
    assert only(answer, c.Unload).model == "a"


def test_runner_that_becomes_slow(desk):
    """A client that went past the proxy put the model on the CPU: it is drained and loaded anew."""
    desk.ready("a", G0=16)
    desk.arrive(1, "a")
    answer = desk.listed("g0", desk.seen("a", gib=8, vram_gib=0))
    assert alerts(answer) == ["runner_spilled"]
    assert desk.state_of("a") == "draining"
    desk.arrive(2, "a")
    assert kinds(desk.send(e.RequestFinished(1))) == ["Unload"]
    desk.unloaded("a")
    assert kinds(desk.memory()) == ["Load"]


def test_context_changed_behind_our_back(desk):
    """A runner that somebody reloaded with another context is brought back to its own."""
    desk.ready("a", G0=16)
    desk.listed("g0", desk.seen("a", context=32768))
    assert only(desk.arrive(1, "a"), c.Unload).model == "a"


# Runners vanish


def test_vanished_runner(desk):
    """A ready runner that is no longer listed is gone: its requests are the wire's, others load it anew."""
    desk.ready("a", G0=16)
    desk.arrive(1, "a")
    answer = desk.listed("g0")
    assert alerts(answer) == ["runner_vanished"]
    assert kinds(answer) == []
    desk.memory()
    assert kinds(desk.arrive(2, "a")) == ["Wait", "Load"]
    assert desk.core.snapshot()["orphans"] == 1
    desk.send(e.RequestFinished(1, e.Outcome.ERROR))
    assert desk.core.snapshot()["orphans"] == 0


def test_an_old_list_proves_nothing(desk):
    """A list that was asked for before the load ended can't have had the runner in it."""
    desk.arrive(1, "a")
    asked = desk.now
    desk.loaded("a")
    desk.listed("g0", sampled_at=asked)
    assert desk.state_of("a") == "ready"


def test_an_old_list_brings_nobody_back(desk):
    """A list that was asked for before the runner had gone doesn't make it ready again."""
    desk.ready("a", G0=16)
    desk.arrive(1, "big")
    asked = desk.now
    desk.unloaded("a")
    desk.listed("g0", desk.seen("a"), sampled_at=asked)
    assert desk.state_of("a") == "absent"


def test_loading_runners_are_not_listed(desk):
    """/api/ps doesn't show what is loading: that proves nothing either."""
    desk.arrive(1, "a")
    desk.listed("g0")
    assert desk.state_of("a") == "loading"


def test_unloading_seen_by_the_list(desk):
    """A list without the runner ends its unloading as well as the report does."""
    desk.ready("a", G0=16)
    desk.arrive(1, "big")
    assert desk.state_of("a") == "unloading"
    desk.listed("g0", desk.seen("a"))
    assert desk.state_of("a") == "unloading"
    desk.listed("g0")
    assert desk.state_of("a") == "absent"
    assert kinds(desk.memory()) == ["Load"]


def test_unload_that_worked_after_all(desk):
    """An unload that had been given up and then worked is noticed."""
    desk.ready("a", G0=16)
    desk.arrive(1, "big")
    desk.send(e.RequestCancelled(1))
    desk.send(e.UnloadFailed("g0", "a", "timeout"))
    assert desk.state_of("a") == "ready"
    desk.unloaded("a")
    assert desk.state_of("a") == "absent"


def test_failed_load_that_worked_after_all(desk):
    """A runner that is listed after its load counted as failed is used."""
    desk.arrive(1, "a")
    desk.send(e.LoadFailed("g0", "a", "timeout", "took too long", retryable=False))
    desk.listed("g0", desk.seen("a"))
    desk.tick(61)
    assert kinds(desk.arrive(2, "a")) == ["Forward"]


def test_instance_down_takes_everything_with_it(desk):
    """Runners are gone, requests in flight are left to the wire, who waits is served after the restart."""
    desk.ready("a", G0=16)
    for request in (1, 2, 3):
        desk.arrive(request, "a")
    answer = desk.send(e.InstanceDown("g0", "signal 9"))
    assert alerts(answer) == ["instance_down"]
    assert desk.core.snapshot()["orphans"] == 2
    desk.send(e.HeadersSent(1))  # late news of the old connection
    desk.send(e.RequestFinished(1, e.Outcome.ERROR))
    desk.later(2)
    desk.send(e.InstanceUp("g0"))
    assert kinds(desk.memory()) == ["Load"]
    assert only(desk.loaded("a"), c.Forward).request == 3
    desk.send(e.RequestCancelled(2))
    assert desk.core.snapshot()["orphans"] == 0


def test_orphaned_runner_processes_hold_memory(desk):
    """After a SIGKILL of Ollama its runners may live on: nothing is loaded into memory that isn't there."""
    desk.ready("big", gib=16, G0=8)
    desk.send(e.InstanceDown("g0", "signal 9"))
    desk.later(1)
    desk.send(e.InstanceUp("g0"))
    desk.memory(G0=8)
    assert kinds(desk.arrive(1, "b")) == ["Wait"]
    assert kinds(desk.memory(G0=24)) == ["Load"]


def test_instances_are_down_at_first():
    """Nothing is sent to an instance before it has answered."""
    desk = Desk()
    config = desk.core.state.config
    desk.core = Scheduler(config)
    desk.know(model("a", 8))
    desk.memory()
    assert kinds(desk.arrive(1, "a")) == ["Wait"]
    assert kinds(desk.send(e.InstanceUp("g0"))) == ["Load"]


# Models change and go


def test_withdrawn_model_is_unloaded_first(desk):
    """Before a model is deleted its runner is unloaded, or it would stay as a ghost."""
    desk.ready("a", G0=16)
    answer = desk.send(e.WithdrawModel("t", "a"))
    assert kinds(answer) == ["Unload"]
    assert desk.unloaded("a") == [c.Withdrawn("t")]
    desk.send(e.ModelGone("a"))
    assert only(desk.arrive(1, "a"), c.Reject).status == 404


def test_withdrawing_waits_for_who_is_served(desk):
    """A busy runner is drained; requests for the model wait, and are served from what comes after."""
    desk.ready("a", G0=16)
    desk.arrive(1, "a")
    assert kinds(desk.send(e.WithdrawModel("t", "a"))) == []
    assert kinds(desk.arrive(2, "a")) == ["Wait"]
    assert kinds(desk.arrive(3, "alias")) == ["Wait"]  # the same runner
    assert kinds(desk.send(e.RequestFinished(1))) == ["Unload"]
    assert kinds(desk.unloaded("a")) == ["Withdrawn"]
    assert kinds(desk.memory()) == []
    answer = desk.send(e.ModelKnown("a", model("a", 7, blob="blob-new")))
    assert {command.model for command in answer if isinstance(command, c.Load)} == {"a"}


def test_withdrawing_what_is_not_loaded(desk):
    """There is nothing to wait for."""
    assert desk.send(e.WithdrawModel(1, "a")) == [c.Withdrawn(1)]
    assert desk.send(e.WithdrawModel(2, "unknown")) == [c.Withdrawn(2)]


def test_withdrawing_what_is_loading(desk):
    """The load is waited for, then unloaded."""
    desk.arrive(1, "a")
    assert kinds(desk.send(e.WithdrawModel("t", "a"))) == []
    assert kinds(desk.loaded("a")) == ["Unload"]
    assert kinds(desk.unloaded("a")) == ["Withdrawn"]


def test_withdrawal_that_is_given_up(desk):
    """When the call is over, whatever became of it, the runner serves again."""
    desk.ready("a", G0=16)
    desk.arrive(1, "a")
    desk.send(e.WithdrawModel("t", "a"))
    desk.arrive(2, "a")
    assert only(desk.send(e.WithdrawalEnded("t")), c.Forward).request == 2


def test_withdrawal_that_can_not_be(desk):
    """A runner that won't be unloaded twice over is reported rather than waited for without end."""
    desk.ready("a", G0=16)
    desk.send(e.WithdrawModel("t", "a"))
    assert kinds(desk.send(e.UnloadFailed("g0", "a", "busy"))) == []
    assert kinds(desk.tick(31)) == ["Unload"]
    withdrawn = only(desk.send(e.UnloadFailed("g0", "a", "busy")), c.Withdrawn)
    assert not withdrawn.ok
    assert "a could not be unloaded" in withdrawn.message


def test_deleted_while_waited_for(desk):
    """Who waits for a model that is deleted is told that it isn't there."""
    desk.arrive(1, "a")
    refusal = only(desk.send(e.ModelGone("a")), c.Reject)
    assert (refusal.status, refusal.code) == (404, "model_not_found")
    assert kinds(desk.loaded("a")) == []  # the load ends all the same


def test_another_name_takes_over(desk):
    """After deleting one of two names, the runner is unloaded by the other: the only cure for a ghost."""
    desk.ready("a", G0=16)
    desk.send(e.ModelGone("a"))
    assert kinds(desk.arrive(1, "alias")) == ["Forward"]
    desk.send(e.RequestFinished(1))
    assert only(desk.arrive(2, "big"), c.Unload).model == "alias"
    desk.unloaded("alias")
    assert kinds(desk.memory()) == ["Load"]


def test_ghosts_are_told_of_and_left_alone(desk):
    """A runner whose last name was deleted can't be unloaded: it isn't tried, the operator hears of it."""
    desk.ready("b", gib=9, G0=15)
    assert alerts(desk.send(e.ModelGone("b"))) == ["ghost_runner"]
    assert kinds(desk.arrive(1, "big")) == ["Wait"]
    assert desk.core.snapshot()["runners"][0]["ghost"]
    answer = desk.send(e.ModelKnown("b2", model("b2", 9, blob="blob-b")))  # another name of the same blob
    assert only(answer, c.Unload).model == "b2"


def test_model_made_anew_under_the_same_name(desk):
    """A name with a new blob gets a runner of its own; the old one is a ghost."""
    desk.ready("b", gib=9, G0=15)
    answer = desk.send(e.ModelKnown("b", model("b", 5, blob="blob-b2")))
    assert alerts(answer) == ["ghost_runner"]
    assert only(desk.arrive(1, "b"), c.Load).model == "b"
    answer = desk.loaded("b", gib=5)
    assert only(answer, c.Forward).request == 1


def test_news_that_is_none(desk):
    """Told of a model again with nothing changed, nothing happens."""
    desk.ready("a", G0=16)
    assert desk.send(e.ModelKnown("a", model("a", 8))) == []
    assert kinds(desk.arrive(1, "a")) == ["Forward"]


def test_unknown_instances_are_ignored(desk):
    """Events of instances that aren't configured change nothing."""
    before = desk.core.snapshot()
    desk.send(e.InstanceUp("nope"))
    desk.send(e.InstanceDown("nope", "x"))
    desk.send(e.LoadFailed("nope", "a", "x", "x"))
    desk.send(e.UnloadFailed("nope", "a", "x"))
    desk.send(e.MemoryObserved({"GPU-other": e.GpuMemory(1, 1)}))
    assert desk.core.snapshot() == before


def test_overlapping_instances_are_not_confused():
    """The same blob in two instances is two runners; one going down leaves the other."""
    desk = Desk(
        gpus={"G0": 48},
        instances=(
            Instance(name="one", gpu_uuids=("G0",), slots=1),
            Instance(name="two", gpu_uuids=("G0",), slots=1),
        ),
    )
    desk.know(model("a", 8))
    for name in ("one", "two"):
        desk.listed(name, desk.seen("a"))
    assert desk.core.snapshot()["gpus"][0]["held_bytes"] == 17 * GIB
    desk.send(e.InstanceDown("one", "exit"))
    assert desk.state_of("a", "two") == "ready"
    assert desk.core.snapshot()["gpus"][0]["held_bytes"] == int(8.5 * GIB)


def test_false_alarm(desk):
    """An instance that was only slow to answer still has its requests: their slots aren't given twice."""
    desk.ready("a", G0=16)
    for request in (1, 2, 3):
        desk.arrive(request, "a")
    desk.send(e.InstanceDown("g0", "no answer for 5 s"))
    desk.later(1)
    desk.send(e.InstanceUp("g0"))
    assert kinds(desk.listed("g0", desk.seen("a"))) == []
    assert desk.core.snapshot()["orphans"] == 0
    assert only(desk.send(e.RequestFinished(1)), c.Forward).request == 3


def test_configuration_is_reloaded(desk):
    """Limits and profiles change without losing what is loaded; other GPUs or instances need a restart."""
    desk.ready("a", G0=16)
    config = desk.core.state.config
    desk.core.reconfigure(
        replace(config, profiles={"a": Profile(slots=1)}, loads=LoadLimits(memory_timeout_seconds=7))
    )
    assert kinds(desk.arrive(1, "a")) == ["Forward"]
    assert kinds(desk.arrive(2, "a")) == ["Wait"]
    assert desk.core.state.ledger.timeout_seconds == 7
    with pytest.raises(ValueError, match="restart"):
        desk.core.reconfigure(replace(config, instances=(Instance(name="other"),)))
