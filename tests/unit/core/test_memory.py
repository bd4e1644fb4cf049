"""Making room: who is evicted, how long memory is waited for, and what is never done."""

from __future__ import annotations

import pytest
from drover_proxy.core import Instance, LoadLimits, Profile, QueueLimits
from drover_proxy.core import commands as c
from drover_proxy.core import events as e
from drover_proxy.core.ledger import Ledger, RunnerKey

from tests.unit.core.desk import GIB, Desk, alerts, kinds, model, only


@pytest.fixture
def full():
    """A GPU of 24 GiB with a (8) and b (9) ready and idle, a used longest ago; 7 GiB free. c takes 12.

    Nobody saw them being loaded, so that what they left free by Ollama's own books plays no part here.
    """
    desk = Desk()
    desk.know(model("a", 8), model("b", 9), model("c", 12), model("d", 5), model("e", 22))
    desk.listed("g0", desk.seen("a"), desk.seen("b", 9))
    for name in ("a", "b"):
        desk.later(10)
        desk.arrive(f"use {name}", name)
        desk.send(e.RequestFinished(f"use {name}"))
    desk.memory(G0=7)
    desk.later(10)
    return desk


def test_room_that_is_there_is_used(full):
    """What fits besides the others, with the reserve, evicts nobody."""
    assert kinds(full.arrive(1, "d")) == ["Wait", "Load"]


def test_the_reserve_stays_free():
    """llama.cpp leaves 1 GiB free: a model that would fit only into that makes room first."""
    desk = Desk()
    desk.know(model("a", 8), model("b", 7.5))
    desk.ready("a", G0=8.4)
    assert kinds(desk.arrive(1, "b")) == ["Wait", "Unload"]


def test_least_recently_used_goes_first(full):
    """The one used longest ago goes, when its room suffices."""
    answer = full.arrive(1, "c")
    assert [(command.instance, command.model) for command in answer if isinstance(command, c.Unload)] == [
        ("g0", "a")
    ]


def test_use_makes_recent(full):
    """A request to a makes b the one to go."""
    full.arrive(1, "a")
    full.later(1)
    full.send(e.RequestFinished(1))
    assert only(full.arrive(2, "c"), c.Unload).model == "b"


def test_no_more_than_needed():
    """A small old runner stays when the larger one after it has to go anyway."""
    desk = Desk()
    desk.know(model("small", 2), model("large", 15), model("new", 16))
    desk.ready("small", gib=2, G0=22)
    desk.later(5)
    desk.ready("large", gib=15, G0=7)
    assert only(desk.arrive(1, "new"), c.Unload).model == "large"


def test_as_many_as_needed(full):
    """When one isn't enough, the next goes too."""
    answer = full.arrive(1, "e")
    assert [command.model for command in answer if isinstance(command, c.Unload)] == ["a", "b"]


def test_load_waits_for_the_memory_not_for_the_answer(full):
    """Ollama says at once that it has unloaded; the load waits until NVML shows the room."""
    full.arrive(1, "c")
    assert kinds(full.unloaded("a")) == []
    assert kinds(full.memory(G0=7)) == []  # not back yet
    assert kinds(full.memory(G0=12)) == []  # in part
    assert kinds(full.memory(G0=15)) == ["Load"]


def test_a_sample_from_before_the_unload_is_no_proof(full):
    """A sample that was begun before the runner had gone is not believed."""
    full.arrive(1, "c")
    full.later(1)
    before = full.now
    full.later(1)
    full.unloaded("a")
    assert kinds(full.memory(sampled_at=before, G0=15)) == []
    assert kinds(full.memory(G0=15)) == ["Load"]


def test_memory_that_does_not_come_back(full):
    """After the time limit the room is made elsewhere, and the operator hears of it."""
    full.arrive(1, "c")
    full.unloaded("a")
    for _ in range(29):
        full.later(0.9)
        assert kinds(full.memory(G0=7)) == []
    assert only(full.tick(4), c.Unload).model == "b"


def test_memory_late_is_told(full):
    """The alert names the GPU and how much is missing."""
    full.arrive(1, "c")
    full.unloaded("a")
    full.later(25)
    full.memory(G0=7)
    assert alerts(full.tick(10)) == ["memory_late"]


