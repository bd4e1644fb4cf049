"""What several test folders share: waiting for a condition, and free ports on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import random
import socket
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
PORTS = range(15_000, 32_000)
"""Below the first port that Linux gives to outgoing connections."""
_ports = iter(random.SystemRandom().sample(PORTS, len(PORTS)))
"""Without a seed: tests on two cores begin with the same one."""


def eventually(
    probe: Callable[[], T],
    *,
    timeout: float = 10.0,
    every: float = 0.02,
    what: str | None = None,
    ignore: tuple[type[BaseException], ...] = (),
) -> T:
    """Call `probe` until it returns something true and return that; fail after `timeout` seconds.

    This is how tests wait: for the condition, not for a time. Exceptions in `ignore` count as "not yet".
    """
    deadline = time.monotonic() + timeout
    last: object = None
    while True:
        try:
            last = probe()
            if last:
                return last  # type: ignore[return-value]
        except ignore as error:
            last = error
        if time.monotonic() >= deadline:
            name = what or inspect.getsource(probe).strip()
            raise AssertionError(f"not within {timeout} s: {name} (last: {last!r})")
        time.sleep(every)


async def eventually_async(
    probe: Callable[[], T | Awaitable[T]],
    *,
    timeout: float = 10.0,  # noqa: ASYNC109 - the whole point is a deadline with a message of its own
    every: float = 0.01,
    what: str | None = None,
) -> T:
    """As `eventually`, inside a running event loop; `probe` may be a coroutine function."""
    deadline = time.monotonic() + timeout
    while True:
        last = probe()
        if inspect.isawaitable(last):
            last = await last
        if last:
            return last
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout} s: {what or probe!r} (last: {last!r})")
        await asyncio.sleep(every)


async def until_still(look: Callable[[], object], *, looks: int, every: float = 0.01) -> None:
    """Call `look` until it gives the same so many times over: for what shows no more than that it moves.

    A buffer that fills, for instance, while `look` pours into it and says how much is in it.
    """
    before, same = look(), 0
    while same < looks:
        await asyncio.sleep(every)
        now = look()
        before, same = now, same + 1 if now == before else 0


def free_port() -> int:
    """Return a TCP port on loopback that nothing listens on at this moment; never the same again.

    Nor one of those that the kernel gives to outgoing connections, which might take it before it is used.
    """
    for port in _ports:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port is left")
