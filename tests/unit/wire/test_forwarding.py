"""What upstreams are told of a request's way, and whose word about it counts."""

from __future__ import annotations

import pytest
from drover_proxy.wire import Forwarding, Limits
from drover_proxy.wire.forwarding import Mode, network

from tests.unit.wire.rig import FAST, World, answer, get, post

LOOPBACK = (network("127.0.0.0/8"),)
SAID = (
    b"X-Forwarded-For: 203.0.113.9, 198.51.100.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: shop\r\n"
    b"Forwarded: for=203.0.113.9\r\nX-Real-IP: 203.0.113.9\r\nX-Forwarded-Port: 99\r\n"
)


async def head_of(world: World, request: bytes, number: int = 0) -> list[bytes]:
    """Send a request; return the lines of the head that its upstream got."""
    client = await world.client(request)
    upstream = await world.origin.request(number)
    lines = upstream.take().split(b"\r\n\r\n")[0].split(b"\r\n")
    upstream.send(answer())
    await client.until(b"ok")
    return lines


async def test_nothing_goes_through_by_default(world: World):
    """Nobody is believed: what a client says of its way is left out, and nothing is added to it."""
    lines = await head_of(world, get(extra=SAID + b"Via: 1.1 theirs\r\n"))
    assert [line for line in lines if b"orward" in line or b"Real" in line] == []
    assert b"via: 1.1 theirs" in lines
    assert world.handler.exchanges[0].client == "127.0.0.1"


@pytest.mark.parametrize(
    ("mode", "trusted", "expected"),
    [
        (Mode.APPEND, (), [b"127.0.0.1", b"http", b"drover"]),
        (Mode.REPLACE, (), [b"127.0.0.1", b"http", b"drover"]),
        (Mode.APPEND, LOOPBACK, [b"203.0.113.9, 198.51.100.7, 127.0.0.1", b"https", b"shop"]),
        (Mode.REPLACE, LOOPBACK, [b"198.51.100.7", b"https", b"shop"]),
    ],
)
async def test_modes(mode: Mode, trusted: tuple, expected: list[bytes]):
    """Who isn't trusted is named by its address alone; a trusted proxy's word is kept, or made short."""
    async with World(Limits(**FAST), Forwarding(mode, "", trusted)) as world:
        lines = await head_of(world, get(extra=SAID))
    names = (b"X-Forwarded-For: ", b"X-Forwarded-Proto: ", b"X-Forwarded-Host: ")
    assert lines[-3:] == [name + value for name, value in zip(names, expected, strict=True)]
    assert sum(line.lower().startswith((b"x-forwarded", b"forwarded", b"x-real")) for line in lines) == 3


@pytest.mark.parametrize(
    ("said", "client"),
    [
        (b"203.0.113.9", "203.0.113.9"),
        (b"1.1.1.1, 203.0.113.9, 127.0.0.7", "203.0.113.9"),
        (b"127.0.0.3, 127.0.0.7", "127.0.0.3"),
        (b"203.0.113.9, unknown", "127.0.0.1"),
        (b"203.0.113.9:5555", "203.0.113.9"),
        (b"[2001:db8::1]:5555", "2001:db8::1"),
        (b"::ffff:203.0.113.9", "203.0.113.9"),
        (b"<script>, , ", "127.0.0.1"),
    ],
)
async def test_who_the_client_is(said: bytes, client: str):
    """Behind trusted proxies the client is the last address that isn't one of theirs."""
    async with World(Limits(**FAST), Forwarding(trusted=LOOPBACK)) as world:
        await head_of(world, get(extra=b"X-Forwarded-For: %b\r\n" % said))
        assert world.handler.exchanges[0].client == client


async def test_each_request_of_a_trusted_proxy_has_its_own_client():
    """A proxy's kept connection carries many clients; neither memo mixes them up."""
    async with World(Limits(**FAST), Forwarding(Mode.APPEND, "", LOOPBACK)) as world:
        client = await world.client()
        for number, who in enumerate((b"203.0.113.1", b"203.0.113.1", b"203.0.113.2")):
            client.send(post(extra=b"X-Forwarded-For: %b\r\n" % who))
            upstream = await world.origin.request(end=b"{}")
            assert b"X-Forwarded-For: %b, 127.0.0.1\r\n" % who in upstream.take()
            upstream.send(answer(b"%d" % number))
            await client.until(b"\r\n\r\n%d" % number)
            client.take()
        assert [ex.client for ex in world.handler.exchanges] == ["203.0.113.1"] * 2 + ["203.0.113.2"]


async def test_the_cap_of_one_address_spares_trusted_proxies():
    """The connections of a trusted proxy are many clients', so the cap for one doesn't count them."""
    limits = Limits(**FAST, max_connections_per_client=1)
    async with World(limits, Forwarding(trusted=LOOPBACK)) as world:
        for _ in range(3):
            await head_of(world, get())


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_via(version: bytes):
    """Our name stands behind those before us, in the request and in the answer."""
    async with World(Limits(**FAST), Forwarding(via="drover")) as world:
        request = get(extra=b"Via: 1.0 theirs\r\n").replace(b"HTTP/1.1", b"HTTP/" + version)
        lines = await head_of(world, request)
        assert lines[-2:] == [b"via: 1.0 theirs", b"Via: %b drover" % version]
        assert b"\r\nvia: 1.1 drover\r\n" in world.clients[0].received


async def test_a_unix_socket_may_be_trusted(tmp_path):
    """Who comes over a Unix socket has no address; a proxy there is trusted by that word."""
    import asyncio

    from tests.unit.wire.rig import Peer

    async with World(Limits(**FAST), Forwarding(Mode.REPLACE, trust_unix=True)) as world:
        path = str(tmp_path / "door")
        await world.server.listen([f"unix:{path}"])
        loop = asyncio.get_running_loop()
        _, client = await loop.create_unix_connection(Peer, path)
        world.clients.append(client)
        client.send(get(extra=b"X-Forwarded-For: 203.0.113.9\r\n"))
        upstream = await world.origin.request()
        assert b"X-Forwarded-For: 203.0.113.9\r\n" in upstream.take()
        upstream.send(answer())
        await client.until(b"ok")
        assert world.handler.exchanges[0].client == "203.0.113.9"
