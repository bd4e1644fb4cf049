"""Loads: once for all who wait, tried again, given up, and never cancelled."""

from __future__ import annotations

import pytest
from drover_proxy.core import Instance, Profile, QueueLimits
from drover_proxy.core import commands as c
from drover_proxy.core import events as e

from tests.unit.core.desk import GIB, Desk, alerts, kinds, model, only


@pytest.fixture
def desk():
    """One GPU of 24 GiB, and models a (8), b (9), c (20)."""
    desk = Desk()
    desk.know(model("a", 8), model("b", 9), model("c", 20))
    return desk


def failed(desk, name="a", *, retryable=True, message="exit status 3"):
    """A load fails."""
    desk.later(1)
    return desk.send(e.LoadFailed("g0", name, "terminated", message, retryable))


def test_one_load_for_all_who_wait(desk):
    """The first request has the model loaded, the others wait for it; then all slots are filled."""
    answer = desk.arrive(1, "a")
    assert kinds(answer) == ["Wait", "Load"]
    load = only(answer, c.Load)
    assert (load.instance, load.model, load.context, load.options) == ("g0", "a", 4096, {})
    assert kinds(desk.arrive(2, "a")) == ["Wait"]
    assert kinds(desk.arrive(3, "a")) == ["Wait"]
    assert [command.request for command in desk.loaded("a") if isinstance(command, c.Forward)] == [1, 2]


def test_nothing_is_loaded_before_nvml_has_spoken():
    """Without any sample nothing is known of the memory: wait for one."""
    desk = Desk()
    desk.core.state.ledger.books["G0"].free_bytes = None
    desk.know(model("a", 8))
    assert kinds(desk.arrive(1, "a")) == ["Wait"]
    assert kinds(desk.memory()) == ["Load"]


def test_without_nvml_the_books_stand_in():
    """When no sample comes for long, our own books decide."""
    desk = Desk()
    desk.core.state.ledger.books["G0"].free_bytes = None
    desk.know(model("a", 8))
    desk.arrive(1, "a")
    assert kinds(desk.tick(20)) == []
    assert kinds(desk.tick(20)) == ["Load"]


def test_one_load_at_a_time_on_a_gpu(desk):
    """The second model waits for the first one's load, and for a sample that shows what it took."""
    assert kinds(desk.arrive(1, "a")) == ["Wait", "Load"]
    assert kinds(desk.arrive(2, "b")) == ["Wait"]
    assert kinds(desk.memory(G0=20)) == []  # half loaded
    assert kinds(desk.loaded("a")) == ["Forward"]
    assert kinds(desk.memory(sampled_at=desk.now - 1, G0=24)) == []  # taken before the load ended
    assert kinds(desk.memory(G0=16)) == ["Load"]


def test_the_context_a_model_is_loaded_with():
    """The profile goes before the Modelfile, that before the instance; options say it when needed."""
    desk = Desk(
        instances=(Instance(name="g0", gpu_uuids=("G0",), slots=2, context_default=8192),),
        profiles={"p": Profile(context=2048), "q": Profile(context=8192)},
    )
    desk.know(model("d", 2), model("m", 2, num_ctx=1024), model("p", 2, num_ctx=1024), model("q", 2))
    seen = {}
    for name in "dmpq":
        load = only(desk.arrive(name, name), c.Load)
        seen[name] = (load.context, dict(load.options))
        forward = only(desk.loaded(name, gib=2, context=load.context), c.Forward)
        assert forward.options == load.options
        desk.memory(G0=16)
    assert seen == {"d": (8192, {}), "m": (1024, {}), "p": (2048, {"num_ctx": 2048}), "q": (8192, {})}


def test_context_is_capped_as_ollama_does():
    """Never more than the training context, never less than 2048 with vision."""
    desk = Desk()
    small = model("t", 2, num_ctx=8192)
    keys = {**small.hyperparameters, "bert.context_length": 512}
    desk.know(
        type(small)(name="t", blob="t", size_bytes=1, architecture="bert", hyperparameters=keys, num_ctx=8192)
    )
    desk.know(model("v", 2, num_ctx=512, capabilities=frozenset({"completion", "vision"})))
    assert only(desk.arrive(1, "t"), c.Load).context == 512
    desk.loaded("t", gib=1, context=512)
    desk.arrive(2, "v")
    assert only(desk.memory(G0=20), c.Load).context == 2048


def test_failed_load_is_tried_once_more_and_then_given_up(desk):
    """The first failure is tried again; after the second all who wait get the runner's words."""
    desk.arrive(1, "a")
    desk.arrive(2, "a")
    assert kinds(failed(desk)) == []
    assert kinds(desk.memory()) == ["Load"]
    answer = failed(desk, message="exit status 1: unknown model architecture: 'madeup'")
    refusals = [command for command in answer if isinstance(command, c.Reject)]
    assert [refusal.request for refusal in refusals] == [1, 2]
    assert {(refusal.status, refusal.code) for refusal in refusals} == {(503, "load_failed")}
    assert "madeup" in refusals[0].message
    assert refusals[0].retry_after_seconds == 60
    assert "load_failed" in alerts(answer)


