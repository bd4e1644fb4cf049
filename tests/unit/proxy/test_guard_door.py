"""The door, its memory of signed requests, and its patience with wrong keys; time is the test's own."""

from __future__ import annotations

import asyncio
import base64

import pytest
from drover_proxy.guard.door import Door, Refusal
from drover_proxy.guard.keys import ANYBODY, Caller, KeyRing, hash_of
from drover_proxy.guard.replay import REMEMBERED, REPEAT_SECONDS, SPAN_SECONDS
from drover_proxy.guard.signature import read_signed, stamp_of
from drover_proxy.guard.sshkey import from_wire, read_line
from drover_proxy.guard.throttle import (
    ADDRESSES,
    FREE_TRIES,
    MAX_DELAY_SECONDS,
    WAITING,
    WAITING_PER_ADDRESS,
    Throttle,
)
from drover_proxy.wire.forwarding import network_of
from hypothesis import given
from hypothesis import strategies as st

from tests.proxy.signer import Signer

NOW = 1_767_225_600.0
SIGNER, STRANGER = Signer(), Signer()


class Request:
    """What the door looks at."""

    def __init__(
        self, *, method=b"GET", path=b"/api/tags", query=b"", client="10.0.0.1", certificate=(), **headers
    ):
        self.method, self.path, self.query, self.client, self.certificate = (
            method,
            path,
            query,
            client,
            certificate,
        )
        self.headers = {name.replace("_", "-").encode(): value for name, value in headers.items()}

    def header(self, name):
        """Give a field."""
        return self.headers.get(name)


def signed(path="/api/tags", *, method="GET", stamp=int(NOW), signer=SIGNER, **more):
    """Return a signed request."""
    shown = signer.authorization(method, path, stamp).encode()
    query = f"ts={stamp}".encode()
    return Request(method=method.encode(), path=path.encode(), query=query, authorization=shown, **more)


SHOWN = signed().headers[b"authorization"]


@pytest.fixture
def door():
    """A door with one caller a way, on a clock that stands still."""
    everything = {"scopes": frozenset({"use"}), "models": ("*",)}
    callers = (
        Caller("key", **everything, sha256=hash_of("drv_good")),
        Caller("old", **everything, sha256=hash_of("drv_old"), expires_at=NOW - 1),
        Caller("ssh", **everything, ssh=read_line(SIGNER.line)),
        Caller("cert", **everything, certificate="cn:ann"),
        Caller("cert-old", **everything, certificate="cn:bob", expires_at=NOW),
    )
    made = Door(KeyRing(callers), 60.0)
    made.clock, made.monotonic = lambda: NOW, lambda: 1000.0
    return made


@pytest.mark.parametrize(
    ("request_", "outcome"),
    [
        (Request(authorization=b"Bearer drv_good"), "key"),
        (Request(authorization=b"bearer  drv_good "), "key"),
        (Request(authorization=b"Bearer drv_good "), "key"),
        (Request(x_api_key=b"drv_good"), "key"),
        (Request(authorization=b"Basic eDp5", x_api_key=b" drv_good "), "key"),
        (Request(authorization=b"Bearer drv_bad", x_api_key=b"drv_good"), "key"),
        (Request(authorization=b"Bearer none", certificate=("sha256:0", "cn:ann")), "cert"),
        (Request(certificate=("sha256:0", "dns:x", "cn:ann")), "cert"),
        (Request(authorization=b"Bearer drv_good", certificate=("cn:ann",)), "key"),
        (signed(), "ssh"),
        (Request(), Refusal("no_key")),
        (Request(authorization=b"Bearer "), Refusal("no_key")),
        (Request(authorization=b"Basic eDp5"), Refusal("no_key")),
        (Request(certificate=("sha256:0", "cn:eve")), Refusal("certificate_unknown")),
        (Request(authorization=b"Bearer drv_bad"), Refusal("key_unknown")),
        (Request(authorization=b"Bearer drv_old"), Refusal("key_expired")),
        (Request(certificate=("cn:bob",)), Refusal("key_expired")),
        (Request(authorization=b"drv_good"), Refusal("no_key")),
        (Request(authorization=hash_of("drv_good").encode()), Refusal("no_key")),
        (signed(signer=STRANGER), Refusal("key_unknown")),
        (signed(stamp=int(NOW) - 61), Refusal("signature_clock")),
        (signed(stamp=int(NOW) + 61), Refusal("signature_clock")),
        (Request(query=b"ts=1", authorization=SHOWN), Refusal("signature_clock")),
        (Request(authorization=SHOWN), Refusal("signature_without_time")),
    ],
)  # fmt: skip
def test_who_comes_in(door, request_, outcome):
    """By a key, a signature or a certificate that is known and in time, or not at all."""
    entered = door.enter(request_)

    assert (entered.name if isinstance(entered, Caller) else entered) == outcome
    assert sum(door.refusals.values()) == isinstance(outcome, Refusal)


