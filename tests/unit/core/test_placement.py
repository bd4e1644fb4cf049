"""Where a model goes, and what several instances and names have to do with it."""

from __future__ import annotations

import pytest
from drover_proxy.core import Instance, Profile
from drover_proxy.core import commands as c
from drover_proxy.core import events as e

from tests.unit.core.desk import Desk, kinds, model, only

SPREAD = (
    Instance(name="g0", gpu_uuids=("G0",), slots=2),
    Instance(name="g1", gpu_uuids=("G1",), slots=2),
    Instance(name="both", gpu_uuids=("G0", "G1"), slots=2),
)


@pytest.fixture
def desk():
    """Two GPUs of 24 GiB, an instance on each, and one over both."""
    desk = Desk(gpus={"G0": 24, "G1": 24}, instances=SPREAD)
    desk.know(model("a", 8), model("b", 8), model("x", 30))
    return desk


def test_a_loaded_model_is_used_where_it_is(desk):
    """No second copy is loaded while one is ready, or loading."""
    where = only(desk.arrive(1, "a"), c.Load).instance
    assert kinds(desk.arrive(2, "a")) == ["Wait"]
    forwards = [command for command in desk.loaded("a", where) if isinstance(command, c.Forward)]
    assert {command.instance for command in forwards} == {where}


def test_two_models_go_to_two_gpus(desk):
    """The GPU with the most free memory has the least to compute; both loads go on at once."""
    first = only(desk.arrive(1, "a"), c.Load).instance
    second = only(desk.arrive(2, "b"), c.Load).instance
    assert {first, second} == {"g0", "g1"}


def test_one_gpu_before_two(desk):
    """What fits on one GPU isn't spread, even if a runner has to go for it."""
    desk.know(model("big", 20), model("big2", 20), model("big3", 18))
    desk.ready("big", only(desk.arrive(0, "big"), c.Load).instance, gib=20, G0=4)
    desk.send(e.RequestFinished(0))
    answer = desk.arrive(1, "big2")
    assert only(answer, c.Load).instance == "g1"
    desk.loaded("big2", "g1", gib=20)
    desk.memory(G0=4, G1=4)
    desk.send(e.RequestFinished(1))
    assert only(desk.arrive(2, "big3"), c.Unload).model == "big"


def test_what_needs_two_gets_two(desk):
    """A model too large for one GPU goes over the set."""
    assert only(desk.arrive(1, "x"), c.Load).instance == "both"


def test_a_spread_load_waits_for_loads_on_either_gpu(desk):
    """While one of its GPUs loads something, the spread load waits; then it makes room."""
    where = only(desk.arrive(1, "a"), c.Load).instance
    assert kinds(desk.arrive(2, "x")) == ["Wait"]
    assert kinds(desk.loaded("a", where)) == ["Forward"]
    assert only(desk.memory(G0=16), c.Load).instance == "both"  # 16 + 24 GiB are enough besides


def test_nothing_is_loaded_on_a_gpu_of_a_spread_load(desk):
    """The spread load has both GPUs for itself."""
    desk.arrive(1, "x")
    assert kinds(desk.arrive(2, "a")) == ["Wait"]
    desk.loaded("x", "both", gib=30)
    assert only(desk.memory(G0=10, G1=9), c.Load).instance in {"g0", "g1"}


def test_waiting_a_moment_is_better_than_evicting(desk):
    """If a load under way will leave enough room, it is waited for rather than evicting elsewhere."""
    desk.know(model("idle", 20))
    where = only(desk.arrive(0, "idle"), c.Load).instance
    desk.loaded("idle", where, gib=20)
    desk.send(e.RequestFinished(0))
    desk.memory(G0=4)
    desk.arrive(1, "a")
    assert kinds(desk.arrive(2, "b")) == ["Wait"]
    desk.loaded("a", "g1")
    assert only(desk.memory(G0=4, G1=16), c.Load).instance == "g1"


