"""The story: a bounded log of what happened to whom, for errors and for `explain`.

Entries are kept unformatted, because one is made several times a request and almost none is ever read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from enum import Enum
from typing import Any, NamedTuple

KEPT = 4000


class Entry(NamedTuple):
    """One thing that happened."""

    now: float
    request: Hashable | None
    model: str | None
    what: Any  # not `object`: compiled, the class asks for each field's type by name

    def __str__(self) -> str:
        who = " ".join(str(part) for part in (self.request, self.model) if part is not None)
        return f"{self.now:.3f} {who}: {self.text}"

    @property
    def text(self) -> str:
        """What happened, in words."""
        return str(self.what.value if isinstance(self.what, Enum) else self.what)


Told = tuple[float, Hashable | None, str | None, object]
"""An entry as it is kept: plain, since several are made for every request."""


class Story:
    """The last entries; `of` picks those of one request or model."""

    __slots__ = ("_append", "entries")

    def __init__(self) -> None:
        self.entries: deque[Told] = deque(maxlen=KEPT)
        self._append = self.entries.append

    def tell(
        self, now: float, what: object, *, request: Hashable | None = None, model: str | None = None
    ) -> None:
        """Add an entry."""
        self._append((now, request, model, what))

    def of(self, *, request: Hashable | None = None, model: str | None = None) -> tuple[Entry, ...]:
        """Return the entries that name the request or the model, oldest first."""
        return tuple(
            Entry(*told)
            for told in self.entries
            if (request is not None and told[1] == request) or (model is not None and told[2] == model)
        )
