"""The queue: who is forwarded, who waits, who is refused, and with which words."""

from __future__ import annotations

import json

import pytest
from drover_proxy.core import IllegalTransition, Instance, Profile, QueueLimits
from drover_proxy.core import commands as c
from drover_proxy.core import events as e

from tests.unit.core.desk import Desk, alerts, kinds, model, only


@pytest.fixture
def desk():
    """A desk with model a ready in g0, two slots, idle."""
    desk = Desk()
    desk.know(model("a", 8))
    desk.ready("a", G0=16)
    return desk


def test_ready_runner_is_used_at_once(desk):
    """A request for a ready model with a free slot is forwarded, and waits for nothing."""
    answer = desk.arrive(1, "a")
    assert answer == [c.Forward(1, "g0", "a")]
    assert desk.send(e.HeadersSent(1)) == []
    assert desk.send(e.RequestFinished(1)) == []


def test_slots_are_never_exceeded(desk):
    """The third request waits for one of two slots, and gets the first that is free."""
    desk.arrive(1, "a")
    desk.arrive(2, "a")
    assert desk.arrive(3, "a") == [c.Wait(3, 1)]
    assert desk.arrive(4, "a") == [c.Wait(4, 2)]
    assert only(desk.send(e.RequestFinished(2)), c.Forward).request == 3
    assert only(desk.send(e.RequestFinished(1)), c.Forward).request == 4


def test_newcomers_do_not_overtake(desk):
    """When a slot is free but somebody waits, who came first goes first."""
    for request in (1, 2, 3):
        desk.arrive(request, "a")
    assert only(desk.send(e.RequestFinished(1)), c.Forward).request == 3
    assert kinds(desk.arrive(4, "a")) == ["Wait"]


def test_profile_can_lower_the_slots():
    """A profile's slots bound what a model may use of the instance's."""
    desk = Desk(profiles={"a": Profile(slots=1)})
    desk.know(model("a", 8))
    desk.ready("a", G0=16)
    desk.arrive(1, "a")
    assert kinds(desk.arrive(2, "a")) == ["Wait"]


def test_profile_can_not_raise_the_slots():
    """More slots than the instance has would queue inside Ollama."""
    desk = Desk(profiles={"a": Profile(slots=9)})
    desk.know(model("a", 8))
    desk.ready("a", G0=16)
    assert [kinds(desk.arrive(request, "a")) for request in (1, 2, 3)] == [["Forward"], ["Forward"], ["Wait"]]


@pytest.mark.parametrize(
    "info",
    [model("a", 8, capabilities=frozenset({"embedding"})), model("a", 8)],
    ids=["embedding", "architecture"],
)
def test_single_slot_models(info):
    """Ollama gives embedding models and some architectures one slot, whatever the instance has."""
    desk = Desk()
    if not info.capabilities:
        info = type(info)(name="a", blob="blob", size_bytes=info.size_bytes, architecture="qwen3vl")
    desk.know(info)
    desk.ready("a", G0=16)
    assert kinds(desk.arrive(1, "a", needs=e.Needs.EMBED)) == ["Forward"]
    assert kinds(desk.arrive(2, "a", needs=e.Needs.EMBED)) == ["Wait"]


def test_client_leaves_while_waiting(desk):
    """Who left isn't forwarded when a slot comes free; the next one is."""
    for request in (1, 2, 3, 4):
        desk.arrive(request, "a")
    assert desk.send(e.RequestCancelled(3)) == []
    assert only(desk.send(e.RequestFinished(1)), c.Forward).request == 4


def test_client_leaves_while_served(desk):
    """A cancelled request frees its slot at once, and its end is then no news."""
    for request in (1, 2, 3):
        desk.arrive(request, "a")
    assert only(desk.send(e.RequestCancelled(1)), c.Forward).request == 3
    assert desk.send(e.RequestFinished(1, e.Outcome.CANCELLED)) == []
    assert desk.core.snapshot()["in_flight"] == 2


def test_full_queue(desk):
    """Beyond the bound a request is refused, with an estimate of when to ask again."""
    small = Desk(queue=QueueLimits(max_waiting=2))
    small.know(model("a", 8))
    for request in (1, 2):
        small.arrive(request, "a")
    refusal = only(small.arrive(3, "a"), c.Reject)
    assert (refusal.status, refusal.code) == (503, "queue_full")
    assert refusal.retry_after_seconds == 5 + 10 + 10  # three rounds of one unknown slot, and a load