def test_cool_down_keeps_a_broken_model_from_emptying_the_instance(desk):
    """For a while requests for it are refused at once; then it may try again."""
    desk.arrive(1, "a")
    failed(desk)
    desk.memory()
    failed(desk)
    desk.later(20)
    refusal = only(desk.arrive(2, "a"), c.Reject)
    assert refusal.code == "load_failed"
    assert refusal.retry_after_seconds == 40
    desk.tick(41)
    desk.memory()
    assert kinds(desk.arrive(3, "a")) == ["Wait", "Load"]


def test_a_failure_that_would_happen_again_is_final(desk):
    """What can't be retried is answered with 500 and no Retry-After."""
    desk.arrive(1, "a")
    refusal = only(failed(desk, retryable=False), c.Reject)
    assert (refusal.status, refusal.retry_after_seconds) == (500, None)


def test_success_forgets_the_failure(desk):
    """A load that works the second time leaves no failure counted."""
    desk.arrive(1, "a")
    failed(desk)
    desk.memory()
    desk.loaded("a")
    assert not desk.core.state.failures
    assert desk.state_of("a") == "ready"


def test_other_models_go_on_while_one_cools_down(desk):
    """The instance is free for others at once."""
    desk.arrive(1, "a")
    failed(desk, retryable=False)
    desk.memory()
    assert kinds(desk.arrive(2, "b")) == ["Wait", "Load"]


def test_a_load_without_an_answer_ends():
    """The driver's time limit failing, the scheduler's own gives the load up."""
    desk = Desk(queue=QueueLimits(max_wait_seconds=2000))
    desk.know(model("a", 8))
    desk.arrive(1, "a")
    assert kinds(desk.tick(590)) == []
    desk.memory()
    answer = desk.tick(30)
    assert alerts(answer) == ["load_failed"]
    assert kinds(answer) == []
    assert kinds(desk.memory()) == ["Load"]


def test_everybody_left_during_the_load(desk):
    """The load goes on, cancelling it would waste it; the runner is then there for the next one."""
    desk.arrive(1, "a")
    assert desk.send(e.RequestCancelled(1)) == []
    assert kinds(desk.loaded("a")) == []
    assert kinds(desk.arrive(2, "a")) == ["Forward"]


def test_others_want_what_the_first_one_had_loaded(desk):
    """The first requester leaves; the second is served by the same load."""
    desk.arrive(1, "a")
    desk.arrive(2, "a")
    desk.send(e.RequestCancelled(1))
    assert only(desk.loaded("a"), c.Forward).request == 2


def test_instance_goes_down_during_a_load(desk):
    """Nobody's failure: who waits is served when the instance is back."""
    desk.arrive(1, "a")
    desk.send(e.InstanceDown("g0", "killed"))
    assert desk.state_of("a") == "absent"
    assert not desk.core.state.failures
    desk.later(5)
    desk.send(e.InstanceUp("g0"))
    assert kinds(desk.memory()) == ["Load"]
    assert kinds(desk.loaded("a")) == ["Forward"]


def test_another_instance_takes_over():
    """With a second instance, who waited for a load in the one that died is served by the other."""
    desk = Desk(gpus={"G0": 24, "G1": 24})
    desk.know(model("a", 8))
    first = only(desk.arrive(1, "a"), c.Load).instance
    answer = desk.send(e.InstanceDown(first, "killed"))
    assert only(answer, c.Load).instance == ({"g0", "g1"} - {first}).pop()


def test_a_late_answer_is_not_believed(desk):
    """A load's answer that comes after its instance went down and up is left to /api/ps."""
    desk.arrive(1, "a")
    desk.send(e.InstanceDown("g0", "killed"))
    desk.later(1)
    desk.send(e.InstanceUp("g0"))
    assert kinds(desk.loaded("a")) == []
    assert desk.state_of("a") == "absent"


def test_spilled_load_is_taken_back_and_tried_with_more_room(desk):
    """A load that ended up partly on the CPU is unloaded, and tried again with the room it lacked."""
    first = only(desk.arrive(1, "a"), c.Load)
    answer = desk.loaded("a", gib=8, vram_gib=6)
    assert only(answer, c.Unload).model == "a"
    assert alerts(answer) == ["load_spilled"]
    assert kinds(answer) == ["Unload"]
    assert kinds(desk.unloaded("a")) == []
    second = only(desk.memory(), c.Load)
    assert second.predicted_bytes == first.predicted_bytes + 2 * GIB


