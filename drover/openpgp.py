"""Fingerprints of OpenPGP public keys, read from the key file itself: no gpg is needed to check a key."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterator

from drover.errors import DroverError

BEGIN = "-----BEGIN PGP PUBLIC KEY BLOCK-----"
END = "-----END PGP PUBLIC KEY BLOCK-----"
PUBLIC_KEY_TAG = 6


def binary(data: bytes) -> bytes:
    """Return the key file without its armour; a binary one as it is."""
    if not data.lstrip().startswith(BEGIN.encode()):
        return data
    body = b""
    for block in data.decode("ascii", errors="replace").split(BEGIN)[1:]:
        lines = block.split(END)[0].replace("\r", "").split("\n\n", 1)[-1].splitlines()
        text = "".join(line for line in lines if line and not line.startswith("="))
        try:
            body += base64.b64decode(text, validate=True)
        except binascii.Error:
            raise DroverError("the armour of the key is damaged") from None
    return body


def _length(data: bytes, at: int, *, new_format: bool, kind: int) -> tuple[int, int]:
    """Return a packet's body length and where the body starts."""
    if not new_format:
        size = (1, 2, 4)[kind]
        return int.from_bytes(data[at : at + size]), at + size
    first = data[at]
    if first < 192:
        return first, at + 1
    if first < 224:
        return ((first - 192) << 8) + data[at + 1] + 192, at + 2
    return int.from_bytes(data[at + 1 : at + 5]), at + 5


def _packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        header = data[at]
        if not header & 0x80:
            raise DroverError("not an OpenPGP key")
        new_format = bool(header & 0x40)
        tag = header & 0x3F if new_format else (header >> 2) & 0x0F
        length, at = _length(data, at + 1, new_format=new_format, kind=header & 0x03)
        if at + length > len(data):
            raise DroverError("the key is cut off")
        yield tag, data[at : at + length]
        at += length


def fingerprints(data: bytes) -> list[str]:
    """Return the fingerprint of each primary key in a key file, as 40 upper-case hexadecimal digits."""
    found = []
    try:
        for tag, body in _packets(binary(data)):
            if tag == PUBLIC_KEY_TAG and body[0] == 4:
                frame = b"\x99" + len(body).to_bytes(2) + body
                found.append(hashlib.sha1(frame, usedforsecurity=False).hexdigest().upper())
    except IndexError:
        raise DroverError("the key is cut off") from None
    if not found:
        raise DroverError("no OpenPGP public key in it")
    return found


def check(data: bytes, expected: str, where: str) -> bytes:
    """Return the key without armour when every key in the file is the expected one; DroverError otherwise."""
    wanted = expected.replace(" ", "").upper()
    try:
        found = fingerprints(data)
    except DroverError as error:
        raise DroverError(f"{where}: {error}") from None
    if set(found) != {wanted}:
        raise DroverError(f"{where}: expected the key {wanted}, got {', '.join(found)}")
    return binary(data)