def test_busy_runners_are_not_evicted(full):
    """While both are busy the load waits; when one is idle it goes."""
    full.arrive(1, "a")
    full.arrive(2, "b")
    assert kinds(full.arrive(3, "c")) == ["Wait"]
    assert kinds(full.arrive(4, "a")) == ["Forward"]
    full.send(e.RequestFinished(1))
    assert only(full.send(e.RequestFinished(4)), c.Unload).model == "a"


def test_nobody_is_evicted_in_vain(full):
    """When the idle ones wouldn't be enough, they stay until the busy one is idle too."""
    full.arrive(1, "b")
    assert kinds(full.arrive(2, "e")) == ["Wait"]
    assert full.state_of("a") == "ready"
    answer = full.send(e.RequestFinished(1))
    assert {command.model for command in answer} == {"a", "b"}


def test_pinned_models_stay():
    """A pinned model isn't evicted, however long ago it was used; names of the same blob are pinned too."""
    desk = Desk(profiles={"alias": Profile(pin=True)})
    desk.know(model("a", 8), model("alias", 8, blob="blob-a"), model("b", 9), model("c", 12))
    desk.ready("a", G0=16)
    desk.ready("b", gib=9, G0=7)
    assert only(desk.arrive(1, "c"), c.Unload).model == "b"


def test_pinned_models_in_the_way():
    """When only pinned models could give the room, who waits is told so after a while."""
    desk = Desk(profiles={"a": Profile(pin=True)})
    desk.know(model("a", 12), model("b", 15))
    desk.ready("a", gib=12, G0=12)
    assert kinds(desk.arrive(1, "b")) == ["Wait"]
    assert kinds(desk.memory(after=20, G0=12)) == []
    refusal = only(desk.memory(after=11, G0=12), c.Reject)
    assert (refusal.request, refusal.code) == (1, "insufficient_memory")
    assert desk.state_of("a") == "ready"


def test_foreign_processes_take_room():
    """Memory that others hold is not ours to plan with; the refusal names how much it is."""
    desk = Desk()
    desk.know(model("a", 12))
    desk.memory(foreign=16)
    assert kinds(desk.arrive(1, "a")) == ["Wait"]
    desk.memory(after=29, foreign=16)
    refusal = only(desk.memory(after=2, foreign=16), c.Reject)
    assert (refusal.code, refusal.status, refusal.retry_after_seconds) == ("insufficient_memory", 503, 30)
    assert "16384 MiB belong to other processes" in refusal.message


def test_foreign_process_leaves():
    """When the others let go in time, the load begins."""
    desk = Desk()
    desk.know(model("a", 12))
    desk.memory(foreign=16)
    desk.arrive(1, "a")
    assert kinds(desk.memory(after=10)) == ["Load"]


def test_nobody_waits_any_more(full):
    """When all who waited leave while room is made, the load isn't sent, and others may have the room."""
    full.arrive(1, "c")
    full.send(e.RequestCancelled(1))
    full.unloaded("a")
    assert kinds(full.memory(G0=15)) == []
    assert kinds(full.arrive(2, "d")) == ["Wait", "Load"]


def test_evicted_model_is_asked_for_again(full):
    """A request for the model on its way out waits, and doesn't stop the eviction."""
    full.arrive(1, "c")
    assert kinds(full.arrive(2, "a")) == ["Wait"]
    full.unloaded("a")
    assert only(full.memory(G0=15), c.Load).model == "c"
    assert kinds(full.loaded("c", gib=12)) == ["Forward"]
    full.send(e.RequestFinished(1))
    answer = full.memory(G0=3)
    # a is wanted, b is the least recently used; c must go with it, since Ollama would still count b beside c.
    assert [command.model for command in answer if isinstance(command, c.Unload)] == ["b", "c"]


def test_starving_model_gets_its_turn():
    """Overlapping traffic on a model can't keep another one out for ever: its slots run dry, then it goes."""
    desk = Desk(queue=QueueLimits(starve_seconds=10))
    desk.know(model("a", 15), model("b", 15))
    desk.ready("a", gib=15, G0=9)
    desk.arrive(1, "a")
    assert kinds(desk.arrive("b1", "b")) == ["Wait"]
    desk.later(9)
    assert kinds(desk.arrive(2, "a")) == ["Forward"]
    assert kinds(desk.memory(G0=9)) == []
    assert kinds(desk.tick(2)) == []
    assert desk.state_of("a") == "draining"
    assert kinds(desk.arrive(3, "a")) == ["Wait"]  # no more for a
    assert kinds(desk.send(e.RequestFinished(1))) == []
    assert kinds(desk.send(e.RequestFinished(2))) == ["Unload"]
    desk.unloaded("a")
    assert only(desk.memory(), c.Load).model == "b"
    assert only(desk.loaded("b", gib=15), c.Forward).request == "b1"


