"""The tables of transitions, and what an illegal one does: nothing, loudly."""

from __future__ import annotations

import itertools
import pickle

import pytest
from drover_proxy.core import CoreConfig, Gpu, IllegalTransition, Instance, InvariantError
from drover_proxy.core import events as e
from drover_proxy.core.entities import Request
from drover_proxy.core.transitions import (
    ENDED,
    REQUEST_TRANSITIONS,
    RUNNER_TRANSITIONS,
    RequestState,
    RunnerState,
)

from tests.unit.core.desk import Desk, model

ILLEGAL_RUNNER = [pair for pair in itertools.product(RunnerState, repeat=2) if pair not in RUNNER_TRANSITIONS]
ILLEGAL_REQUEST = [
    pair for pair in itertools.product(RequestState, repeat=2) if pair not in REQUEST_TRANSITIONS
]


@pytest.fixture
def desk():
    """A desk with model a ready."""
    desk = Desk()
    desk.know(model("a", 8))
    desk.ready("a", G0=16)
    return desk


@pytest.mark.parametrize(("before", "after"), ILLEGAL_RUNNER)
def test_illegal_runner_transitions_change_nothing(desk, before, after):
    """Every pair that isn't in the table raises with the runner's story, and leaves all as it was."""
    state = desk.core.state
    runner = state.find("g0", "a")
    runner.state = before
    snapshot, books = desk.core.snapshot(), repr(state.ledger.books)
    told = len(state.story.entries)
    with pytest.raises(IllegalTransition) as caught:
        state.move(runner, after, desk.now)
    assert desk.core.snapshot() == snapshot
    assert repr(state.ledger.books) == books
    assert len(state.story.entries) == told
    assert (caught.value.before, caught.value.after) == (before.value, after.value)
    assert any("loading -> ready" in str(entry.what) for entry in caught.value.story)


@pytest.mark.parametrize(("before", "after"), ILLEGAL_REQUEST)
def test_illegal_request_transitions_change_nothing(desk, before, after):
    """Every pair that isn't in the table raises, and the request stays where it is."""
    state = desk.core.state
    request = Request(e.RequestArrived(7, "a"), desk.now)
    state.admit(request)
    request.state = before
    places = (dict(state.requests), {name: dict(queue) for name, queue in state.waiting.items()})
    with pytest.raises(IllegalTransition):
        state.turn(request, after, desk.now)
    assert (state.requests, state.waiting) == places
    assert request.state is before


def test_the_error_reads_as_a_story(desk):
    """Its text says who, from what to what, and what had happened; it can be pickled."""
    desk.arrive(1, "a")
    request = desk.core.state.requests[1]
    desk.send(e.HeadersSent(1))
    with pytest.raises(IllegalTransition) as caught:
        desk.core.state.turn(request, RequestState.WAITING, desk.now)
    text = str(caught.value)
    assert text.startswith("request 1 may not go from answering to waiting; what happened to it:")
    assert "forwarded" in text
    assert str(pickle.loads(pickle.dumps(caught.value))) == text  # noqa: S301 - our own bytes


def test_headers_of_a_waiting_request(desk):
    """Headers of a request that was never forwarded are a bug of the shell, and change nothing."""
    for request in (1, 2, 3):
        desk.arrive(request, "a")
    before = desk.core.snapshot()
    with pytest.raises(IllegalTransition):
        desk.send(e.HeadersSent(3))
    assert desk.core.snapshot() == before
    desk.core.validate()


def test_nothing_leads_out_of_an_end():
    """Ended requests stay ended; every other state can be left, and every state can be reached."""
    assert not [pair for pair in REQUEST_TRANSITIONS if pair[0] in ENDED]
    for table, states, first in (
        (REQUEST_TRANSITIONS, RequestState, RequestState.WAITING),
        (RUNNER_TRANSITIONS, RunnerState, RunnerState.ABSENT),
    ):
        assert {after for _, after in table} | {first} == set(states)
        assert {before for before, _ in table} >= set(states) - ENDED


BREAKAGES = {
    "a request in two places": lambda s: s.orphans.update({next(iter(s.requests)): None}),
    "a miscounted queue": lambda s: setattr(s, "waiting_count", 9),
    "a slot too many": lambda s: setattr(next(iter(s.runners.values())), "slots", 0),
    "an unbooked runner": lambda s: s.ledger.books["G0"].charges.clear(),
    "a foreign index": lambda s: s.by_blob.clear(),
    "a runner where all is down": lambda s: s.up.clear(),
    "a deadline for nothing": lambda s: setattr(next(iter(s.runners.values())), "deadline", 1.0),
    "a wrong state": lambda s: setattr(next(iter(s.runners.values())), "state", RunnerState.FAILED),
    "a stuck nobody": lambda s: s.stuck.update({"a": (0, "x")}),
    "a withdrawn nothing": lambda s: s.withdrawn.add("x"),
    "an empty queue": lambda s: s.waiting.update({"a": {}}),
    "a draining nobody": lambda s: s.leaving.add("x"),
    "an ended request": lambda s: setattr(next(iter(s.requests.values())), "state", RequestState.DONE),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_validate_finds(desk, name):
    """Each kind of contradiction between collections is found."""
    desk.arrive(1, "a")
    desk.core.validate()
    BREAKAGES[name](desk.core.state)
    with pytest.raises(InvariantError):
        desk.core.validate()


@pytest.mark.parametrize(
    ("instances", "gpus", "words"),
    [
        ((), (), "at least one"),
        ((Instance(name="x"), Instance(name="x")), (), "stands twice"),
        ((Instance(name="x", gpu_uuids=("GPU-9",)),), (Gpu("GPU-1", 1),), "GPU-9"),
        ((Instance(name="x", slots=0),), (), "at least 1"),
    ],
)
def test_impossible_configurations(instances, gpus, words):
    """What can't be meant is refused with the place and what is there."""
    with pytest.raises(ValueError, match=words):
        CoreConfig(gpus=gpus, instances=instances)
