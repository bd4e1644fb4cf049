"""Learns when an upstream has stopped working for a client that left: when it closes its end, too."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Final

WORKING = frozenset((1, 4, 5))
"""TCP's states (as in linux/tcp_states.h) while the other end is open: established, and both FIN-WAITs."""

RESET_SECONDS = 0.02
"""What an upstream is given that was writing in this very moment: a reset tells it, and us nothing more."""
FIRST_SECONDS = 0.002
LONGEST_SECONDS = 0.05
"""How often the kernel is asked: Ollama takes 6 to 16 ms to stop, or as long as its runner's batch takes."""


ROOM: Final = bytearray(1 << 18)
"""Where goes what nobody reads."""
MOST_READS = 64
"""More than any receive buffer holds, as what comes after the shutdown isn't kept."""


class Parting:
    """A connection that was closed while the upstream was at work, kept only to see the other end close.

    It is shut down in both directions. To the upstream that is a closed socket and no half-closed one: it
    reads the end, and whatever it still writes is answered by a reset. What it had written before is thrown
    away: where a slow client had kept it waiting, it would wait on for room and notice nothing.
    """

    __slots__ = ("_sock",)

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    @classmethod
    def of(cls, transport: asyncio.Transport) -> Parting | None:
        """Part from an upstream; None where nothing can be seen (a Unix socket, or closed already)."""
        sock = transport.get_extra_info("socket")
        if sock is None or sock.fileno() < 0 or sock.family == socket.AF_UNIX:
            return None
        try:
            kept = socket.socket(fileno=os.dup(sock.fileno()))
        except OSError:  # too many open files: closing it must not fail for that
            return None
        try:
            kept.shutdown(socket.SHUT_RDWR)
            _throw_away(kept)
        except OSError:  # reset by the upstream in this very moment
            kept.close()
            return None
        return cls(kept)

    @property
    def over(self) -> bool:
        """Whether the upstream has closed its end."""
        try:
            return self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] not in WORKING
        except OSError:
            return True

    async def wait(self, longest: float) -> bool:
        """Wait for the other end's close, at most so many seconds; say whether it came. Ends the watching."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + longest
        pause = FIRST_SECONDS
        with contextlib.closing(self._sock):
            while not self.over:
                if loop.time() >= deadline:
                    return False
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_SECONDS)
            if self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                await asyncio.sleep(RESET_SECONDS)
        return True


def _throw_away(sock: socket.socket) -> None:
    """Empty a connection's receive buffer."""
    with contextlib.suppress(OSError):  # nothing more, or reset
        for _ in range(MOST_READS):
            if not sock.recv_into(ROOM, 0, socket.MSG_DONTWAIT):
                return