def test_a_starved_one_who_leaves_ends_the_draining():
    """When nobody needs the room any more, the draining runner serves again."""
    desk = Desk(queue=QueueLimits(starve_seconds=10))
    desk.know(model("a", 15), model("b", 15))
    desk.ready("a", gib=15, G0=9)
    desk.arrive(1, "a")
    desk.arrive("b1", "b")
    desk.memory(after=11, G0=9)
    assert desk.state_of("a") == "draining"
    desk.arrive(2, "a")
    assert only(desk.send(e.RequestCancelled("b1")), c.Forward).request == 2
    assert desk.state_of("a") == "ready"


def test_a_runner_has_its_time():
    """A runner that has only just been loaded isn't drained by one who starved before: no ping-pong."""
    desk = Desk(queue=QueueLimits(starve_seconds=10))
    desk.know(model("a", 15), model("b", 15))
    desk.arrive("b1", "a")
    desk.arrive(1, "b")
    desk.memory(after=12, G0=12)
    desk.loaded("a", gib=15)
    desk.memory(G0=9)
    assert desk.state_of("a") == "ready"
    desk.memory(after=5, G0=9)
    assert desk.state_of("a") == "ready"
    desk.memory(after=6, G0=9)
    assert desk.state_of("a") == "draining"


def test_while_one_waits_for_busy_memory_others_may_fit():
    """Who can't be helped yet doesn't block a model that fits besides."""
    desk = Desk()
    desk.know(model("a", 15), model("b", 15), model("d", 5))
    desk.ready("a", gib=15, G0=9)
    desk.arrive(1, "a")
    desk.arrive(2, "b")
    assert kinds(desk.arrive(3, "d")) == ["Wait", "Load"]


def test_first_come_first_loaded():
    """Among models that wait for the same GPU, the one asked for first is loaded first."""
    desk = Desk()
    desk.know(model("a", 15), model("b", 15), model("x", 15))
    desk.arrive(1, "a")
    desk.later(1)
    desk.arrive(2, "b")
    desk.later(1)
    desk.arrive(3, "x")
    desk.loaded("a", gib=15)
    desk.memory(G0=9)
    assert kinds(desk.send(e.RequestFinished(1))) == ["Unload"]
    desk.unloaded("a")
    assert only(desk.memory(), c.Load).model == "b"


def test_priority_goes_first_until_somebody_starves():
    """A model of higher priority is loaded before an earlier one, but not for ever."""
    for waited, expected in ((5, "vip"), (40, "b")):
        desk = Desk(profiles={"vip": Profile(priority=5)})
        desk.know(model("a", 15), model("b", 15), model("vip", 15))
        desk.arrive(1, "a")
        desk.arrive(2, "b")
        desk.later(waited)
        desk.arrive(3, "vip")
        desk.loaded("a", gib=15)
        desk.memory(G0=9)
        desk.send(e.RequestFinished(1))
        desk.unloaded("a")
        assert only(desk.memory(), c.Load).model == expected


def test_unload_that_fails_is_not_repeated_at_once(full):
    """A runner that won't go stays in use, another victim is taken, and it is tried again later."""
    full.arrive(1, "c")
    answer = full.send(e.UnloadFailed("g0", "a", "still listed"))
    assert alerts(answer) == ["unload_failed"]
    assert full.state_of("a") == "ready"
    assert only(answer, c.Unload).model == "b"
    assert kinds(full.arrive(2, "a")) == ["Forward"]


def test_unload_without_an_answer(full):
    """An unload that nobody reports counts as failed after its time."""
    full.arrive(1, "c")
    full.later(29)
    full.memory(G0=7)
    assert "unload_failed" in alerts(full.tick(2))


