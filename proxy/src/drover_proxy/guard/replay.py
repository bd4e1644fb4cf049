"""Remembers signed requests as long as they could come again, also when the proxy is restarted meanwhile.

A reboot of the host is outlived by what lasting.py keeps.

What is kept of each is a record of 32 bytes, digests and a time, in a file for each half minute of the
clients' own stamps. The same request is always in the same file, so that nothing has to be moved at any
boundary, and a file is deleted as a whole when its half minute is too long ago.

During a restart two processes take requests side by side, and either may see a signature first. So each
appends its record and then reads what others have appended before it: the order in the file decides who was
first, without a lock. A page of the file holds whole records, so that a full disk can't leave half of one.
"""

from __future__ import annotations

import contextlib
import math
import os
import struct
from collections import Counter
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from drover_proxy.guard.lasting import PREFIX, Lasting, numbered

REPEAT_SECONDS = 3.0
"""The second that the command's stamp lasts, and two for the way here."""
REMEMBERED = 4096
"""Signed requests remembered for each key: 27 different paths in every second of two windows and a half."""
SPAN_SECONDS = 30
"""Stamps of one file."""
RECORD = struct.Struct("<12s4s8sd")
"""What was signed, with whose key, from where: digests; and when it came, on the host's monotonic clock."""
READ_BYTES = 1 << 16
LONG_AGO = -math.inf
"""When a request came that was taken before a reboot: the clock of records has begun anew."""


class Seen(NamedTuple):
    """When and from where a signed request came first."""

    at: float
    client: bytes


class Span:
    """The signed requests of one half minute, by the clients' clocks."""

    def __init__(self) -> None:
        self.seen: dict[bytes, Seen] = {}
        self.by_signer: Counter[bytes] = Counter()
        self._read_bytes = 0

    def take(self, message: bytes, signer: bytes, client: bytes, at: float) -> None:
        """Remember a request, unless it is there already."""
        if message not in self.seen:
            self.seen[message] = Seen(at, client)
            self.by_signer[signer] += 1

    def read_from(self, path: Path) -> None:
        """Take what has been appended to a file since it was last read."""
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.read(file)
        finally:
            os.close(file)

    def read(self, file: int) -> None:
        """Take what has been appended since it was last read."""
        while piece := os.pread(file, READ_BYTES, self._read_bytes):
            whole = len(piece) - len(piece) % RECORD.size
            for record in RECORD.iter_unpack(piece[:whole]):
                self.take(*record)
            self._read_bytes += whole
            if whole < READ_BYTES:
                break


class Replays:
    """Knows which signed requests came already."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._failed: Callable[[OSError], None] = lambda _error: None
        self._mute = False
        self._spans: dict[int, Span] = {}
        self._lasting: Lasting | None = None
        self.blank = False
        """Whether what was taken before the host was booted is unknown here."""

    def __len__(self) -> int:
        """Return how many are remembered here."""
        return sum(len(span.seen) for span in self._spans.values())

    def keep_in(self, folder: Path, failed: Callable[[OSError], None]) -> None:
        """Keep them in a folder as well, which a process before or beside this one may use too.

        Args:
            folder: Where; nobody else should see into it.
            failed: Told once when that can't be done. They are remembered in this process all the same.
        """
        self._folder, self._failed = folder, failed

    def outlive_reboots(self, lasting: Lasting) -> None:
        """Begin with what was taken before a reboot, and have kept what is taken from now on.

        To be called after `keep_in`: what is there as well came in this boot, and it is known when. OSError
        where nothing can be known or kept.
        """
        for number, records in lasting.read().items():
            span = self._spans[number] = Span()
            if self._folder is not None:
                with contextlib.suppress(OSError):  # not there; else the next use of it tells
                    span.read_from(self._folder / f"{PREFIX}{number}")
            whole = len(records) - len(records) % RECORD.size
            for what, whose, client, _ in RECORD.iter_unpack(records[:whole]):
                span.take(what, whose, client, LONG_AGO)
        self._lasting = lasting

    async def finish(self) -> None:
        """Have everything on the disk that is to outlive a reboot."""
        if self._lasting is not None:
            await self._lasting.finish()

    def fault(
        self, signer: bytes, message: bytes, stamp: int, client: str, *, now: float, oldest: float
    ) -> str:
        """Say why a request, whose signature is good, isn't taken; "" when it is, and then it is remembered.

        Args:
            signer: the public key.
            message: what was signed.
            stamp: the client's time, which is a part of it.
            client: the address it came from.
            now: the monotonic clock.
            oldest: a stamp before which nothing is taken any more, nor needs to be remembered.
        """
        number = stamp // SPAN_SECONDS
        span = self._spans.get(number)
        if span is None:
            self._forget(int(oldest // SPAN_SECONDS))
            span = self._spans[number] = Span()
        # Told apart by what was signed, not by the signature: whoever holds the key could make many of one.
        what = blake2b(signer + message, digest_size=12).digest()
        whose = blake2b(signer, digest_size=4).digest()
        mine = Seen(now, blake2b(client.encode(), digest_size=8).digest())
        if what not in span.seen and self._count(whose) >= REMEMBERED:
            return "signature_too_many"
        record = (what, whose, mine.client, now)
        if self._lasting is not None and what not in span.seen:
            self._lasting.add(number, RECORD.pack(*record))
        if self._folder is not None:
            try:
                _append(self._folder / f"{PREFIX}{number}", span, record)
            except OSError as error:
                self._complain(error)
        span.take(*record)
        first = span.seen[what]
        alike = first.client == mine.client and abs(now - first.at) <= REPEAT_SECONDS
        return "" if alike else "signature_replayed"

    def _count(self, signer: bytes) -> int:
        return sum(span.by_signer[signer] for span in self._spans.values())

    def _forget(self, past: int) -> None:
        """Let go of what is too long ago, here and in the folder."""
        for number in [number for number in self._spans if number < past]:
            del self._spans[number]
        if self._lasting is not None:
            self._lasting.forget(past)
        if self._folder is None:
            return
        try:
            for number, file in numbered(self._folder).items():
                if number < past:
                    file.unlink(missing_ok=True)  # another process may have been faster
        except OSError as error:
            self._complain(error)

    def _complain(self, error: OSError) -> None:
        if not self._mute:
            self._failed(error)
        self._mute = True


def _append(path: Path, span: Span, record: tuple[bytes, bytes, bytes, float]) -> None:
    """Put a record behind the others, unless it is there; read all that came before it."""
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        span.read(file)
        if record[0] not in span.seen:
            os.write(file, RECORD.pack(*record))
            span.read(file)
    finally:
        os.close(file)
