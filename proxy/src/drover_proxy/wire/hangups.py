"""Learns at once of a client's leaving where its connection isn't read, and so wouldn't tell."""

from __future__ import annotations

import asyncio
import contextlib
import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from drover_proxy.wire.link import Link

AT_ONCE = 64
"""Connections looked at in one turn of the loop; the others are reported in the next."""


class HangUps:
    """Watches connections for nothing but their peer's end (EPOLLRDHUP).

    The event loop asks the kernel for readable bytes or for nothing, so a connection that isn't read, since
    no upstream takes its body yet, would keep its GPU until somebody looks. An epoll of our own asks for the
    other event, and is itself a descriptor that the loop reads. It costs two system calls for each pause, and
    nothing for who is never paused.

    A connection with TLS is watched all the time. The loop takes an end of TCP without an end of TLS for a
    wish to close, granted when everything has been written: so never, while the client reads nothing.
    """

    __slots__ = ("_epoll", "_fds", "_links", "_loop")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._links: dict[int, Link] = {}
        self._fds: dict[Link, int] = {}
        self._loop.add_reader(self._epoll.fileno(), self._ready)

    def watch(self, link: Link) -> None:
        """Tell `link.hung_up()` when its peer has left, also if it has already."""
        sock = link.transport.get_extra_info("socket")
        fd = sock.fileno() if sock is not None else -1
        if fd >= 0 and link not in self._fds:
            with contextlib.suppress(FileExistsError):  # of a link that was closed in this very turn
                self._epoll.register(fd, select.EPOLLRDHUP)
            self._links[fd] = link
            self._fds[link] = fd

    def forget(self, link: Link) -> None:
        """Watch it no longer: it is read again, or closed."""
        fd = self._fds.pop(link, -1)
        if self._links.get(fd) is link:
            del self._links[fd]
            with contextlib.suppress(OSError):  # closed: the kernel has forgotten it by itself
                self._epoll.unregister(fd)

    @property
    def watched(self) -> int:
        """How many are watched now."""
        return len(self._fds)

    def close(self) -> None:
        """Stop watching."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _ready(self) -> None:
        for fd, _ in self._epoll.poll(0, AT_ONCE):
            link = self._links.get(fd)
            if link is not None:
                self.forget(link)
                link.hung_up()
