"""Writes to TLS in pieces: what encrypts keeps as much memory for ever as the longest write ever took."""

from __future__ import annotations

import asyncio

PIECE_BYTES = 16 * 1024
"""What one record of TLS holds. Whole reads of 250 KiB doubled what a slow reader holds."""


class InPieces:
    """The transport of a connection with TLS, as far as the wire uses one."""

    __slots__ = (
        "_write",
        "abort",
        "can_write_eof",
        "close",
        "get_extra_info",
        "get_write_buffer_size",
        "is_closing",
        "pause_reading",
        "resume_reading",
        "set_write_buffer_limits",
    )

    def __init__(self, transport: asyncio.Transport) -> None:
        self._write = transport.write
        self.abort = transport.abort
        self.can_write_eof = transport.can_write_eof
        self.close = transport.close
        self.get_extra_info = transport.get_extra_info
        self.get_write_buffer_size = transport.get_write_buffer_size
        self.is_closing = transport.is_closing
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading
        self.set_write_buffer_limits = transport.set_write_buffer_limits

    def write(self, data: bytes) -> None:
        """Write, in pieces where it is more than one."""
        if len(data) <= PIECE_BYTES:
            self._write(data)
            return
        for at in range(0, len(data), PIECE_BYTES):
            self._write(data[at : at + PIECE_BYTES])
