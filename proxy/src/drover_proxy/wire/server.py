"""The listeners, the count of connections, the one clock, and the end of it all."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any
from weakref import WeakSet

from drover_proxy.wire import answers
from drover_proxy.wire.client import ClientConnection
from drover_proxy.wire.contract import Handler, Kind, Stranger
from drover_proxy.wire.exchange import Exchange
from drover_proxy.wire.fields import Fields
from drover_proxy.wire.forwarding import Forwarding, network_of
from drover_proxy.wire.handshake import Handshakes
from drover_proxy.wire.hangups import HangUps
from drover_proxy.wire.head import BadRequest, Memo, target_of
from drover_proxy.wire.known import KnownHeads
from drover_proxy.wire.limits import PROBE_SECONDS, PROBES, SILENT_SECONDS, Limits
from drover_proxy.wire.pool import Pool

BACKLOG = 4096
"""Connections the kernel holds while the loop is busy, or while one process hands over to the next."""

LOOK_SECONDS = 0.02
"""How often is looked whether all have left, while a server that stops lingers."""


class Server:
    """Serves HTTP/1.1 and hands each request to a handler.

    Counts for metrics: `connections` (open now), `accepted`, `requests`, `outcomes` (by Kind), `refusals` (by
    code: heads that never became an exchange, and clients turned away).
    """

    def __init__(
        self, handler: Handler, limits: Limits | None = None, forwarding: Forwarding | None = None
    ) -> None:
        self.handler = handler
        self.limits = limits or Limits()
        self.forwarding = forwarding or Forwarding()
        self.via_line = self.forwarding.via_line
        self.heads = self._no_heads()
        """What was read of the heads of clients that a head alone tells apart."""
        self.connections: set[ClientConnection] = set()
        self.outcomes: dict[Kind, int] = dict.fromkeys(Kind, 0)
        self.refusals: Counter[str] = Counter()
        self.accepted = 0
        self.requests = 0
        self.draining = False
        self.clock = time.monotonic
        self.soon: Callable[[Callable[[], None]], object] = _soon
        """Does something after others had their turn."""
        self.tls: ssl.SSLContext | None = None
        """For connections that begin from now on, on listeners that speak TLS; see change_tls."""
        self._vouching: WeakSet[ssl.SSLContext] = WeakSet()
        """Contexts by which a client may come in: the one in force, and those that it only added to."""
        self.handshake_failed: Callable[[str, ssl.SSLError], None] = lambda _peer, _error: None
        """Told who could not agree on TLS with us, and why."""
        self.now = time.monotonic()
        """The clock as of the last sweep: good enough for limits, and free."""
        self._by_peer: dict[str, int] = {}
        """Connections, by the network of the client."""
        self._shaking: dict[str, int] = {}
        """Those that are still to agree on TLS, likewise."""
        self._shaking_total = 0
        self._listeners: list[asyncio.AbstractServer | Handshakes] = []
        self._handshakes: list[Handshakes] = []
        self._pools: set[Pool] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()
        self._hangups: HangUps | None = None

    # Listening.

    async def listen(
        self, where: Iterable[str | socket.socket], *, tls: ssl.SSLContext | None = None
    ) -> list[str]:
        """Listen on each of these, and return where that is.

        Args:
            where: "host:port" ("[::]:8080" for IPv6, port 0 for any), "unix:/path", or a socket that listens
                already (inherited by socket activation).
            tls: Speak TLS on these, which are TCP's.
        """
        loop = asyncio.get_running_loop()
        if self._sweeper is None:
            self._hangups = HangUps()  # now, as it takes a file, and they may run out
            self._sweep()
        make, backlog = self.connection, BACKLOG
        bound: list[str] = []
        listener: Any  # uvloop's has a list of sockets where asyncio's has a tuple
        for place in where:
            if tls is not None:
                self.change_tls(tls, stricter=False)
                listener = Handshakes(self, _listening(place))
                self._handshakes.append(listener)
            elif isinstance(place, str) and not place.startswith("unix:"):
                host, _, port = place.rpartition(":")
                listener = await loop.create_server(
                    make, host.strip("[]") or None, int(port), backlog=backlog
                )
            elif isinstance(place, str):
                path = place.removeprefix("unix:")
                listener = await loop.create_unix_server(make, path, backlog=backlog)
            elif place.family == socket.AF_UNIX:
                listener = await loop.create_unix_server(make, sock=place, backlog=backlog)
            else:
                listener = await loop.create_server(make, sock=place, backlog=backlog)
            self._listeners.append(listener)
            bound += [_name(sock) for sock in listener.sockets]
            for sock in listener.sockets:
                _ask_the_silent(sock)
        return bound

    def connection(self) -> Any:  # an asyncio.Protocol by its methods: see Link
        """Make the protocol of a new connection."""
        return ClientConnection(self)

    def change(self, limits: Limits, forwarding: Forwarding) -> None:
        """Put others in force, from the next request of each connection on."""
        self.limits = limits
        self.forwarding, self.via_line = forwarding, forwarding.via_line
        self.heads = self._no_heads()
        for connection in self.connections:
            connection.limits = limits
            connection.trusted = forwarding.trusts(connection.peer)
            connection.parser.memo = Memo()  # the heads in it were made for the forwarding before
            connection.parser.heads = None

    def _no_heads(self) -> KnownHeads | None:
        # What tells an upstream whose request it is differs from one connection to the next.
        return None if self.forwarding.adds else KnownHeads()

    def change_tls(self, tls: ssl.SSLContext, *, stricter: bool) -> int:
        """Put another context in force, for connections that begin from now on.

        Args:
            tls: The context.
            stricter: It may turn away who was let in by those before. So their connections are closed, after
                the answer under way, and no handshake that was begun with them makes a connection any more.

        Returns:
            The number of connections that are closed.
        """
        self.tls = tls
        if stricter:
            self._vouching.clear()
        self._vouching.add(tls)
        outdated = [connection for connection in self.connections if connection.tls and stricter]
        for connection in outdated:
            connection.retire()
        return len(outdated)

    def vouches(self, tls: ssl.SSLContext) -> bool:
        """Whether a connection may be one that was made with this context."""
        return tls in self._vouching

    def stop_accepting(self) -> None:
        """Close the listeners; connections go on, but are closed after the answer under way."""
        self.draining = True
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    async def drain(self, timeout: float = 30.0, *, linger: float = 0.0) -> int:  # noqa: ASYNC109 - a bound
        """Stop: accept no more, let what is under way finish, cut what is left after `timeout` seconds.

        Args:
            timeout: Seconds that it may take.
            linger: Seconds for which idle connections, and those that still shake hands, may bring another
                request; 0 closes them at once.

        Returns:
            The number of exchanges that were cut.
        """
        self.stop_accepting()
        until = time.monotonic() + linger
        while time.monotonic() < until:
            await asyncio.sleep(LOOK_SECONDS)  # first, as who was accepted last isn't a connection yet
            if not self.connections and not self._shaking_total:
                break
        for handshakes in self._handshakes:
            handshakes.cut()
        for connection in list(self.connections):
            connection.close_if_idle()
        await self._wait_empty(timeout - linger)
        cut = sum(connection.exchange is not None for connection in self.connections)
        for connection in list(self.connections):
            connection.give_up("the proxy is stopping")
        await self._wait_empty(1.0)
        for pool in list(self._pools):
            pool.clear()
            pool.watched = False
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        if self._hangups is not None:
            self._hangups.close()
            self._hangups = None
        return cut

    async def _wait_empty(self, timeout: float) -> None:  # noqa: ASYNC109 - as drain
        self._empty.clear()
        if self.connections:
            try:
                await asyncio.wait_for(self._empty.wait(), timeout)
            except asyncio.TimeoutError:
                return

    # What connections call.

    def admit(self, connection: ClientConnection) -> str | None:
        """Count a new connection; say why it may not stay."""
        self.connections.add(connection)
        self.accepted += 1
        ours = _count(self._by_peer, network_of(connection.peer), 1)
        return self._too_many(connection.peer, len(self.connections), ours, trusted=connection.trusted)

    def begin_handshake(self, peer: str) -> bool:
        """Count a connection that is to agree on TLS; False: it may not stay, and can't be told why."""
        network = network_of(peer)
        refusal = self._too_many(
            peer,
            len(self.connections) + self._shaking_total + 1,
            self._by_peer.get(network, 0) + self._shaking.get(network, 0) + 1,
            trusted=self.forwarding.trusts(peer),
        )
        if refusal is not None:
            self.error_parts(Stranger(peer, b""), 503, "too_many_connections", refusal)
            return False
        _count(self._shaking, network, 1)
        self._shaking_total += 1
        return True

    def _too_many(self, peer: str, in_all: int, of_client: int, *, trusted: bool) -> str | None:
        """Say which cap a new connection is beyond, with it counted; and count that."""
        most, most_per_client = self.limits.max_connections, self.limits.max_connections_per_client
        if in_all > most:
            refusal = f"more than {most} connections"
        elif trusted or most_per_client is None or of_client <= most_per_client:
            return None  # a trusted proxy's connections are many clients'
        else:
            refusal = f"more than {most_per_client} connections from {peer}"
        self.refusals["too_many_connections"] += 1
        return refusal

    def end_handshake(self, peer: str) -> None:
        """Count one off that has become a client, or never will."""
        self._shaking_total -= 1
        _count(self._shaking, network_of(peer), -1)

    @property
    def hangups(self) -> HangUps:
        """What watches the connections that aren't read; made when the first of them isn't."""
        if self._hangups is None:
            self._hangups = HangUps()
        return self._hangups

    def error(self, client: str, raw: bytes, error: BadRequest) -> bytes:
        """Build an answer to what never became an exchange but some bytes; the connection closes after it."""
        asked = Stranger(client, target_of(raw))
        headers, body = self.error_parts(asked, error.status, error.code, error.message)
        bodiless = raw.startswith((b"HEAD ", b"\r\nHEAD "))
        return answers.whole(error.status, headers, body, close=True, bodiless=bodiless)

    def error_parts(
        self, asked: Exchange | Stranger, status: int, code: str, message: str
    ) -> tuple[Fields, bytes]:
        """Ask the handler for the words of an error of the wire's own."""
        try:
            return self.handler.error_answer(asked, status, code, message)
        except Exception as trouble:  # noqa: BLE001 - the client gets an answer, the log a trace
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"the wire's handler raised on an error {code}", "exception": trouble}
            )
            return answers.plain_error(code, message)

    def release(self, connection: ClientConnection) -> None:
        """Count a connection off."""
        self.connections.discard(connection)
        _count(self._by_peer, network_of(connection.peer), -1)
        if not self.connections:
            self._empty.set()

    def number(self) -> int:
        """Give the next request its number."""
        self.requests += 1
        return self.requests

    def watch(self, pool: Pool) -> None:
        """Look after a pool's idle connections."""
        self._pools.add(pool)
        pool.watched = True

    def _sweep(self) -> None:
        """Look at every deadline, once per interval."""
        # First of all: the clock of all must not stop for what goes wrong with one.
        loop = asyncio.get_running_loop()
        self._sweeper = loop.call_later(self.limits.sweep_seconds, self._sweep)
        self.now = now = self.clock()
        for connection in list(self.connections):
            connection.sweep(now)
        for pool in list(self._pools):
            pool.sweep(now)
            if not pool.connected:  # it comes back with its next request; one whose upstream is gone doesn't
                self._pools.discard(pool)
                pool.watched = False


def _count(counts: dict[str, int], network: str, change: int) -> int:
    """Count a connection of a network on or off; give how many it has now."""
    now = counts.get(network, 0) + change
    if now:
        counts[network] = now
    else:
        del counts[network]
    return now


def _listening(place: str | socket.socket) -> socket.socket:
    """Give a socket that listens there."""
    if isinstance(place, socket.socket):
        place.listen(BACKLOG)
        return place
    host, _, port = place.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host.strip("[]"), int(port)), family=family, backlog=BACKLOG)


def _soon(work: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_soon(work)


def _ask_the_silent(listening: socket.socket) -> None:
    """Have the kernel ask clients that say nothing whether they are there; what it accepts inherits that."""
    if listening.family == socket.AF_UNIX:
        return
    with socket.socket(fileno=os.dup(listening.fileno())) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENT_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)


def _name(sock: socket.socket) -> str:
    """Name where a socket listens, in the form that `listen` takes."""
    name = sock.getsockname()
    if isinstance(name, tuple):
        host = f"[{name[0]}]" if ":" in name[0] else name[0]
        return f"{host}:{name[1]}"
    return f"unix:{name}"