def test_a_full_queue_does_not_keep_out_who_need_not_wait():
    """The bound is on those who wait: a free slot of another model is given all the same."""
    desk = Desk(queue=QueueLimits(max_waiting=1))
    desk.know(model("a", 8), model("b", 9))
    desk.ready("a", G0=16)
    desk.arrive(1, "b")
    assert kinds(desk.arrive(2, "a")) == ["Forward"]
    assert only(desk.arrive(3, "b"), c.Reject).code == "queue_full"


def test_retry_after_follows_what_requests_take(desk):
    """Long requests and many waiters give a long Retry-After."""
    for request in range(20):
        desk.arrive(("long", request), "a")
        desk.later(40)
        desk.send(e.RequestFinished(("long", request)))
    desk.core.state.config = type(desk.core.state.config)(
        gpus=desk.core.state.config.gpus,
        instances=desk.core.state.config.instances,
        queue=QueueLimits(max_waiting=3),
    )
    for request in range(5):
        desk.arrive(request, "a")
    wait = only(desk.arrive(9, "a"), c.Reject).retry_after_seconds
    assert 60 <= wait <= 80  # four ahead, two slots, about 40 s each


def test_waiting_has_an_end():
    """Who has waited too long is refused; later ones keep waiting."""
    desk = Desk(queue=QueueLimits(max_wait_seconds=20, no_instance_seconds=900))
    desk.know(model("a", 8))
    desk.arrive(1, "a")
    desk.later(15)
    desk.arrive(2, "a")
    refusal = only(desk.tick(6), c.Reject)
    assert (refusal.request, refusal.status, refusal.code) == (1, 503, "queue_timeout")
    assert refusal.retry_after_seconds >= 1
    assert kinds(desk.tick(5)) == []


def test_unknown_model(desk):
    """A model that nobody told of is a 404."""
    refusal = only(desk.arrive(1, "nope"), c.Reject)
    assert (refusal.status, refusal.code, refusal.retry_after_seconds) == (404, "model_not_found", None)


def test_text_of_an_embedding_model():
    """An embedding model isn't loaded for a request that Ollama would refuse afterwards."""
    desk = Desk()
    desk.know(model("e", 2, capabilities=frozenset({"embedding"})))
    refusal = only(desk.arrive(1, "e"), c.Reject)
    assert (refusal.status, refusal.message) == (400, '"e" does not support generate')
    assert only(desk.arrive(2, "e", needs=e.Needs.EMBED), c.Load).embedding_only


def test_the_same_id_twice_is_a_bug(desk):
    """A request that arrives again while it is there raises with its story, and changes nothing."""
    desk.arrive(1, "a")
    before = desk.core.snapshot()
    with pytest.raises(IllegalTransition) as caught:
        desk.arrive(1, "a")
    assert desk.core.snapshot() == before
    assert any(entry.request == 1 for entry in caught.value.story)
    assert "request 1 may not go from forwarded to arrived again" in str(caught.value)
    desk.core.validate()


def test_an_id_may_be_used_again(desk):
    """Once a request has ended its id is free."""
    desk.arrive(1, "a")
    desk.send(e.RequestFinished(1))
    assert kinds(desk.arrive(1, "a")) == ["Forward"]


def test_forward_that_never_arrived(desk):
    """It goes back to its old place, and nothing is sent there until the runner is seen again."""
    for request in (1, 2, 3, 4):
        desk.arrive(request, "a")
    assert kinds(desk.send(e.ForwardFailed(1, "connection refused"))) == []
    assert kinds(desk.send(e.RequestFinished(2))) == []
    assert kinds(desk.arrive(5, "a")) == ["Wait"]
    answer = desk.listed("g0", desk.seen("a"))
    assert [command.request for command in answer] == [1, 3]


def test_suspicion_ends_by_itself(desk):
    """Without an observation the runner is trusted again after a moment."""
    desk.arrive(1, "a")
    desk.send(e.ForwardFailed(1, "reset"))
    assert kinds(desk.tick(1)) == []
    assert only(desk.tick(1.5), c.Forward).request == 1


def test_forward_that_never_arrives(desk):
    """After a few attempts it is answered with 502."""
    desk.arrive(1, "a")
    for _ in range(2):
        desk.send(e.ForwardFailed(1, "reset"))
        desk.tick(3)
    refusal = only(desk.send(e.ForwardFailed(1, "reset")), c.Reject)
    assert (refusal.status, refusal.code) == (502, "upstream_unreachable")
    assert "reset" in refusal.message


