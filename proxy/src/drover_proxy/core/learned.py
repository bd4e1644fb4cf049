"""What the scheduler has learned that outlives a restart of the proxy.

The core hands it out (command Remember) whenever a load has taught it something, and takes it back when it is
made. Where it was kept is the shell's business. Should it be out of date, nothing breaks: a size too small
spills once and is learned anew, one too large evicts more than it must until the next load.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SIZES_MOST = 1000
"""Sizes that are kept, the latest."""


@dataclass(frozen=True, slots=True)
class LearnedSize:
    """What a model took when it was loaded in this way."""

    blob: str
    context: int
    slots: int
    gpus: int
    kv_type: str
    total_bytes: int
    floor: bool = False
    """It spilled: at least so much, rather than exactly."""


@dataclass(frozen=True, slots=True)
class LearnedBook:
    """What a runner that is still loaded left free by Ollama's books, see beside.py."""

    instance: str
    blob: str
    context: int
    reported_bytes: int
    """Of all GPUs together: the runner is known again by it."""
    left_bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Learned:
    """All of it."""

    sizes: tuple[LearnedSize, ...] = ()
    books: tuple[LearnedBook, ...] = ()
