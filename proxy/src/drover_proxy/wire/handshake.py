"""Accepts clients of TLS: one that still shakes hands counts as a connection, and can be turned away before.

The event loop's own listener tells of a connection only when TLS is agreed on, so that whoever connects and
says nothing would count nowhere, and could take every file that the process may open.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING

from drover_proxy.wire.link import peer_of

if TYPE_CHECKING:
    from drover_proxy.wire.server import Server

AT_ONCE = 64
"""Connections accepted in one turn of the loop; the others wait in the kernel for the next."""

PAUSE_SECONDS = 0.5
"""How long nothing is accepted when the process may open no more files."""


class Handshakes:
    """A listening socket for TLS, and the connections on it that aren't clients yet."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._shaking: set[asyncio.Task[None]] = set()
        self._sock = sock
        self.sockets = (sock,)
        sock.setblocking(False)  # noqa: FBT003 - the standard library's way
        self._loop.add_reader(sock, self._accept)

    def close(self) -> None:
        """Accept no more; who shakes hands goes on."""
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def cut(self) -> None:
        """Close the connections that still shake hands."""
        for task in self._shaking:
            task.cancel()

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                sock, address = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:  # too many open files: those who come wait in the kernel
                self._loop.remove_reader(self._sock)
                self._loop.call_later(PAUSE_SECONDS, self._go_on)
                return
            peer = peer_of(address)
            if self._server.begin_handshake(peer):
                task = self._loop.create_task(self._shake(sock, peer))
                self._shaking.add(task)
                task.add_done_callback(self._shaking.discard)
            else:
                sock.close()

    def _go_on(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.add_reader(self._sock, self._accept)

    async def _shake(self, sock: socket.socket, peer: str) -> None:
        """Have the loop agree on TLS; who has done so is a client like any other."""
        server = self._server
        try:
            await self._loop.connect_accepted_socket(
                server.connection, sock, ssl=server.tls, ssl_handshake_timeout=server.limits.head_timeout
            )
        except ssl.SSLError as error:  # scanners, strangers
            server.handshake_failed(peer, error)
        except OSError:  # who leaves, or says nothing
            pass
        finally:
            server.end_handshake(peer)
