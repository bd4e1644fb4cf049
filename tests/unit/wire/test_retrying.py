"""What is tried twice: a kept connection that was dead already, once, and nothing else."""

from __future__ import annotations

import time

from drover_proxy.wire.limits import STALE_SECONDS

from tests.support import eventually_async
from tests.unit.wire.rig import Peer, World, answer, post


async def kept(world: World, count: int) -> list[Peer]:
    """Have so many connections to the upstream that served a request each."""
    clients = [await world.client(post(b"first")) for _ in range(count)]
    upstreams = [await world.origin.request(number, end=b"first") for number in range(count)]
    for upstream in upstreams:
        upstream.send(answer(b"one"))
    for client in clients:
        await client.until(b"one")
    return upstreams


async def test_a_kept_connection_that_closes_late_is_not_replaced(world: World):
    """By then the upstream may have begun to work: whether the request goes out again is not ours to say."""
    (upstream,) = await kept(world, 1)
    client = await world.client(post(b"again"))
    await upstream.until(b"again")
    world.server.clock = lambda: time.monotonic() + STALE_SECONDS
    upstream.close()
    await client.until(b"502")
    assert len(world.origin.peers) == 1
    assert ("failed", 2, "closed", False) in world.handler.story


async def test_others_as_old_are_not_tried_in_its_place(world: World):
    """Where one kept connection is dead, so are the others: the request goes out on a fresh one."""
    upstreams = await kept(world, 3)
    client = await world.client(post(b"again"))
    (used,) = await eventually_async(lambda: [u for u in upstreams if b"again" in u.received])
    used.close()
    fresh = await world.origin.request(3, end=b"again")
    for other in upstreams:
        await other.until_closed()
    fresh.send(answer(b"two"))
    await client.until(b"two")
