"""What outlives a restart: sizes that were measured, and what loaded runners left free by Ollama's books."""

from __future__ import annotations

from dataclasses import replace

from drover_proxy.core import Learned, Scheduler
from drover_proxy.core import commands as c
from drover_proxy.core import events as e

from tests.unit.core.desk import GIB, Desk, model, only


def restarted(desk, learned):
    """Let a new scheduler take the old one's place."""
    desk.core = Scheduler(desk.core.state.config, learned)
    desk.later(1)
    desk.send(e.InstanceUp("g0"))
    desk.know(*MODELS)
    desk.later(1)


MODELS = (model("a", 8), model("b", 7), model("c", 7.4))


def two_loaded():
    """A GPU of 24 GiB with a and then b beside it; returns the desk and what is to be remembered."""
    desk = Desk()
    desk.know(*MODELS)
    desk.arrive(1, "a")
    desk.loaded("a", gib=8, measured=8.5)
    desk.send(e.RequestFinished(1))
    desk.memory(G0=15.5)
    desk.arrive(2, "b")
    learned = only(desk.loaded("b", gib=7, measured=7.5), c.Remember).learned
    desk.send(e.RequestFinished(2))
    return desk, learned


def test_sizes_are_remembered():
    """After a restart a load reckons with what was measured before it."""
    desk, learned = two_loaded()
    assert {size.blob: size.total_bytes for size in learned.sizes} == {
        "blob-a": int(8.5 * GIB),
        "blob-b": int(7.5 * GIB),
    }
    restarted(desk, learned)
    desk.memory()
    assert only(desk.arrive(1, "a"), c.Load).predicted_bytes == int(8.5 * GIB)


def test_a_spill_is_remembered():
    """What was too little before a restart isn't tried again after it."""
    desk = Desk()
    desk.know(*MODELS)
    desk.arrive(1, "a")
    learned = only(desk.loaded("a", gib=8, vram_gib=6), c.Remember).learned
    (size,) = learned.sizes
    assert size.floor
    restarted(desk, learned)
    desk.memory()
    assert only(desk.arrive(1, "a"), c.Load).predicted_bytes == size.total_bytes > 9.9 * GIB


def test_books_are_remembered():
    """A runner that is adopted with its book counts by it: without, only NVML would tell."""
    desk, learned = two_loaded()
    listed = (desk.seen("b", 7),)
    for known, expected in ((learned, "Unload"), (replace(learned, books=()), "Load")):
        restarted(desk, known)
        desk.listed("g0", *listed)
        desk.memory(G0=16.5)  # a has gone meanwhile; b's book still counts it: 24 - 8.5 - 0.5 - 7 = 8
        desk.later(1)
        answer = desk.arrive(expected, "c")
        desk.send(e.RequestCancelled(expected))
        assert expected in {type(command).__name__ for command in answer}


def test_a_book_of_another_load_is_not_believed():
    """A runner of another size or context isn't the one that was known."""
    desk, learned = two_loaded()
    restarted(desk, learned)
    desk.listed("g0", desk.seen("b", 6.5))
    assert desk.core.state.find("g0", "b").left_bytes == {}


def test_the_first_start_knows_nothing():
    """Without a memory all is predicted."""
    desk = Desk()
    restarted(desk, Learned())
    desk.memory()
    assert only(desk.arrive(1, "a"), c.Load).predicted_bytes > 8 * GIB - GIB
