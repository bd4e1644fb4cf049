"""The signature that the stock `ollama` command makes with OLLAMA_AUTH=1.

    GET /api/tags?ts=1767225600
    Authorization: <public key, base64 of SSH's wire form>:<ed25519 signature, base64>

What is signed is `METHOD,PATH?ts=SECONDS`: neither the body nor the host. So a signature is good for a short
time, and a second time only if it can be the command's own doing: it stamps whole seconds, and two of its
requests within one second for the same path are the same byte for byte. A repetition is taken within
REPEAT_SECONDS of the first, from the same address; any other is a replay.
"""

from __future__ import annotations

import base64
import binascii
from typing import NamedTuple

from drover_proxy.guard.replay import Replays
from drover_proxy.guard.sshkey import from_wire

SIGNATURE_BYTES = 64
STAMP_DIGITS = 12


class Signed(NamedTuple):
    """An Authorization field that has the form of a signature."""

    signer: bytes
    """The public key's 32 bytes."""
    signature: bytes


def read_signed(authorization: bytes) -> Signed | None:
    """Take the field apart; None for anything that isn't `KEY:SIGNATURE`."""
    key, colon, signature = authorization.partition(b":")
    signer = from_wire(key) if colon else None
    if signer is None:
        return None
    try:
        raw = base64.b64decode(signature, validate=True)
    except (binascii.Error, ValueError):
        return None
    return Signed(signer, raw) if len(raw) == SIGNATURE_BYTES else None


def stamp_of(query: bytes) -> int | None:
    """Return the time that a query names; None unless it is `ts=SECONDS` and nothing else."""
    stamp = query[3:]
    if not query.startswith(b"ts=") or not stamp.isdigit() or len(stamp) > STAMP_DIGITS:
        return None
    return int(stamp)


def verifies(signer: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the signature over the message was made with the key."""
    # Loaded with the first signed request: most proxies never see one.
    from nacl.exceptions import BadSignatureError  # noqa: PLC0415
    from nacl.signing import VerifyKey  # noqa: PLC0415

    try:
        VerifyKey(signer).verify(message, signature)
    except (BadSignatureError, ValueError):
        return False
    return True


class Signatures:
    """Judges signed requests."""

    def __init__(self, window_seconds: float) -> None:
        self.window_seconds = window_seconds
        """How far the client's clock may be from ours, either way."""
        self.replays = Replays()

    def fault(
        self,
        signed: Signed,
        method: bytes,
        target: tuple[bytes, bytes],
        client: str,
        times: tuple[float, float],
    ) -> str:
        """Say why a signed request of a known key isn't taken; "" when it is.

        Args:
            signed: what the request shows.
            method: its method.
            target: its path and its query, as they came.
            client: the address it came from.
            times: the wall clock, and the monotonic one.
        """
        path, query = target
        wall, now = times
        stamp = stamp_of(query)
        if stamp is None:
            return "signature_without_time"
        if abs(wall - stamp) > self.window_seconds:
            return "signature_clock"
        message = b"%b,%b?%b" % (method, path, query)
        if not verifies(signed.signer, message, signed.signature):
            return "signature_wrong"
        if self.replays.blank and stamp <= wall - now + self.window_seconds:
            return "signature_before_boot"  # it may have been taken then: `now` began with the boot
        oldest = wall - self.window_seconds
        return self.replays.fault(signed.signer, message, stamp, client, now=now, oldest=oldest)
