"""The door: nobody comes in who doesn't show a key as it is, or a signature over this very request.

Input: lines with the method, the path, the query, Authorization and X-Api-Key.
"""

from __future__ import annotations

import base64
import hashlib

from drover_proxy.guard.door import Door
from drover_proxy.guard.keys import Caller, KeyRing
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey

NOW = 1_767_225_600
GOOD, OLD = b"drv_good", b"drv_old"
SIGNER = SigningKey(b"\x01" * 32)
WIRE = b"\0\0\0\x0bssh-ed25519\0\0\0 " + bytes(SIGNER.verify_key)
WINDOW_SECONDS = 60


def ring() -> KeyRing:
    """Know one key, one that has expired, and one signer."""
    everything = frozenset({"use"}), ("*",)
    return KeyRing(
        (
            Caller("key", *everything, sha256=hashlib.sha256(GOOD).hexdigest()),
            Caller("old", *everything, sha256=hashlib.sha256(OLD).hexdigest(), expires_at=NOW - 1),
            Caller("ssh", *everything, ssh=bytes(SIGNER.verify_key)),
        )
    )


RING = ring()


class Asking:
    """A request as the door sees it."""

    client = "192.0.2.1"
    certificate: tuple[str, ...] = ()

    def __init__(self, lines: list[bytes]) -> None:
        self.method, self.path, self.query, self.authorization, self.key = lines

    def header(self, name: bytes) -> bytes | None:
        """Give a field; None for an empty line."""
        return {b"authorization": self.authorization, b"x-api-key": self.key}.get(name) or None


def check(data: bytes) -> None:
    """Let a request knock twice: who comes in has shown what it takes, and comes in twice."""
    lines = data.split(b"\n")
    if len(lines) != 5:
        return
    door = Door(RING, float(WINDOW_SECONDS))
    door.clock, door.monotonic = lambda: float(NOW), lambda: 1000.0
    asking = Asking(lines)
    entered = door.enter(asking)
    assert isinstance(door.enter(asking), Caller) is isinstance(entered, Caller)
    if not isinstance(entered, Caller):
        assert asking.authorization != b"Bearer " + GOOD, "kept out in error"
        assert asking.key != GOOD, "kept out in error"
        return
    assert entered.name in {"key", "ssh"}, "its time was over"
    if entered.name == "key":
        scheme, _, value = asking.authorization.partition(b" ")
        assert (scheme.lower() == b"bearer" and value.strip() == GOOD) or asking.key.strip() == GOOD
    else:
        _signed(asking)


def _signed(asking: Asking) -> None:
    """See by ourselves that the request was signed, and when."""
    key, _, signature = asking.authorization.partition(b":")
    assert base64.b64decode(key) == WIRE
    stamp = asking.query.removeprefix(b"ts=")
    assert asking.query.startswith(b"ts=")
    assert abs(int(stamp) - NOW) <= WINDOW_SECONDS
    message = asking.method + b"," + asking.path + b"?" + asking.query
    try:
        SIGNER.verify_key.verify(message, base64.b64decode(signature))
    except BadSignatureError:
        raise AssertionError("a signature over something else was taken") from None


def signed(method: bytes, path: bytes, stamp: int) -> bytes:
    """Sign a request."""
    query = b"ts=%d" % stamp
    signature = SIGNER.sign(method + b"," + path + b"?" + query).signature
    shown = base64.b64encode(WIRE) + b":" + base64.b64encode(signature)
    return b"\n".join((method, path, query, shown, b""))


def seeds() -> list[bytes]:
    """Every way to come in, and some that aren't."""
    start = b"POST\n/api/chat\n\n"
    shown = [b"Bearer " + GOOD, b"bearer  " + GOOD + b" ", b"Bearer " + OLD, b"Basic eDp5", b"a:b", b":", b""]
    return [
        *(start + authorization + b"\n" for authorization in shown),
        *(start + b"\n" + key for key in (GOOD, b" " + GOOD, OLD, b"x")),
        start + b"Bearer none\n" + GOOD,
        *(signed(b"GET", b"/api/tags", NOW + late) for late in (0, 60, -60, 61, -61)),
        signed(b"GET", b"/api/tags", NOW).replace(b"GET", b"POST"),
        signed(b"POST", b"/api/chat", NOW).replace(b"ts=", b"ts=0"),
        signed(b"POST", b"/api/chat", NOW).replace(b":", b"="),
    ]