def test_spilling_twice_is_refused(desk):
    """The second time, who waits is told, and the model is let be for a while."""
    desk.arrive(1, "a")
    desk.loaded("a", gib=8, vram_gib=6)
    desk.unloaded("a")
    desk.memory()
    answer = desk.loaded("a", gib=8, vram_gib=7)
    assert kinds(answer) == ["Unload", "Reject"]
    refusal = only(answer, c.Reject)
    assert (refusal.status, refusal.code, refusal.retry_after_seconds) == (503, "model_spills", 60)
    assert "1024 MiB" in refusal.message


def test_a_spill_is_no_reason_to_call_it_too_large(desk):
    """What a spill teaches never exceeds the empty GPU: the retry happens."""
    desk.arrive(1, "c")
    desk.loaded("c", gib=20, vram_gib=2)
    desk.unloaded("c")
    assert kinds(desk.memory()) == ["Load"]


def test_on_the_cpu_nothing_spills():
    """An instance without GPUs has no memory to manage: a runner without VRAM is fine there."""
    desk = Desk(gpus={}, instances=(Instance(name="cpu"),))
    desk.know(model("a", 8), model("b", 8))
    assert kinds(desk.arrive(1, "a")) == ["Wait", "Load"]
    assert kinds(desk.arrive(2, "b")) == ["Wait"]  # one load at a time there too
    answer = desk.loaded("a", "cpu", gib=8, vram_gib=0)
    assert kinds(answer) == ["Forward", "Load"]


def test_measured_footprint_replaces_the_prediction(desk):
    """What the runner really took is what the next load needs, without a margin."""
    desk.arrive(1, "a")
    desk.loaded("a", measured=5.0)
    desk.send(e.RequestFinished(1))
    desk.memory(G0=19)
    desk.send(e.InstanceDown("g0", "restart"))
    desk.later(1)
    desk.send(e.InstanceUp("g0"))
    desk.memory()
    assert only(desk.arrive(2, "a"), c.Load).predicted_bytes == 5 * GIB


@pytest.mark.parametrize(("again", "believed"), [(4.7, 5.0), (5.2, 5.2), (3.0, 3.0)])
def test_a_smaller_batch_is_no_smaller_model(desk, again, believed):
    """Ollama gives a runner a smaller batch where room is scarce; the next one may get the larger again."""
    sizing, info = desk.core.state.sizing, desk.core.state.models["a"]
    spec = sizing.spec(info, desk.core.state.instances["g0"])
    for measured in (5.0, again):
        sizing.learn(spec, int(measured * GIB))
    assert sizing.measured[spec.measure] == int(believed * GIB)


def test_prediction_has_a_margin(desk):
    """What was never measured is given 3 %, and 256 MiB at least."""
    info = desk.core.state.models
    instance = desk.core.state.instances["g0"]
    sizing = desk.core.state.sizing
    for name, least in (("a", 0.25), ("c", 0.03 * 19.75)):
        need = sizing.need(info[name], instance, sizing.spec(info[name], instance))
        predicted = info[name].size_bytes + GIB // 2
        assert need.total_bytes - predicted >= int(least * GIB) - 1024
        assert need.total_bytes - predicted <= int(least * GIB) + 1024 * 1024


def test_too_large_for_the_host(desk):
    """A model that fits nowhere, not even alone, is refused at once, and asking again is of no use."""
    desk.know(model("x", 24))
    refusal = only(desk.arrive(1, "x"), c.Reject)
    assert (refusal.status, refusal.code, refusal.retry_after_seconds) == (503, "model_too_large", None)
    assert "smaller quantisation" in refusal.message


def test_too_large_is_judged_by_all_instances():
    """While the instance that is large enough is down, the model isn't too large: its users wait."""
    desk = Desk(
        gpus={"G0": 24, "G1": 24},
        instances=(
            Instance(name="g0", gpu_uuids=("G0",)),
            Instance(name="both", gpu_uuids=("G0", "G1")),
        ),
    )
    desk.know(model("x", 30))
    desk.send(e.InstanceDown("both", "exit"))
    assert kinds(desk.arrive(1, "x")) == ["Wait"]
    desk.later(1)
    assert only(desk.send(e.InstanceUp("both")), c.Load).instance == "both"


def test_context_other_than_asked_for_is_told(desk):
    """A runner with another context than expected is used, and the operator is told."""
    desk.arrive(1, "a")
    answer = desk.loaded("a", context=2048)
    assert kinds(answer) == ["Forward"]
    assert alerts(answer) == ["context_differs"]


def test_spilled_runner_that_will_not_go(desk):
    """A runner partly on the CPU serves nobody, also when it could not be unloaded; it is tried again."""
    desk.arrive(1, "a")
    desk.loaded("a", gib=8, vram_gib=6)
    answer = desk.send(e.UnloadFailed("g0", "a", "still listed"))
    assert kinds(answer) == []
    assert kinds(desk.arrive(2, "a")) == ["Wait"]
    assert kinds(desk.tick(31)) == ["Unload"]
    desk.unloaded("a")
    assert kinds(desk.memory()) == ["Load"]
