"""The memory of each GPU: what NVML last showed, what is promised, what runners hold, what is coming back.

NVML is the truth, but it is late: a load fills memory bit by bit, and memory that Ollama says it has freed
comes back up to seconds later. So a sample counts only when it was taken after the last thing that changed
the GPU's memory, and what an unload should give back is expected for a limited time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from drover_proxy.core.config import MIB, Gpu
from drover_proxy.core.events import GpuMemory

NEVER = float("-inf")
SETTLED_BYTES = 256 * MIB
"""Missing no more than this, a release is complete: what a runner holds is partly a guess."""
SETTLED_FRACTION = 0.05


class RunnerKey(NamedTuple):
    """Identity of a runner: names that share a blob share it."""

    instance: str
    blob: str


@dataclass(slots=True)
class Promise:
    """Memory of a load under way."""

    key: RunnerKey
    size_bytes: int
    free_before_bytes: int


@dataclass(slots=True)
class Release:
    """Memory that an unload will give back."""

    size_bytes: int
    missing_bytes: int
    until: float | None = None
    """When it stops being expected; None while the runner is still listed."""

    @property
    def settled(self) -> bool:
        """Whether as good as all of it has come back."""
        return self.missing_bytes <= max(SETTLED_BYTES, int(self.size_bytes * SETTLED_FRACTION))


@dataclass(slots=True)
class GpuBook:
    """The ledger's page of one GPU."""

    uuid: str
    total_bytes: int
    free_bytes: int | None = None
    settled_bytes: int | None = None
    """What must be free now that a load has taken all of its memory, unseen yet; None: what was seen last."""
    foreign_bytes: int = 0
    sampled_at: float = NEVER
    changed_at: float = NEVER
    promise: Promise | None = None
    charges: dict[RunnerKey, int] = field(default_factory=dict)
    releases: dict[RunnerKey, Release] = field(default_factory=dict)

    @property
    def booked_free_bytes(self) -> int:
        """What should be free by our own books, for when NVML says nothing."""
        promised = self.promise.size_bytes if self.promise else 0
        return max(0, self.total_bytes - sum(self.charges.values()) - promised - self.foreign_bytes)