def test_an_open_door():
    """Without a keys file everybody is anybody."""
    assert Door(None, 60.0).enter(Request()) is ANYBODY


def test_other_keys_are_in_force_at_once(door):
    """After a change of the ring, whoever isn't in it is nobody; back in it, nothing signed is good again."""
    assert door.enter(signed()).name == "ssh"
    ring = door.ring
    door.change(KeyRing(()))
    assert door.enter(signed()) == Refusal("key_unknown")
    door.change(ring)
    assert door.enter(signed(client="10.0.0.2")).reason == "signature_replayed"


def test_any_other_signature_is_wrong(door):
    """One bit of it, of the method, the path or the time, and it isn't that signature any more."""
    good = signed()
    shown = good.headers[b"authorization"]
    key, _, signature = shown.partition(b":")
    raw = bytearray(base64.b64decode(signature))
    raw[3] ^= 1
    bent = key + b":" + base64.b64encode(raw)
    for changed in (
        Request(query=good.query, authorization=bent),
        Request(query=good.query, authorization=shown, method=b"HEAD"),
        Request(query=good.query, authorization=shown, path=b"/api/ps"),
        Request(query=b"ts=%d" % (NOW + 1), authorization=shown),
    ):
        assert door.enter(changed).reason == "signature_wrong"
    assert door.enter(good).name == "ssh"


def test_a_replay_is_refused_and_a_repetition_is_not(door):
    """The same words again, within a moment and from the same address, are the command's own."""
    assert door.enter(signed()).name == "ssh"
    door.monotonic = lambda: 1000.0 + REPEAT_SECONDS
    assert door.enter(signed()).name == "ssh"
    assert door.enter(signed(client="10.0.0.2")).reason == "signature_replayed"
    door.monotonic = lambda: 1000.1 + REPEAT_SECONDS
    assert door.enter(signed()).reason == "signature_replayed"
    assert door.enter(signed("/api/ps")).name == "ssh"


def test_a_replay_is_refused_as_long_as_its_time_is_good(door):
    """A stamp from the future is remembered until it has passed too, then forgotten."""
    early = signed(stamp=int(NOW) + 60)
    assert door.enter(early).name == "ssh"
    for later in (60.0, 119.0, 120.0):
        door.monotonic, door.clock = lambda later=later: 1000.0 + later, lambda later=later: NOW + later
        assert door.enter(early).reason == "signature_replayed"
    door.monotonic, door.clock = lambda: 1121.0, lambda: NOW + 121.0
    assert door.enter(early).reason == "signature_clock"
    assert door.enter(signed(stamp=int(NOW) + 121)).name == "ssh"
    far = NOW + 121.0 + SPAN_SECONDS
    door.clock = lambda: far
    assert door.enter(signed(stamp=int(far) + 60)).name == "ssh"
    assert len(door.signatures.replays) == 2


def test_the_memory_of_signatures_is_bounded(door):
    """A key that signs more than anybody asks is refused, and goes on when the first ones are forgotten."""
    for number in range(REMEMBERED):
        assert door.enter(signed(f"/x/{number}")).name == "ssh"
    assert door.enter(signed("/one/more")).reason == "signature_too_many"
    assert door.enter(Request(authorization=b"Bearer drv_good")).name == "key"
    assert len(door.signatures.replays) == REMEMBERED
    door.monotonic, door.clock = lambda: 1200.0, lambda: NOW + 200
    assert door.enter(signed("/one/more", stamp=int(NOW) + 200)).name == "ssh"


