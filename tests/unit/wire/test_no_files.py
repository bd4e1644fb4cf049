"""When the process may open no more files: who leaves is still seen, and nothing is left behind."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from drover_proxy.wire import BodyPlan, Kind
from drover_proxy.wire.limits import EARLY_BODY_BYTES

from tests.support import eventually_async
from tests.unit.wire.rig import STREAM_HEAD, World, answer, chunk, get, post


@contextmanager
def no_files() -> Iterator[None]:
    """Let the process open nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_client_leaves_while_its_upstream_is_followed(world: World):
    """The upstream's connection is closed, though nobody can watch it stop."""
    world.handler.on_head = lambda ex: setattr(ex, "follows", True)
    client = await world.client(post())
    upstream = await world.origin.request(end=b"{}")
    upstream.send(STREAM_HEAD + chunk(b"token"))
    await client.until(b"token")
    with no_files():
        client.close()
        await upstream.until_closed()
        assert (await world.outcome()).kind is Kind.CLIENT_GONE
    assert world.handler.exchanges[0].parting is None


async def test_a_client_leaves_while_its_upload_waits(world: World):
    """A body that nobody takes yet is watched for its client's leaving."""
    world.handler.plan = BodyPlan.STREAM
    world.handler.on_ready = lambda ex: None
    client = await world.client()
    await eventually_async(lambda: bool(world.server.connections))
    with no_files():
        client.send(post(b"x" * 3 * EARLY_BODY_BYTES))
        await eventually_async(lambda: any(c.read_paused for c in world.server.connections))
        client.close()
        assert (await world.outcome()).kind is Kind.CLIENT_GONE


@pytest.mark.parametrize("kept", [False, True])
async def test_a_request(world: World, kept: bool):
    """It goes over a connection that is kept, or gets an error; the next one is served."""
    client = await world.client(get())
    await eventually_async(lambda: bool(world.handler.outcomes) or bool(world.origin.peers))
    upstream = await world.origin.request()
    upstream.send(answer(extra=b"" if kept else b"Connection: close\r\n"))
    await client.until(b"ok")
    client.take()
    with no_files():
        client.send(get(b"/next"))
        if kept:
            await upstream.until(b"/next")
            upstream.send(answer(b"next"))
        await client.until(b"next" if kept else b"upstream_dial")
    client.take()
    client.send(get(b"/last"))
    upstream = await world.origin.request(0 if kept else 1, end=b"/last")
    upstream.send(answer(b"last"))
    await client.until(b"last")
