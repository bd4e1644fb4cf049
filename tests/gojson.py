"""Reads a JSON object as Go's encoding/json reads it into a struct, which is how Ollama reads bodies."""

from __future__ import annotations

import json
from typing import Any

LOOKALIKES = str.maketrans({"\u212a": "k", "\u017f": "s"})
"""The two characters outside ASCII that Go folds to an ASCII letter: the Kelvin sign and the long s."""


def fold(name: str) -> str:
    """Return a field's name as Go compares it."""
    return "".join(c.lower() if c.isascii() else c for c in name.translate(LOOKALIKES))


def fields_of(body: bytes, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the fields of these names: the last one counts, however it is spelt, and null changes nothing.

    The last one counts also for objects, which Go merges into a map that is there already.
    """
    # Like json.Decoder, which gin uses: what follows the first value isn't looked at.
    pairs, _ = json.JSONDecoder(object_pairs_hook=list).raw_decode(body.decode(errors="replace").lstrip())
    found: dict[str, Any] = {}
    for key, value in pairs:
        if fold(key) in names and value is not None:
            found[fold(key)] = value
    return found
