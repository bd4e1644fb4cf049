"""Slows down who tries keys: the answer to a wrong one waits, longer with each, and never a right one.

A bucket an address, that leaks: a few wrong tries a minute cost nothing (an old key in a script, a typing
mistake), each one above that doubles the wait. Nothing is refused for its address, since many callers may
share one; keys can't be guessed anyway, and this keeps the attempt quiet and cheap.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass

from drover_proxy.wire.forwarding import network_of

FREE_TRIES = 5
"""Wrong tries a minute and address that are answered at once."""
FIRST_DELAY_SECONDS = 0.25
MAX_DELAY_SECONDS = 5.0
"""Below what clients take for a dead server."""
ADDRESSES = 4096
"""Addresses remembered; beyond, the one that was quiet the longest is forgotten."""
WAITING = 512
"""Answers that wait at once, as each holds its connection; one more is given without waiting."""
WAITING_PER_ADDRESS = 16
MOST_TRIES = FREE_TRIES + 7.0
"""The bucket holds no more, so that who stops is at the free tries again within a minute and a half."""


@dataclass(slots=True)
class _Bucket:
    level: float
    at: float


class Throttle:
    """Counts wrong tries."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._waiting: Counter[str] = Counter()

    def __len__(self) -> int:
        """Return how many addresses are remembered."""
        return len(self._buckets)

    @property
    def waiting(self) -> int:
        """How many answers wait."""
        return self._waiting.total()

    def wrong(self, client: str, now: float) -> float:
        """Note a wrong try; return how many seconds its answer shall wait."""
        name = network_of(client)
        bucket = self._buckets.pop(name, None) or _Bucket(0.0, now)
        self._buckets[name] = bucket  # at the end: the first one is the quietest
        if len(self._buckets) > ADDRESSES:
            self._buckets.popitem(last=False)
        leaked = (now - bucket.at) * FREE_TRIES / 60.0
        bucket.level = min(MOST_TRIES, max(0.0, bucket.level - leaked) + 1.0)
        bucket.at = now
        above = bucket.level - FREE_TRIES
        if above <= 0:
            return 0.0
        return float(min(MAX_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2**above))

    def hold(self, client: str) -> bool:
        """Take a place among the answers that wait; False when there is none. `release` gives it back."""
        name = network_of(client)
        if self._waiting.total() >= WAITING or self._waiting[name] >= WAITING_PER_ADDRESS:
            return False
        self._waiting[name] += 1
        return True

    def release(self, client: str) -> None:
        """Give a place back."""
        name = network_of(client)
        self._waiting[name] -= 1
        if self._waiting[name] <= 0:
            del self._waiting[name]