def test_the_oldest_victim_decides_the_place(desk):
    """When somebody has to go on either GPU, it is the one used longest ago."""
    desk.know(model("p", 20), model("q", 20), model("new", 20))
    for request, name, where in ((10, "p", "g0"), (11, "q", "g1")):
        desk.arrive(request, name)
        desk.loaded(name, where, gib=20)
        desk.memory(**({"G0": 4.0} if name == "p" else {"G0": 4.0, "G1": 4.0}))
    desk.send(e.RequestFinished(11))
    desk.later(3)
    desk.send(e.RequestFinished(10))
    assert only(desk.arrive(1, "new"), c.Unload).model == "q"


def test_names_of_one_blob_share_a_runner(desk):
    """A derived model with the same context is served by the runner that is there."""
    desk.know(model("alias", 8, blob="blob-a"))
    where = only(desk.arrive(1, "a"), c.Load).instance
    desk.loaded("a", where)
    assert only(desk.arrive(2, "alias"), c.Forward).instance == where
    assert kinds(desk.arrive(3, "alias")) == ["Wait"]  # its slots are shared as well


def test_other_context_replaces_the_runner():
    """Two names of one blob with different contexts take turns: the idle runner is unloaded first."""
    desk = Desk()
    desk.know(model("n4", 8), model("n8", 8, blob="blob-n4", num_ctx=8192))
    desk.ready("n4", G0=16)
    answer = desk.arrive(1, "n8")
    assert only(answer, c.Unload).model == "n4"
    desk.unloaded("n4")
    load = only(desk.memory(), c.Load)
    assert (load.model, load.context) == ("n8", 8192)
    assert kinds(desk.loaded("n8", context=8192)) == ["Forward"]
    assert kinds(desk.arrive(2, "n4")) == ["Wait"]


def test_other_context_waits_for_the_busy_runner():
    """A busy runner isn't replaced before it is idle, or has kept the other waiting too long."""
    desk = Desk()
    desk.know(model("n4", 8), model("n8", 8, blob="blob-n4", num_ctx=8192))
    desk.ready("n4", G0=16)
    desk.arrive(1, "n4")
    assert kinds(desk.arrive(2, "n8")) == ["Wait"]
    desk.memory(after=31, G0=16)
    assert desk.state_of("n4") == "draining"
    assert kinds(desk.arrive(3, "n4")) == ["Wait"]
    assert only(desk.send(e.RequestFinished(1)), c.Unload).model == "n4"


def test_other_context_goes_elsewhere_when_there_is_room(desk):
    """With a second instance free, the second context is loaded there and nobody is replaced."""
    desk.know(model("n4", 8), model("n8", 8, blob="blob-n4", num_ctx=8192))
    where = only(desk.arrive(1, "n4"), c.Load).instance
    desk.loaded("n4", where)
    desk.send(e.RequestFinished(1))
    desk.memory(G0=16)
    other = only(desk.arrive(2, "n8"), c.Load).instance
    assert other != where
    assert other != "both"


def test_replacing_on_the_cpu():
    """An instance without GPUs replaces a context in the same way."""
    desk = Desk(gpus={}, instances=(Instance(name="cpu", slots=1),), profiles={"b": Profile(context=8192)})
    desk.know(model("a", 8), model("b", 8, blob="blob-a"))
    desk.arrive(1, "a")
    desk.loaded("a", "cpu", vram_gib=0)
    desk.send(e.RequestFinished(1))
    assert kinds(desk.arrive(2, "b")) == ["Wait", "Unload"]
    assert only(desk.unloaded("a", "cpu"), c.Load).options == {"num_ctx": 8192}


def test_the_cpu_is_for_what_fits_on_no_gpu():
    """An instance without GPUs isn't used because the GPU is busy, only for what would never fit there."""
    desk = Desk(
        gpus={"G0": 24},
        instances=(Instance(name="g0", gpu_uuids=("G0",)), Instance(name="cpu")),
    )
    desk.know(model("a", 15), model("b", 15), model("x", 40))
    desk.ready("a", gib=15, G0=9)
    desk.arrive(1, "a")
    assert kinds(desk.arrive(2, "b")) == ["Wait"]
    assert only(desk.arrive(3, "x"), c.Load).instance == "cpu"
