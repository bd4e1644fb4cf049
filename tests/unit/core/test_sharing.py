"""What a scheduler makes of its siblings during a handover, and what it tells them."""

from __future__ import annotations

from drover_proxy.core import commands as c
from drover_proxy.core import events as e
from drover_proxy.core.sharing import Holdings, combined

from tests.unit.core.desk import Desk, kinds, model

OTHER = ("g0", "blob-other")
SMALL = ("g0", "blob-small")


def desk_with(*names, **sizes):
    """A desk whose runners of these models are ready, idle and adopted."""
    desk = Desk()
    desk.know(model("small", 8), model("other", 8), model("big", 14))
    seen = tuple(desk.seen(name) for name in names)
    desk.later(1)
    desk.send(e.RunnersObserved("g0", seen))
    desk.memory(**(sizes or {"G0": 24 - 8 * len(names)}))
    return desk


def test_a_siblings_requests_take_slots():
    """Into two slots with one of a sibling's requests goes one of ours; the next waits until that ends."""
    desk = desk_with("small")
    desk.send(e.SiblingsObserved(busy={SMALL: 1}))

    assert kinds(desk.arrive(1, "small")) == ["Forward"]
    assert kinds(desk.arrive(2, "small")) == ["Wait"]
    assert kinds(desk.send(e.SiblingsObserved())) == ["Forward"]


def test_a_runner_adopted_later_has_its_siblings_requests():
    """What a sibling holds counts also for a runner that is seen only afterwards."""
    desk = Desk()
    desk.know(model("small", 8))
    desk.send(e.SiblingsObserved(busy={SMALL: 2}))
    desk.send(e.RunnersObserved("g0", (desk.seen("small"),)))

    assert kinds(desk.arrive(1, "small")) == ["Wait"]


def test_what_a_sibling_uses_is_not_evicted():
    """A runner that only a sibling's request is with is busy; when that has ended it goes."""
    desk = desk_with("small", "other")
    desk.send(e.SiblingsObserved(busy={SMALL: 1, OTHER: 1}))
    desk.memory(G0=8)

    assert kinds(desk.arrive(1, "big")) == ["Wait"]
    assert "Unload" in kinds(desk.send(e.SiblingsObserved()))


def test_one_process_at_a_time_makes_room():
    """While a sibling loads nothing is unloaded or loaded; afterwards only what was seen since counts."""
    desk = desk_with()
    desk.send(e.SiblingsObserved(owns_memory=True))

    assert kinds(desk.arrive(1, "small")) == ["Wait"]
    assert kinds(desk.tick(5)) == []
    desk.memory()
    assert kinds(desk.send(e.SiblingsObserved(changes=2))) == []
    desk.later(0.5)
    assert kinds(desk.memory()) == []  # the memory is known, but not what is loaded there now
    assert kinds(desk.send(e.RunnersObserved("g0", ()))) == ["Load"]


def test_what_a_sibling_loaded_is_used():
    """The model that a sibling has loaded meanwhile serves ours too."""
    desk = desk_with()
    desk.send(e.SiblingsObserved(owns_memory=True))
    desk.arrive(1, "small")
    desk.later(1)
    desk.send(e.RunnersObserved("g0", (desk.seen("small"),)))

    assert not desk.core.state.waiting


def test_what_a_sibling_unloads_gets_nothing():
    """A runner on its way out serves nobody, is believed in only when seen again, and isn't missed."""
    desk = desk_with("small")
    desk.send(e.SiblingsObserved(leaving=frozenset({SMALL}), owns_memory=True))
    assert kinds(desk.arrive(1, "small")) == ["Wait"]
    assert kinds(desk.tick(10)) == []

    desk.send(e.SiblingsObserved(unloads={SMALL: 1}, changes=2))
    stale = desk.send(e.RunnersObserved("g0", (desk.seen("small"),), desk.now - 1))
    assert kinds(stale) == []
    desk.memory()
    answer = desk.send(e.RunnersObserved("g0", ()))
    assert kinds(answer) == []  # NVML has to say that its memory is back
    assert kinds(desk.memory()) == ["Load"]