class Ledger:
    """All GPUs. Only the transitions of runners write to it, besides NVML's samples."""

    def __init__(self, gpus: Iterable[Gpu], timeout_seconds: float) -> None:
        self.books = {gpu.uuid: GpuBook(gpu.uuid, gpu.total_bytes) for gpu in gpus}
        self.timeout_seconds = timeout_seconds
        self.begun = False

    def begin(self, now: float) -> None:
        """Start the clock by which missing samples are noticed; only the first call counts."""
        if not self.begun:
            self.begun = True
            for book in self.books.values():
                book.changed_at = now

    def observe(self, uuid: str, memory: GpuMemory, sampled_at: float) -> None:
        """Take a sample, unless it is older than the last. What became free settles releases, in order."""
        book = self.books.get(uuid)
        if book is None or sampled_at < book.sampled_at:
            return
        before = book.free_bytes
        if book.settled_bytes is not None and sampled_at > book.changed_at:
            before, book.settled_bytes = book.settled_bytes, None
        risen = memory.free_bytes - before if before is not None else 0
        for key, release in tuple(book.releases.items()):
            taken = min(max(0, risen), release.missing_bytes)
            release.missing_bytes -= taken
            risen -= taken
            if release.settled and release.until is not None:
                del book.releases[key]
        book.total_bytes = memory.total_bytes
        book.free_bytes = memory.free_bytes
        book.foreign_bytes = memory.foreign_bytes
        book.sampled_at = sampled_at

    def fresh(self, uuid: str, now: float) -> bool:
        """Whether the last sample tells what is true now."""
        book = self.books[uuid]
        return (
            book.free_bytes is not None
            and book.sampled_at > book.changed_at
            and now - book.sampled_at <= self.timeout_seconds
        )

    def free(self, uuid: str, now: float) -> int | None:
        """Return what is free: NVML's word when it is fresh, None while a fresh one can be waited for.

        After the timeout our own books stand in.
        """
        book = self.books[uuid]
        if self.fresh(uuid, now):
            return book.free_bytes
        if now - max(book.changed_at, book.sampled_at) <= self.timeout_seconds:
            return None
        return book.booked_free_bytes

    def prospective(self, uuid: str) -> int:
        """Return what will be free once the load under way has taken all it was promised."""
        book = self.books[uuid]
        free = book.booked_free_bytes if book.free_bytes is None else book.free_bytes
        if book.promise is not None:
            free = min(free, book.promise.free_before_bytes - book.promise.size_bytes)
        return max(0, free) + self.coming(uuid)

    def coming(self, uuid: str) -> int:
        """Return what unloads will still give back."""
        return sum(release.missing_bytes for release in self.books[uuid].releases.values())

    def promise(self, key: RunnerKey, shares: Mapping[str, int], now: float) -> None:
        """Promise memory to a load."""
        for uuid, size in shares.items():
            book = self.books[uuid]
            if book.promise is not None:
                raise ValueError(f"GPU {uuid} already has a load under way: {book.promise.key}")
            free = self.free(uuid, now)
            book.promise = Promise(key, size, book.booked_free_bytes if free is None else free)
            book.changed_at = now

    def keep(self, key: RunnerKey, shares: Mapping[str, int], now: float) -> None:
        """Turn a promise into what the loaded runner holds; also books an adopted runner."""
        for uuid, size in shares.items():
            book = self.books[uuid]
            if book.promise is not None and book.promise.key == key:
                # What a load takes must not hide what an unload at the same time gives back.
                left = book.promise.free_before_bytes - size
                book.settled_bytes = left if book.free_bytes is None else min(book.free_bytes, left)
                book.promise = None
                book.changed_at = now
            book.charges[key] = size

    def break_promise(self, key: RunnerKey, now: float) -> None:
        """Forget the promise of a load that failed. What it had taken by the last sample will come back."""
        for book in self.books.values():
            promise = book.promise
            if promise is None or promise.key != key:
                continue
            book.promise = None
            book.changed_at = now
            if book.free_bytes is not None:
                taken = min(promise.size_bytes, promise.free_before_bytes - book.free_bytes)
                release = Release(promise.size_bytes, max(0, taken), now + self.timeout_seconds)
                if not release.settled:
                    book.releases[key] = release

    def expect(self, key: RunnerKey) -> None:
        """An unload was sent: what the runner holds will come back."""
        for book in self.books.values():
            size = book.charges.get(key)
            if size is not None:
                book.releases[key] = Release(size, size)

    def stop_expecting(self, key: RunnerKey) -> None:
        """The unload failed."""
        for book in self.books.values():
            book.releases.pop(key, None)

    def let_go(self, key: RunnerKey, now: float) -> None:
        """The runner is gone: its memory may come until the timeout, and older samples don't count."""
        for book in self.books.values():
            size = book.charges.pop(key, None)
            if size is None:
                continue
            book.changed_at = now
            release = book.releases.setdefault(key, Release(size, size))
            release.until = now + self.timeout_seconds
            if release.settled:
                del book.releases[key]

    def expire(self, now: float) -> list[tuple[str, RunnerKey, int]]:
        """Give up on releases that are overdue; return GPU, runner and what is missing of each."""
        overdue = [
            (book.uuid, key, release.missing_bytes)
            for book in self.books.values()
            for key, release in book.releases.items()
            if release.until is not None and now >= release.until
        ]
        for uuid, key, _ in overdue:
            del self.books[uuid].releases[key]
        return overdue

    def shares_of(self, key: RunnerKey) -> dict[str, int]:
        """Return what a runner holds on each GPU."""
        return {book.uuid: book.charges[key] for book in self.books.values() if key in book.charges}

    def promised(self, key: RunnerKey) -> dict[str, int]:
        """Return what a load was promised on each GPU."""
        return {
            book.uuid: book.promise.size_bytes
            for book in self.books.values()
            if book.promise is not None and book.promise.key == key
        }
