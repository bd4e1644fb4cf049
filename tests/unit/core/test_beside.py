"""Loads beside other runners: Ollama's own rule is kept, so that it never evicts by itself."""

from __future__ import annotations

import pytest
from drover_proxy.core import Instance, LoadLimits, Profile
from drover_proxy.core import commands as c
from drover_proxy.core import events as e
from drover_proxy.core.beside import believed_free_bytes, left_bytes
from drover_proxy.core.entities import Runner
from drover_proxy.core.ledger import RunnerKey
from drover_proxy.core.sizing import has_own_engine
from drover_proxy.vram.footprint import CUDA_CONTEXT_BYTES
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.core.desk import GIB, Desk, kinds, model, only


def unloads(answer):
    """Return the models that are unloaded, in order."""
    return [command.model for command in answer if isinstance(command, c.Unload)]


@pytest.fixture
def one():
    """A GPU of 24 GiB with a (8) ready and idle, 16 free: beside it Ollama takes 0.8 * (24 - 8 - 0.5)."""
    desk = Desk()
    desk.know(model("a", 8), model("fits", 13), model("guessed", 13.3), model("c", 5))
    desk.ready("a", G0=16)
    return desk


def test_what_ollama_takes_is_loaded_beside(one):
    """A guess of at most 80 % of what Ollama believes free needs no eviction."""
    assert kinds(one.arrive(1, "fits")) == ["Wait", "Load"]


def test_what_ollama_would_evict_for_makes_room_first(one):
    """A model that fits by its size but not by Ollama's guess: the core evicts, before the load."""
    answer = one.arrive(1, "guessed")
    assert unloads(answer) == ["a"]
    assert only(answer, c.Unload).reason == "room by Ollama's own rule for guessed"
    assert "Load" not in kinds(answer)
    one.unloaded("a")
    assert kinds(one.memory(G0=24)) == ["Load"]


def test_alone_the_rule_does_not_hold():
    """On an empty GPU a model is loaded that takes more than 80 % of it."""
    desk = Desk()
    desk.know(model("whole", 22.5))
    assert kinds(desk.arrive(1, "whole")) == ["Wait", "Load"]


def test_until_it_has_gone_it_counts(one):
    """A runner that is being unloaded is still in Ollama's list: nothing is loaded beside it till then."""
    one.arrive(1, "guessed")
    assert "Load" not in kinds(one.memory(G0=24))


def test_the_rule_holds_for_one_server():
    """Runners of another instance on the same GPU are in other books: only memory counts there."""
    desk = Desk(
        instances=(
            Instance(name="g0", gpu_uuids=("G0",)),
            Instance(name="other", gpu_uuids=("G0",)),
        )
    )
    desk.know(model("a", 8), model("guessed", 13.3))
    desk.ready("a", G0=16)
    load = only(desk.arrive(1, "guessed"), c.Load)
    assert load.instance == "other"


def test_another_gpu_before_an_eviction():
    """Where another GPU has room by both rules, nobody is evicted."""
    desk = Desk({"G0": 24.0, "G1": 24.0})
    desk.know(model("a", 8), model("b", 4), model("guessed", 13.3))
    desk.ready("a", G0=16)
    desk.ready("b", "g1", gib=4, G0=16, G1=20)
    assert only(desk.arrive(1, "guessed"), c.Load).instance == "g1"


def test_stale_books_go_with_their_runner():
    """The one used longest ago goes, and with it who was loaded beside it: there it counts for good."""
    desk = Desk()
    desk.know(model("old", 8), model("hot", 7), model("new", 8.2))
    desk.ready("old", G0=16)
    desk.later(60)
    desk.ready("hot", gib=6.5, G0=9)
    answer = desk.arrive(1, "new")
    assert unloads(answer) == ["old", "hot"]
    desk.unloaded("old")
    desk.unloaded("hot")
    assert only(desk.memory(G0=24), c.Load).model == "new"
    desk.loaded("new", gib=7.7)
    desk.send(e.RequestFinished(1))
    desk.memory(G0=15.8)
    # From now on the two in use stay side by side; nobody was put in their way.
    assert kinds(desk.arrive(2, "hot")) == ["Wait", "Load"]


