"""Decides who comes in: by a key, by the signature of the `ollama` command, or by a client certificate.

Every request passes here, so that the usual way, a bearer token that is known, costs one SHA-256, one look-up
and one comparison, and says nothing to anybody. What the others get is the same for all of them.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple, Protocol

from drover_proxy.guard.keys import ANYBODY, Caller, KeyRing
from drover_proxy.guard.signature import Signatures, read_signed
from drover_proxy.guard.throttle import Throttle

MESSAGE = "a valid key is needed: Authorization: Bearer <key>"
"""For everybody who is kept out: an unknown, a revoked and an expired key can't be told apart."""


class Asking(Protocol):
    """What the door looks at: an `Exchange`, or anything like it."""

    method: bytes
    path: bytes
    query: bytes
    client: str

    def header(self, name: bytes, /) -> bytes | None:
        """Give the first value of a field; the name in lower case."""

    @property
    def certificate(self) -> tuple[str, ...]:
        """Give the names of the client's certificate, checked by TLS."""


class Refusal(NamedTuple):
    """Somebody is kept out. The reason is for the log and the metrics, never for the answer."""

    reason: str
    delay_seconds: float = 0.0


class Door:
    """Knows the keys in force, and remembers wrong tries and signed requests."""

    def __init__(self, ring: KeyRing | None, signature_seconds: float) -> None:
        self.ring = ring
        """None: no keys are configured, and everybody may come in."""
        self.signatures = Signatures(signature_seconds)
        self.throttle = Throttle()
        self.refusals: Counter[str] = Counter()
        """By reason."""
        self.slowed = 0
        """Answers that had to wait."""
        self.clock = time.time
        self.monotonic = time.monotonic

    def change(self, ring: KeyRing | None) -> None:
        """Put other keys in force, from the next request on."""
        self.ring = ring

    def enter(self, ex: Asking) -> Caller | Refusal:
        """Say who asks, or that nobody does whom we know."""
        ring = self.ring
        if ring is None:
            return ANYBODY
        shown = ex.header(b"authorization")
        if shown is not None and shown[:7] == b"Bearer ":
            caller = ring.by_key(shown[7:])
            if caller is not None and self.in_time(caller):
                return caller
        return self._other_ways(ring, ex, shown)

    def knows(self, ex: Asking) -> bool:
        """Whether one who was let in showed a key, or needs none: another request like it will be let in.

        A signature has to be looked at each time, since it may be a replay.
        """
        return self.ring is None or (ex.header(b"authorization") or b"")[:7] == b"Bearer "

    def in_time(self, caller: Caller) -> bool:
        """Whether a caller's time isn't over."""
        return caller.expires_at is None or self.clock() < caller.expires_at

    def later(self, client: str, seconds: float, answer: Callable[[], None]) -> Callable[[], None] | None:
        """Have somebody answered who is kept out, after a while where the refusal asks for it.

        What is returned is to be called when the request is over, however it ended; None: it was answered.
        """
        if not seconds or not self.throttle.hold(client):
            answer()
            return None
        self.slowed += 1
        timer = asyncio.get_running_loop().call_later(seconds, answer)

        def over() -> None:
            timer.cancel()
            self.throttle.release(client)

        return over

    def _other_ways(self, ring: KeyRing, ex: Asking, shown: bytes | None) -> Caller | Refusal:
        """Try what is rarer, and what is wrong."""
        reason = "no_key"
        for caller, fault in self._shown(ring, ex, shown):
            if not fault and caller is not None and self.in_time(caller):
                return caller
            if reason == "no_key":  # the first thing that was shown is what was meant
                reason = fault or "key_expired"
        self.refusals[reason] += 1
        if reason in {"no_key", "certificate_unknown"}:  # asked without trying: health checks do
            return Refusal(reason)
        return Refusal(reason, self.throttle.wrong(ex.client, self.monotonic()))

    def _shown(
        self, ring: KeyRing, ex: Asking, authorization: bytes | None
    ) -> list[tuple[Caller | None, str]]:
        """Look at everything that a request shows: whose it is, or what is wrong with it."""
        found: list[tuple[Caller | None, str]] = []
        scheme, _, value = (authorization or b"").partition(b" ")
        if scheme.lower() == b"bearer" and value.strip():
            found.append(_known(ring.by_key(value.strip())))
        elif authorization and b":" in authorization:
            found.append(self._signed(ring, ex, authorization))
        if key := (ex.header(b"x-api-key") or b"").strip():
            found.append(_known(ring.by_key(key)))
        if names := ex.certificate:
            owners = (ring.by_certificate.get(name) for name in names)
            owner = next((owner for owner in owners if owner is not None), None)
            found.append((owner, "" if owner else "certificate_unknown"))
        return found

    def _signed(self, ring: KeyRing, ex: Asking, authorization: bytes) -> tuple[Caller | None, str]:
        signed = read_signed(authorization)
        caller = ring.by_signer.get(signed.signer) if signed else None
        if signed is None or caller is None:
            return None, "key_unknown"
        times = self.clock(), self.monotonic()
        return caller, self.signatures.fault(signed, ex.method, (ex.path, ex.query), ex.client, times)


def _known(caller: Caller | None) -> tuple[Caller | None, str]:
    return caller, "" if caller else "key_unknown"