def test_ledger_waits_for_a_sample_after_a_load():
    """During and after a load the last sample doesn't say what is free; the next one does."""
    ledger = Ledger(Desk().core.state.config.gpus, 30)
    ledger.begin(0)
    key = RunnerKey("g0", "blob")
    ledger.observe("G0", e.GpuMemory(24 * GIB, 24 * GIB), 1)
    ledger.promise(key, {"G0": 8 * GIB}, 2)
    assert ledger.free("G0", 2) is None
    assert ledger.prospective("G0") == 16 * GIB
    ledger.observe("G0", e.GpuMemory(24 * GIB, 20 * GIB), 3)  # half loaded: not counted twice
    assert ledger.prospective("G0") == 16 * GIB
    ledger.keep(key, {"G0": 9 * GIB}, 4)
    assert ledger.free("G0", 4) is None
    ledger.observe("G0", e.GpuMemory(24 * GIB, 15 * GIB), 5)
    assert ledger.free("G0", 5) == 15 * GIB


def test_ledger_ignores_older_samples():
    """Samples that arrive out of order don't turn time back."""
    ledger = Ledger(Desk().core.state.config.gpus, 30)
    ledger.observe("G0", e.GpuMemory(24 * GIB, 4 * GIB), 9)
    ledger.observe("G0", e.GpuMemory(24 * GIB, 24 * GIB), 5)
    assert ledger.books["G0"].free_bytes == 4 * GIB


def test_one_promise_a_gpu():
    """Two loads on one GPU can't be promised memory at once."""
    ledger = Ledger(Desk().core.state.config.gpus, 30)
    ledger.promise(RunnerKey("g0", "a"), {"G0": 1}, 1)
    with pytest.raises(ValueError, match="already has a load under way"):
        ledger.promise(RunnerKey("g0", "b"), {"G0": 1}, 2)


@pytest.mark.parametrize("seen_during_load", [None, 12, 8])
def test_a_load_does_not_hide_an_unload(seen_during_load):
    """What a load took since the last sample doesn't make memory that has come back look late."""
    ledger = Ledger(Desk().core.state.config.gpus, 30)
    old, new = RunnerKey("g0", "old"), RunnerKey("g0", "new")
    ledger.keep(old, {"G0": 10 * GIB}, 0)
    ledger.observe("G0", e.GpuMemory(24 * GIB, 14 * GIB), 1)
    ledger.promise(new, {"G0": 6 * GIB}, 2)
    if seen_during_load is not None:
        ledger.observe("G0", e.GpuMemory(24 * GIB, seen_during_load * GIB), 2.5)
    ledger.keep(new, {"G0": 6 * GIB}, 3)
    ledger.expect(old)
    ledger.let_go(old, 3.2)
    assert ledger.coming("G0") == 10 * GIB
    ledger.observe("G0", e.GpuMemory(24 * GIB, 13 * GIB), 4)
    assert ledger.coming("G0") == 5 * GIB
    ledger.observe("G0", e.GpuMemory(24 * GIB, 18 * GIB), 5)
    assert ledger.coming("G0") == 0
    assert not ledger.expire(100)


def test_failed_load_gives_back_late():
    """What a failed load had taken is expected back: nobody is evicted for it."""
    desk = Desk(loads=LoadLimits())
    desk.know(model("a", 8), model("b", 12))
    desk.ready("a", G0=16)
    desk.arrive(1, "b")
    desk.memory(G0=6)
    desk.send(e.LoadFailed("g0", "b", "terminated", "exit status 1"))
    assert kinds(desk.memory(G0=6)) == []
    assert kinds(desk.memory(G0=16)) == ["Load"]


def test_spread_instance_makes_room_on_both_gpus():
    """A load over two GPUs evicts on both, and is counted on both."""
    desk = Desk(
        gpus={"G0": 24, "G1": 24},
        instances=(
            Instance(name="g0", gpu_uuids=("G0",)),
            Instance(name="g1", gpu_uuids=("G1",)),
            Instance(name="both", gpu_uuids=("G0", "G1")),
        ),
    )
    desk.know(model("a", 15), model("b", 15), model("x", 40))
    desk.ready("a", "g0", gib=15, G0=9)
    desk.ready("b", "g1", gib=15, G0=9, G1=9)
    answer = desk.arrive(1, "x")
    assert {command.instance for command in answer if isinstance(command, c.Unload)} == {"g0", "g1"}
    desk.unloaded("a", "g0")
    desk.unloaded("b", "g1")
    assert kinds(desk.memory(G0=24, G1=9)) == []
    load = only(desk.memory(), c.Load)
    assert load.instance == "both"
    promised = desk.core.snapshot()["gpus"]
    assert sum(gpu["promised_bytes"] for gpu in promised) >= load.predicted_bytes - 2
    assert all(gpu["promised_bytes"] > 15 * GIB for gpu in promised)
