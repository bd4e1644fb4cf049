"""Kept connections: how long, how many, and what is tried twice when one of them was dead already."""

from __future__ import annotations

import time

from drover_proxy.wire.limits import POOL_IDLE_CONNECTIONS, POOL_IDLE_SECONDS, STALE_SECONDS

from tests.support import eventually_async
from tests.unit.wire.rig import World, answer, post


async def test_a_kept_connection_that_closes_late_is_not_replaced(world: World):
    """By then the upstream may have begun to work: whether the request goes out again is not ours to say."""
    client, upstream = await world.again()
    world.server.clock = lambda: time.monotonic() + STALE_SECONDS
    upstream.close()
    await client.until(b"502")
    assert len(world.origin.peers) == 1
    assert ("failed", 2, "closed", False) in world.handler.story


async def test_others_as_old_are_not_tried_in_its_place(world: World):
    """Where one kept connection is dead, so are the others: the request goes out on a fresh one."""
    upstreams = await world.kept(3)
    client = await world.client(post(b"again"))
    (used,) = await eventually_async(lambda: [u for u in upstreams if b"again" in u.received])
    used.close()
    fresh = await world.origin.request(3, end=b"again")
    for other in upstreams:
        await other.until_closed()
    fresh.send(answer(b"two"))
    await client.until(b"two")


async def test_they_grow_old(world: World):
    """A kept connection isn't kept for ever, and is kept until then."""
    (upstream,) = await world.kept(1)
    for early in (0.5, 0.0):
        world.server.clock = lambda early=early: time.monotonic() + POOL_IDLE_SECONDS - early
        if early:
            await eventually_async(lambda: world.server.now > time.monotonic() + POOL_IDLE_SECONDS - 1)
            assert not upstream.eof
    await upstream.until_closed()


async def test_they_are_not_countless(world: World):
    """More than an instance could ever have slots are of no use."""
    await world.kept(POOL_IDLE_CONNECTIONS + 2)
    assert len(world.upstream.pool.connections) == POOL_IDLE_CONNECTIONS


async def test_the_youngest_is_used_first(world: World):
    """So that the others can grow old."""
    client = await world.client(post(b"first"))
    other = await world.client(post(b"first"))
    upstreams = [await world.origin.request(number, end=b"first") for number in range(2)]
    upstreams[0].send(answer(b"one"))
    await eventually_async(lambda: len(world.upstream.pool.idle) == 1)
    upstreams[1].send(answer(b"one"))
    await eventually_async(lambda: len(world.upstream.pool.idle) == 2)
    for number in range(2):
        (client, other)[number].send(post(b"again %d" % number))
        await upstreams[1].until(b"again %d" % number)
        upstreams[1].send(answer(b"two %d" % number))
        await (client, other)[number].until(b"two %d" % number)