def test_an_unload_between_two_events_is_noticed():
    """A sibling that has begun and ended an unload meanwhile: the runner is believed in when seen again."""
    desk = desk_with("small")
    desk.send(e.SiblingsObserved(unloads={SMALL: 1}, changes=2))

    assert kinds(desk.arrive(1, "small")) == ["Wait"]
    assert kinds(desk.tick(5)) == []
    assert kinds(desk.listed("g0")) == []
    assert kinds(desk.memory()) == ["Load"]


def test_a_deleted_models_runner_is_left_alone_too():
    """A process that began after the deletion knows the runner by its name only, and doesn't evict it."""
    elder = desk_with("small", G0=16)
    elder.arrive(1, "small")
    elder.send(e.ModelGone("small"))
    young = Desk()
    young.know(model("big", 20))
    young.send(combined([elder.core.holdings()], []))
    young.listed("g0", young.seen("small"))
    young.memory(G0=16)
    young.arrive(2, "big")

    assert young.core.snapshot()["siblings"]["requests"] == 1
    assert young.state_of("small") == "ready"
    assert kinds(young.send(e.SiblingsObserved())) == ["Unload"]


def test_a_runner_that_stayed_after_all_serves_again():
    """An unload that a sibling gave up: the runner is seen again, and used."""
    desk = desk_with("small")
    desk.send(e.SiblingsObserved(leaving=frozenset({SMALL})))
    desk.arrive(1, "small")
    desk.later(1)
    desk.send(e.SiblingsObserved())
    desk.later(0.1)

    assert kinds(desk.send(e.RunnersObserved("g0", (desk.seen("small"),)))) == ["Forward"]


def test_elders_go_first():
    """A slot is left to an elder's waiting request, not to a younger one's; so is the memory."""
    elder = Holdings({}, (), {}, 0, ("blob-small",), memory=False, wishes=True)
    assert combined([elder], []).waits == {"blob-small"}
    assert combined([elder], []).owns_memory
    assert combined([], [elder]) == e.SiblingsObserved()
    loading = Holdings({SMALL: 2}, (OTHER,), {OTHER: 1}, 3, (), memory=True, wishes=False)
    told = combined([loading], [loading])
    assert (told.busy, told.leaving, told.owns_memory) == ({SMALL: 4}, {OTHER}, True)
    assert (told.unloads, told.changes) == ({OTHER: 2}, 6)

    desk = desk_with("small")
    desk.send(combined([elder], []))
    assert kinds(desk.arrive(1, "small")) == ["Wait"]


def test_plans_make_way_for_an_elder():
    """Room that is being made is given up when an elder wants to load; what was sent is finished."""
    desk = desk_with("small", "other")
    desk.send(e.SiblingsObserved(busy={SMALL: 1, OTHER: 1}))
    desk.memory(G0=8)
    desk.arrive(1, "big")
    for _ in range(40):
        desk.tick()
        desk.memory(G0=8)
    assert desk.core.holdings().memory  # starved: they drain for it
    desk.send(e.SiblingsObserved(busy={SMALL: 1, OTHER: 1}, owns_memory=True))

    assert not desk.core.holdings().memory
    assert desk.core.holdings().wishes


def test_holdings_tell_what_is_held():
    """Requests by runner, who waits for what, runners on their way out, and the claim on memory."""
    desk = desk_with("small")
    for request in range(3):
        desk.arrive(request, "small")
    both = {SMALL: 2, ("g0", "name:small"): 2}
    assert desk.core.holdings() == Holdings(both, (), {}, 0, ("blob-small",), memory=False, wishes=False)
    assert desk.core.snapshot()["siblings"] == {"requests": 0, "own_memory": False}

    desk = desk_with("small", "other", G0=8)
    answer = desk.arrive(1, "big")
    unloaded = [command.model for command in answer if isinstance(command, c.Unload)]
    held = desk.core.holdings()
    assert unloaded
    assert set(held.leaving) >= {("g0", f"blob-{name}") for name in unloaded}
    assert held.memory
    assert held.wishes