def test_pinned_runners_and_a_guess_too_large():
    """What can never be loaded beside a pinned runner is refused, and the answer says why."""
    desk = Desk(profiles={"a": Profile(pin=True)}, loads=LoadLimits(memory_timeout_seconds=5))
    desk.know(model("a", 8), model("guessed", 13.3))
    desk.ready("a", G0=16)
    assert kinds(desk.arrive(1, "guessed")) == ["Wait"]
    desk.later(3)
    desk.memory(G0=16)
    desk.later(3)
    refused = only(desk.memory(G0=16), c.Reject)
    assert (refused.status, refused.code) == (503, "insufficient_memory")
    assert "its own rough guess" in refused.message
    assert refused.retry_after_seconds


def test_busy_runner_is_waited_for(one):
    """The rule doesn't interrupt anybody: a busy runner goes when it is idle."""
    one.arrive("busy", "a")
    assert kinds(one.arrive(1, "guessed")) == ["Wait"]
    assert unloads(one.send(e.RequestFinished("busy"))) == ["a"]


def test_own_engine_has_its_own_rule():
    """Before 0.30 all of it must fit into what is free, with a graph reckoned without flash attention."""
    llama = model("b", 10, num_ctx=16384)
    keys = {
        "llama.block_count": 32,
        "llama.embedding_length": 4096,
        "llama.attention.head_count": 32,
        "llama.attention.head_count_kv": 8,
    }
    for version, expected in (("0.24.0", ["a"]), ("0.33.0-rc2", [])):
        desk = Desk()
        desk.send(e.InstanceUp("g0", version))
        desk.know(model("a", 12), type(llama)(**_fields(llama), hyperparameters=keys))
        desk.ready("a", gib=12, G0=12)
        assert unloads(desk.arrive(1, "b")) == expected, version


def _fields(info):
    kept = {name: getattr(info, name) for name in ("name", "blob", "num_ctx")}
    return kept | {"size_bytes": 5 * GIB, "architecture": "llama", "num_batch": 512}


@pytest.mark.parametrize(
    ("version", "own"),
    [
        ("0.24.0", True),
        ("0.29.7-rc1", True),
        ("0.30.0", False),
        ("0.33.0-rc2", False),
        ("1.0.0", False),
        ("0.0.0", False),
        ("", False),
        ("strange", False),
    ],
)
def test_versions(version, own):
    """The version tells the generation; what can't be read counts as new."""
    assert has_own_engine(version) is own


sizes = st.integers(0, 30)


@given(
    total=st.integers(24, 80),
    reported=st.lists(sizes, min_size=1, max_size=4),
    at_load=st.lists(sizes, min_size=4, max_size=4),
    free=st.integers(0, 24),
    gone=st.integers(0, 3),
)
def test_books_never_promise_too_much(total, reported, at_load, free, gone):
    """Whichever runner Ollama asks, it believes at least what we reckon; and each that goes makes it more."""
    runners = []
    for number, size in enumerate(reported):
        runner = Runner(RunnerKey("g", str(number)), str(number), 4096, 1)
        runner.reported_bytes = {"G": size * GIB}
        runner.left_bytes = left_bytes({"G": at_load[number] * GIB}, runner.reported_bytes)
        runners.append(runner)
    reckoned = believed_free_bytes({"G": total * GIB}, {"G": free * GIB}, runners)
    accounted = (total - sum(reported)) * GIB
    for number, size in enumerate(reported):
        asked = max(0, at_load[number] * GIB - CUDA_CONTEXT_BYTES - size * GIB)
        assert reckoned <= max(0, min(accounted, asked))
    rest = runners[:gone] + runners[gone + 1 :]
    assert believed_free_bytes({"G": total * GIB}, {"G": free * GIB}, rest) >= reckoned
    fresh = believed_free_bytes({"G": total * GIB}, {"G": free * GIB}, runners, fresh=True)
    assert fresh >= reckoned
