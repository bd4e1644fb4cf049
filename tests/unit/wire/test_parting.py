"""After a client has left, the wire knows when the upstream has stopped: when it closes its end."""

from __future__ import annotations

import asyncio

from drover_proxy.wire import Kind, Limits
from drover_proxy.wire.parting import Parting

from tests.support import eventually_async
from tests.unit.wire.rig import FAST, STREAM_HEAD, Peer, World, chunk, get, post


async def left_in_mid_stream(world: World) -> tuple[Parting, Peer]:
    """Let a client leave whose handler follows what becomes of its request."""
    world.handler.on_head = lambda ex: setattr(ex, "follows", True)
    client = await world.client(post())
    upstream = await world.origin.request(end=b"{}")
    upstream.send(STREAM_HEAD + chunk(b"token"))
    await client.until(b"token")
    client.close()
    await world.outcome()
    parting = world.handler.exchanges[0].parting
    assert parting is not None
    return parting, upstream


async def test_it_is_over_when_the_upstream_closes(world: World):
    """Not before, although the upstream was told at once."""
    parting, upstream = await left_in_mid_stream(world)
    await upstream.until_closed()
    waiting = asyncio.create_task(parting.wait(5))
    await asyncio.sleep(0.05)  # it looks several times meanwhile, which nothing shows
    assert not waiting.done()
    upstream.close()
    assert await waiting


async def test_it_is_over_when_the_upstream_writes_on(world: World):
    """What it writes is answered by a reset: it finds a closed socket, and no half-closed one."""
    parting, upstream = await left_in_mid_stream(world)
    await upstream.until_closed()
    upstream.send(chunk(b"more"))
    assert await parting.wait(5)
    upstream.send(chunk(b"more"))
    await eventually_async(upstream.transport.is_closing)


async def test_patience_ends(world: World):
    """An upstream that never closes isn't waited for any longer than that."""
    parting, _ = await left_in_mid_stream(world)
    assert not await parting.wait(0.02)


async def test_nobody_follows_unless_the_handler_asks(world: World):
    """Nor where the request never reached an upstream."""
    client = await world.client(get())
    await world.origin.request()
    client.close()
    await world.outcome()
    assert world.handler.exchanges[0].parting is None
    world.handler.on_head = lambda ex: setattr(ex, "follows", True)
    world.handler.on_ready = lambda ex: None
    client = await world.client(get())
    await eventually_async(lambda: ("ready", 2) in world.handler.story)
    client.close()
    await world.outcome(2)
    assert world.handler.exchanges[1].parting is None


async def test_an_upstream_that_fell_silent_is_followed_too():
    """It was given up by the proxy, and its runner may be at work for a while."""
    async with World(Limits(**FAST, stall_timeout=0.05)) as world:
        world.handler.on_head = lambda ex: setattr(ex, "follows", True)
        client = await world.client(post())
        upstream = await world.origin.request(end=b"{}")
        upstream.send(STREAM_HEAD + chunk(b"token"))
        assert (await world.outcome()).kind is Kind.UPSTREAM_BROKEN
        parting = world.handler.exchanges[0].parting
        assert parting is not None
        assert not parting.over
        await upstream.until_closed()
        upstream.close()
        assert await parting.wait(5)
        await client.until_closed()
