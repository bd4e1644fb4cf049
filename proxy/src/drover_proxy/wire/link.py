"""A client's socket: who is there, writing, pausing, and the several ways to end."""

from __future__ import annotations

import asyncio
import enum
import socket
import struct
from typing import TYPE_CHECKING, Any

from drover_proxy.wire.certificate import identities
from drover_proxy.wire.limits import LINGER_SECONDS, WRITE_HIGH_BYTES
from drover_proxy.wire.pieces import InPieces

if TYPE_CHECKING:
    from drover_proxy.wire.server import Server

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER without time: closing resets the connection, so that nobody takes it for an end."""


class Phase(enum.IntEnum):
    """What a client's connection is reading."""

    HEAD = 0
    """Nothing yet, or a part of a head."""
    BODY = 1
    """The body of a request, perhaps only to throw it away behind an answer that is out already."""
    BUSY = 2
    """The request is whole, its answer under way. What comes is the next request; who goes is the client."""
    CLOSING = 3
    """Nothing: what comes is thrown away, what was written goes out, then the connection is closed."""


def peer_of(name: Any) -> str:
    """Give the address in the name of a socket's other end, "unix" for a Unix socket's."""
    return str(name[0]) if isinstance(name, tuple) else "unix"


class Link:
    """The socket below a client's connection. What is read on it is the business of client.py.

    An asyncio protocol by its methods, without that base class: compiled classes can't have one of Python's.
    """

    __slots__ = (
        "certificate",
        "deadline",
        "limits",
        "lost",
        "peer",
        "phase",
        "read_paused",
        "server",
        "tls",
        "transport",
        "trusted",
        "write_paused",
    )

    transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self.server = server
        self.limits = server.limits
        self.phase: Phase = Phase.HEAD
        self.peer = ""
        self.certificate: tuple[str, ...] = ()
        """By what names the client's certificate may be known, where TLS asked for one and checked it."""
        self.deadline = 0.0
        """When the sweep looks at this connection; what it means depends on the phase."""
        self.write_paused = False
        """The client doesn't keep up with what it is sent."""
        self.read_paused = False
        self.lost = False
        self.trusted = False
        """The peer is a proxy whose word about its clients counts."""
        self.tls = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = transport  # type: ignore[assignment] # a stream's: asyncio can't say so
        self.transport.set_write_buffer_limits(WRITE_HIGH_BYTES, 0)
        self.peer = peer_of(transport.get_extra_info("peername"))
        self.trusted = self.server.forwarding.trusts(self.peer)
        self.tls = transport.get_extra_info("sslcontext") is not None
        if self.tls:
            pieces: Any = InPieces(self.transport)
            self.transport = pieces
            self.certificate = identities(transport.get_extra_info("ssl_object"))
        self.deadline = self.server.clock() + self.limits.head_timeout

    def pause_reading(self, *, paused: bool) -> None:
        """Stop, or go on, reading what the client sends."""
        if paused is not self.read_paused and not self.transport.is_closing():
            self.read_paused = paused
            if paused:
                self.transport.pause_reading()
                if self.phase is Phase.BODY:  # it costs somebody's GPU, or a slot in the queue
                    self.server.hangups.watch(self)
            else:
                self.transport.resume_reading()
                if not self.tls:
                    self.server.hangups.forget(self)

    def hung_up(self) -> None:
        """Learn that the client has left while its connection wasn't read."""
        raise NotImplementedError

    def write(self, data: bytes) -> None:
        """Write to the client."""
        if not self.transport.is_closing():
            self.transport.write(data)

    def close(self, *, linger: bool) -> None:
        """Close when everything has been written; `linger` reads on for a while, lest the answer be lost."""
        self.phase = Phase.CLOSING
        brief = linger and not self.write_paused  # else its time begins when all has been written
        wait = LINGER_SECONDS if brief else (self.limits.stall_timeout or self.limits.body_timeout)
        self.deadline = self.server.clock() + wait
        if linger and self.transport.can_write_eof() and not self.transport.is_closing():
            self.pause_reading(paused=False)
            self.transport.write_eof()
        else:
            self.transport.close()

    def reset(self) -> None:
        """Close so that the client sees an error: nothing else marks where its answer should have ended."""
        self.phase = Phase.CLOSING
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.transport.abort()
