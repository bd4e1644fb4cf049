"""The wire alone as a proxy, for bench/wire_quick.py: buffers each body, forwards it, watches the answer."""

from __future__ import annotations

import asyncio
import sys

import uvloop
from drover_proxy.wire import BodyPlan, Exchange, Outcome, Server, Upstream, UpstreamError


class Tail:
    """A watch as the dialects make them: keeps the end of the body."""

    __slots__ = ("tail",)

    def __init__(self) -> None:
        self.tail = b""

    def feed(self, data: bytes) -> None:
        """Keep what a terminator needs."""
        self.tail = data[-16:]

    def whole(self, status: int) -> bool:
        """Accept anything that has an end."""
        return status != 200 or bool(self.tail)

    def error(self) -> str | None:
        """Find none."""
        return None

    def error_event(self) -> bytes:
        """Have none."""
        return b""


class Forward:
    """Forwards everything to one upstream."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream

    def head(self, ex: Exchange) -> BodyPlan:  # noqa: ARG002 - the wire's signature
        """Hold the body whole, as the proxy does to find the model's name."""
        return BodyPlan.BUFFER

    def ready(self, ex: Exchange) -> None:
        """Send it on."""
        ex.forward(self.upstream, extra_response_headers=[(b"x-drover-instance", b"gpu0")], watch=Tail())

    def answered(self, ex: Exchange, status: int) -> None:
        """Nothing to do."""

    def upstream_failed(self, ex: Exchange, error: UpstreamError) -> bool:  # noqa: ARG002 - as above
        """Leave it to the wire."""
        return False

    def gone(self, ex: Exchange) -> None:
        """Nothing to do."""

    def finished(self, ex: Exchange, outcome: Outcome) -> None:
        """Nothing to do."""


async def main(port: int, upstream_port: int) -> None:
    """Serve until killed."""
    server = Server(Forward(Upstream("bench", "127.0.0.1", upstream_port)))
    await server.listen([f"127.0.0.1:{port}"])
    await asyncio.Event().wait()


uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
