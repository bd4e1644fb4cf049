"""Public keys as OpenSSH writes them, of the one kind that the stock `ollama` command signs with."""

from __future__ import annotations

import base64
import binascii

KIND = "ssh-ed25519"
KEY_BYTES = 32
_PREFIX = len(KIND).to_bytes(4, "big") + KIND.encode() + KEY_BYTES.to_bytes(4, "big")
"""Of every ed25519 key in SSH's wire form: two strings, each behind its length; the second is the key."""
WIRE_BYTES = len(_PREFIX) + KEY_BYTES
EXAMPLE = "ssh-ed25519 AAAA..., as in ~/.ollama/id_ed25519.pub"


def from_wire(encoded: bytes | str) -> bytes | None:
    """Return the 32 bytes of a key from its wire form in base64; None for anything else."""
    try:
        raw = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None
    if len(raw) != WIRE_BYTES or not raw.startswith(_PREFIX):
        return None
    return raw[len(_PREFIX) :]


def to_line(key: bytes) -> str:
    """Return a key as one line of an authorized_keys file, without a comment."""
    return f"{KIND} {base64.b64encode(_PREFIX + key).decode()}"


def read_line(text: str) -> bytes:
    """Read a public key as a .pub file or authorized_keys has it; ValueError says what it is instead."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise ValueError(f"there is no key in it; expected {EXAMPLE}")
    if "PRIVATE KEY" in lines[0]:
        raise ValueError(
            "this is a private key, which must stay where it is: give the file that ends in .pub"
        )
    if "BEGIN" in lines[0]:
        raise ValueError(f"this is not OpenSSH's form (ssh-keygen -i converts it); expected {EXAMPLE}")
    if len(lines) > 1:
        raise ValueError(f"there are {len(lines)} keys in it: give one at a time")
    words = lines[0].split()
    kind = words[0]
    if kind != KIND:
        raise ValueError(_other_kind(kind, words))
    key = from_wire(words[1]) if len(words) > 1 else None
    if key is None:
        raise ValueError(f"the key after {KIND} is damaged or cut off; expected {EXAMPLE}")
    return key


def _other_kind(kind: str, words: list[str]) -> str:
    if kind.startswith(("ssh-", "ecdsa-", "sk-")):
        return f"a key of the kind {kind}; the ollama command signs with {KIND} only: {EXAMPLE}"
    if KIND in words:
        return f"options before the key have no meaning here: begin with {KIND}"
    if len(words) == 1 and from_wire(kind):
        return f"write {KIND} and a blank before the key"
    return f"no public key; expected {EXAMPLE}"
