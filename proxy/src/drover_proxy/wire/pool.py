"""An upstream and its idle connections: the one used last is used first, so that the others can grow old."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from drover_proxy.wire.answerhead import AnswerHeads
from drover_proxy.wire.contract import UpstreamFault
from drover_proxy.wire.limits import POOL_IDLE_CONNECTIONS, POOL_IDLE_SECONDS
from drover_proxy.wire.upstream import UpstreamConnection

if TYPE_CHECKING:
    from drover_proxy.wire.relay import Relay


class Upstream:
    """Where requests are forwarded to: an address, the Host it wants to hear, and its pool of connections."""

    __slots__ = ("host", "host_header", "name", "path", "pool", "port")

    def __init__(
        self,
        name: str,
        host: str = "",
        port: int = 0,
        *,
        path: str | None = None,
        host_header: bytes | None = None,
    ) -> None:
        """Make an upstream; nothing is connected yet.

        Args:
            name: For logs and error messages.
            host: Address or name, with `port`.
            port: TCP port.
            path: A Unix socket, instead of host and port.
            host_header: What to send as Host; the address itself where left out.
        """
        self.name = name
        self.host = host
        self.port = port
        self.path = path
        literal = f"[{host}]" if ":" in host else host
        self.host_header = host_header or (b"localhost" if path else f"{literal}:{port}".encode())
        self.pool = Pool(self)

    def __repr__(self) -> str:
        """Tell where it is and what its pool holds."""
        where = f"unix:{self.path}" if self.path else f"{self.host}:{self.port}"
        return f"<Upstream {self.name} {where}, {self.pool!r}>"

    def close(self) -> None:
        """Close the idle connections. Those in use end with their exchanges."""
        self.pool.clear()


class Pool:
    """The connections of one upstream."""

    __slots__ = ("connections", "dialing", "heads", "idle", "upstream", "watched")

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.watched = False
        """A server looks after the idle connections."""
        self.idle: list[UpstreamConnection] = []
        self.connections: set[UpstreamConnection] = set()
        self.heads = AnswerHeads()
        self.dialing: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        """Count what there is."""
        return (
            f"connections: {len(self.connections)} ({len(self.idle)} idle), {len(self.dialing)} being dialled"
        )

    @property
    def connected(self) -> bool:
        """Whether there is a connection, or one on its way."""
        return bool(self.connections or self.dialing)

    def take(self) -> UpstreamConnection | None:
        """Give an idle connection, the youngest, or None."""
        while self.idle:
            connection = self.idle.pop()
            if not connection.transport.is_closing():
                return connection
        return None

    def put(self, connection: UpstreamConnection, now: float) -> None:
        """Take a connection back after a whole answer."""
        connection.let_go()
        connection.served += 1
        if len(self.idle) >= POOL_IDLE_CONNECTIONS or connection.transport.is_closing():
            connection.close()
            return
        connection.idle_until = now + POOL_IDLE_SECONDS
        self.idle.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        """Drop a connection that is closed or about to be."""
        self.connections.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)

    def clear(self) -> None:
        """Close all idle connections."""
        while self.idle:
            self.idle[-1].close()

    def sweep(self, now: float) -> None:
        """Close idle connections that have grown old."""
        for connection in [c for c in self.idle if c.idle_until <= now]:
            connection.close()

    def dial(self, relay: Relay) -> asyncio.Task[None]:
        """Make a new connection and hand it to the relay. Cancelling the task closes whatever it has."""
        task = asyncio.get_running_loop().create_task(self._dial(relay))
        self.dialing.add(task)
        task.add_done_callback(self.dialing.discard)
        return task

    async def _dial(self, relay: Relay) -> None:
        loop = asyncio.get_running_loop()
        upstream = self.upstream
        connection = UpstreamConnection(self)
        protocol: Any = connection  # by its methods: see Link
        try:
            if upstream.path:
                await loop.create_unix_connection(lambda: protocol, upstream.path)
            else:
                await loop.create_connection(lambda: protocol, upstream.host, upstream.port)
        except (OSError, ValueError) as error:  # ValueError: a host name that can't be encoded
            relay.failed(UpstreamFault.DIAL, f"no connection to {upstream.name}: {error}")
        except asyncio.CancelledError:
            connection.close()  # it may have come about in this very moment
            raise
        else:
            if connection.transport.is_closing():
                relay.failed(UpstreamFault.DIAL, f"{upstream.name} closed the connection at once")
            else:
                relay.dialed(connection)
