"""The log's lines about requests that were turned down: the first few of each address, then counts.

Whoever asks without a key, a thousand times a second, must not fill the disk, nor hide what else is in the
log. The metrics count everything, also what is summed up here.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from drover_proxy.drivers.log import Log
from drover_proxy.wire.forwarding import network_of

WINDOW_SECONDS = 60.0
LINES_PER_ADDRESS = 5
"""Lines of one code in a window; more of the same tell nothing new."""
LINES = 100
"""Lines of one code in a window, from all addresses together."""
ADDRESSES = 1024
"""Addresses whose further rejections are counted one by one; those of the others are in the sum only."""
NAMED = 5
"""Addresses that the summary names: those with the most."""


class Rejections:
    """Writes `rejected` lines, and once a window `rejected_more` for those that it held back."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._told: Counter[tuple[str, str]] = Counter()
        """Lines written, by code and address; by code alone under the address ""."""
        self._codes: Counter[str] = Counter()
        """Held back."""
        self._clients: Counter[str] = Counter()
        self._window: asyncio.TimerHandle | None = None

    def tell(self, client: str, code: str, **fields: Any) -> bool:
        """Write the line, or count it; returns whether it was written."""
        if not self._log.tells("info"):
            return False
        if self._window is None:
            self._window = asyncio.get_running_loop().call_later(WINDOW_SECONDS, self.sum_up)
        who, told = network_of(client), self._told
        if told[code, ""] < LINES and told[code, who] < LINES_PER_ADDRESS:
            told[code, ""] += 1
            told[code, who] += 1
            self._log.info("rejected", code=code, client=client, **fields)
            return True
        self._codes[code] += 1
        if who in self._clients or len(self._clients) < ADDRESSES:
            self._clients[who] += 1
        return False

    def sum_up(self) -> None:
        """End the window: tell what was held back in it, if anything was."""
        if self._window is not None:
            self._window.cancel()
            self._window = None
        if self._codes:
            self._log.info(
                "rejected_more",
                seconds=int(WINDOW_SECONDS),
                count=self._codes.total(),
                codes=dict(self._codes.most_common()),
                addresses=len(self._clients),
                most=dict(self._clients.most_common(NAMED)),
            )
        for counter in (self._told, self._codes, self._clients):
            counter.clear()
