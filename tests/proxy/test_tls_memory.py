"""Slow readers over TLS hold as little as others do: what encrypts may not keep a second copy."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from tests.proxy.authority import Authority, context_of
from tests.proxy.scripted import Asked
from tests.proxy.stage import HEAD, TOKEN, Stage, chunk, stage
from tests.support import until_still
from tests.unit.wire.rig import Peer

READERS = 32
HELD_BYTES = 256 << 10
OVERHEAD_BYTES = 128 << 10
"""Of a connection with TLS and its stream, and of the allocator. Without pieces it was 300 KiB."""


class SlowPeer(Peer):
    """A client that can stop to read."""

    def eof_received(self) -> bool:
        """Note it; over TLS there is no half-close."""
        super().eof_received()
        return False


async def streaming(house: Stage, authority: Authority) -> tuple[SlowPeer, Asked]:
    """Have a client ask, as far as it having the first token."""
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setblocking(False)  # noqa: FBT003 - the standard library's way
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await loop.sock_connect(sock, ("127.0.0.1", house.rig.port))
    tls = context_of(authority)
    _, client = await loop.create_connection(SlowPeer, sock=sock, ssl=tls, server_hostname="localhost")
    house._clients.append(client)
    tag = house.tag()
    client.send(house.chat(tag))
    asked = await house.ollama.request(tag)
    asked.send(HEAD + chunk(TOKEN))
    await client.until(TOKEN)
    return client, asked


async def test_slow_readers_over_tls_hold_little(tmp_path: Path, nvml: Path):
    """Streams of megabytes that nobody reads: each costs what one read brings, once."""
    authority = Authority(tmp_path)
    cert, key, _ = authority.issue("server")
    tls = {"cert": str(cert), "key": str(key)}
    async with stage(tmp_path, nvml, slots=READERS, tls=tls) as house:
        pairs = [await streaming(house, authority) for _ in range(READERS)]
        for client, _ in pairs:
            client.transport.pause_reading()
        before = house.resident_bytes()
        piece = chunk(b"data: " + b"x" * 1_000_000 + b"\n\n")
        for _, asked in pairs:
            for _ in range(8):
                asked.send(piece)
        await until_still(lambda: sum(asked.unsent for _, asked in pairs), looks=2, every=0.25)
        each = (house.resident_bytes() - before) / READERS
        print(f"{each / 1024:.0f} KiB each")
        assert each < HELD_BYTES + OVERHEAD_BYTES