@given(st.binary(max_size=200))
def test_no_field_troubles_the_door(junk):
    """Whatever stands in Authorization or the query, it is no signature, and raises nothing."""
    assert read_signed(junk) is None or len(junk) > 150
    assert from_wire(junk) is None
    assert stamp_of(junk) is None or junk.startswith(b"ts=")
    door = Door(KeyRing(()), 60.0)
    assert isinstance(door.enter(Request(authorization=junk, x_api_key=junk, query=junk)), Refusal)


@pytest.mark.parametrize(
    ("query", "stamp"),
    [
        (b"ts=1767225600", 1767225600),
        (b"ts=", None), (b"ts=-1", None), (b"ts=1.5", None), (b"ts=1&x=2", None), (b"TS=1", None),
        (b"", None),
        (b"x=1&ts=1", None), (b"ts=%31", None), (b"ts=1 ", None), (b"ts=9999999999999", None),
        ("ts=\u0661".encode(), None),
    ],
)  # fmt: skip
def test_the_time_of_a_signature(query, stamp):
    """Whole seconds and nothing else: what was signed is then what stands there."""
    assert stamp_of(query) == stamp


# Slowing down.


def test_a_few_wrong_tries_are_free_and_more_wait_longer():
    """The delay doubles up to its bound, and is forgotten when the address is quiet for a while."""
    throttle = Throttle()
    delays = [throttle.wrong("10.0.0.1", 100.0) for _ in range(FREE_TRIES + 8)]

    assert delays[:FREE_TRIES] == [0.0] * FREE_TRIES
    assert all(
        later > sooner for sooner, later in zip(delays[FREE_TRIES - 1 :], delays[FREE_TRIES:-3], strict=False)
    )
    assert delays[-1] == MAX_DELAY_SECONDS
    assert throttle.wrong("10.0.0.2", 100.0) == 0.0
    assert throttle.wrong("10.0.0.1", 100.0 + 12 * 12) == 0.0


def test_the_table_of_addresses_is_bounded():
    """A flood of addresses pushes out the quiet ones, and never grows beyond its bound."""
    throttle = Throttle()
    for _ in range(FREE_TRIES + 3):
        throttle.wrong("guesser", 0.0)
    for number in range(ADDRESSES * 2):
        throttle.wrong(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 1.0)
        if number % 1000 == 0:
            assert throttle.wrong("guesser", 1.0) > 0
    assert len(throttle) == ADDRESSES


@pytest.mark.parametrize(
    ("client", "name"),
    [
        ("10.0.0.1", "10.0.0.1"), ("unix", "unix"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"), ("::ffff:10.0.0.1", "10.0.0.1"),
        ("fe80::1%eth0", "fe80::/64"), ("a:b", "a:b"),
    ],
)  # fmt: skip
def test_by_what_an_address_is_counted(client, name):
    """IPv6 by its network: within it addresses cost nothing."""
    assert network_of(client) == name


async def test_who_waits_is_answered_or_gone(door):
    """Places are bounded in all and for each address; answering or leaving gives them back."""
    answered = []
    overs = [door.later("10.0.0.1", 60.0, lambda: answered.append(1)) for _ in range(WAITING_PER_ADDRESS)]
    assert not answered
    assert door.later("10.0.0.1", 60.0, lambda: answered.append("at once")) is None
    assert answered == ["at once"]
    assert door.throttle.waiting == WAITING_PER_ADDRESS
    for over in overs:
        over()
    assert door.throttle.waiting == 0

    others = [door.later(f"10.0.1.{n % 250}", 60.0, list) for n in range(WAITING)]
    assert door.later("10.0.2.1", 60.0, lambda: answered.append("full")) is None
    assert answered == ["at once", "full"]
    for over in others:
        over()
    told = asyncio.Event()
    over = door.later("10.0.0.1", 0.001, told.set)
    await asyncio.wait_for(told.wait(), 5)
    over()
    assert door.throttle.waiting == 0
    assert door.slowed == WAITING_PER_ADDRESS + WAITING + 1