def test_draining(desk):
    """A stopping proxy takes nobody in, serves who waits for a ready model, and says when it is done."""
    desk.know(model("b", 9))
    for request in (1, 2, 3):
        desk.arrive(request, "a")
    answer = desk.send(e.DrainRequested())
    assert kinds(answer) == []
    assert only(desk.arrive(4, "a"), c.Reject).code == "draining"
    assert only(desk.send(e.RequestFinished(1)), c.Forward).request == 3
    assert kinds(desk.send(e.RequestFinished(2))) == []
    assert kinds(desk.send(e.RequestFinished(3))) == ["Drained"]
    assert kinds(desk.tick()) == []


def test_draining_refuses_who_would_need_a_load():
    """Who waits for a model that isn't loaded is refused at once when the proxy stops."""
    desk = Desk()
    desk.know(model("a", 20), model("b", 20))
    desk.ready("a", gib=20, G0=4)
    desk.arrive(1, "a")
    desk.arrive(2, "b")
    refusal = only(desk.send(e.DrainRequested()), c.Reject)
    assert (refusal.request, refusal.code) == (2, "draining")


def test_what_it_waited_is_told():
    """A forward says how long it waited, and how much of that was a load."""
    desk = Desk()
    desk.know(model("a", 8))
    desk.arrive(1, "a")
    desk.later(3)
    forward = only(desk.loaded("a"), c.Forward)
    assert forward.waited_seconds == pytest.approx(5)
    assert forward.load_seconds == pytest.approx(5)
    desk.later(1)
    again = only(desk.arrive(2, "a"), c.Forward)
    assert (again.waited_seconds, again.load_seconds) == (0, 0)


def test_story(desk):
    """What happened to a request and to a model can be read."""
    desk.arrive(1, "a", key="demo")
    desk.send(e.HeadersSent(1))
    desk.send(e.RequestFinished(1))
    told = [str(entry) for entry in desk.core.story(request=1)]
    assert "demo" in told[0]
    assert told[-1].endswith("done")
    assert any("loading -> ready" in str(entry) for entry in desk.core.story(model="a"))


def test_events_of_unknown_requests_are_ignored(desk):
    """Late news of requests that have ended does nothing."""
    for event in (
        e.RequestCancelled(77),
        e.HeadersSent(77),
        e.RequestFinished(77),
        e.ForwardFailed(77, "x"),
    ):
        assert desk.send(event) == []


def test_no_instance_is_up():
    """Requests wait a while for an instance to come up, then are told where to look."""
    desk = Desk()
    desk.know(model("a", 8))
    desk.send(e.InstanceDown("g0", "exit 1"))
    desk.arrive(1, "a")
    assert kinds(desk.tick(30)) == []
    refusal = only(desk.tick(31), c.Reject)
    assert (refusal.status, refusal.code, refusal.retry_after_seconds) == (503, "no_instance", 10)
    desk.arrive(2, "a")
    desk.tick(30)
    desk.memory()
    assert only(desk.send(e.InstanceUp("g0")), c.Load).model == "a"


def test_the_emptier_of_two_ready_runners_serves():
    """A model that is ready twice is used where fewer requests are."""
    desk = Desk(
        gpus={"G0": 24, "G1": 24},
        instances=(
            Instance(name="g0", gpu_uuids=("G0",), slots=2),
            Instance(name="g1", gpu_uuids=("G1",), slots=2),
        ),
    )
    desk.know(model("a", 8))
    for name in ("g0", "g1"):
        desk.listed(name, desk.seen("a"))
    where = [only(desk.arrive(request, "a"), c.Forward).instance for request in range(4)]
    assert sorted(where[:2]) == sorted(where[2:]) == ["g0", "g1"]
    assert alerts(desk.arrive(9, "a")) == []


def test_snapshot_is_plain_data(desk):
    """The snapshot can be written as strict JSON in every situation, and counts what is there."""
    desk.know(model("b", 9), model("c", 20))
    for request, name in enumerate(["a", "a", "a", "b", "c"]):
        desk.arrive(request, name)
    desk.send(e.WithdrawModel("t", "c"))
    snapshot = json.loads(json.dumps(desk.core.snapshot(), allow_nan=False))
    assert (snapshot["in_flight"], snapshot["waiting"]) == (2, 3)
    assert snapshot["waiting_by_model"] == {"a": 1, "b": 1, "c": 1}
    assert {runner["state"] for runner in snapshot["runners"]} == {"ready", "loading"}
    assert snapshot["gpus"][0]["promised_bytes"] > 8 * 1024**3
    assert snapshot["withdrawals"] == ["c"]
