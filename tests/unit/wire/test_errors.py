"""The wire's own errors: each in the words of whom its target is for, with a stable code, told once."""

from __future__ import annotations

import re

import pytest
from drover_proxy.dialect.codes import CODES
from drover_proxy.wire import BodyPlan, Limits
from drover_proxy.wire.contract import UpstreamFault
from drover_proxy.wire.head import target_of

from tests.support import eventually_async
from tests.unit.wire.rig import FAST, World, get, post

ERRORS = {
    "bad_request": (b"GET /v1/a HTTP/1.1\r\nHost: d\r\nContent-Length: +1\r\n\r\n", 400, b"/v1/a"),
    "bad_request, absolute": (b"GET http://d/v1/a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, b"/v1/a"),
    "bad_request, no target": (b"\x16\x03\x01\x02\x00\r\n\r\n", 400, b""),
    "http_version": (b"GET /v1/a HTTP/2.0\r\nHost: d\r\n\r\n", 505, b"/v1/a"),
    "unknown_method": (b"FLY /v1/a HTTP/1.1\r\nHost: d\r\n\r\n", 501, b"/v1/a"),
    "connect_refused": (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", 501, b""),
    "upgrade_refused": (get(b"/v1/a", extra=b"Connection: upgrade\r\nUpgrade: websocket\r\n"), 501, b"/v1/a"),
    "expectation_failed": (post(path=b"/v1/a", extra=b"Expect: tea\r\n"), 417, b"/v1/a"),
    "too_many_headers": (get(b"/v1/a", extra=b"X: y\r\n" * 200), 431, b"/v1/a"),
    "head_too_long": (get(b"/v1/a?b=c", extra=b"X: %b\r\n" % (b"y" * 5000)), 431, b"/v1/a?b=c"),
    "head_timeout": (b"GET /v1/a HTTP/1.1\r\nHost:", 408, b"/v1/a"),
    "head_timeout, no target": (b"GET /v1", 408, b""),
    "body_too_long": (post(b"x" * 2000, path=b"/v1/a"), 413, b"/v1/a"),
    "body_timeout": (post(b"xx", path=b"/v1/a")[:-1], 408, b"/v1/a"),
    "bad_request, in its body": (
        b"POST /v1/a HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        400,
        b"/v1/a",
    ),
    "trailers_too_long": (
        b"POST /v1/a HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: %b\r\n\r\n"
        % (b"y" * 9000),
        431,
        b"/v1/a",
    ),
}

BEHIND_A_HEAD = {"body_too_long", "body_timeout", "bad_request, in its body", "trailers_too_long"}
"""Refused when there was an exchange already."""


@pytest.mark.parametrize("name", ERRORS)
async def test_an_error_names_its_target(name: str):
    """Status and code are right, the handler is told the target, and the connection closes behind it."""
    request, status, target = ERRORS[name]
    code = name.partition(",")[0]
    limits = Limits(**FAST, header_bytes=4000, body_bytes=1000, head_timeout=0.1, body_timeout=0.1)
    async with World(limits) as world:
        client = await world.client(request)
        got = await client.until_closed()
    head, _, body = got.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), got
    assert b"x-drover-error: " + code.encode() in head.split(b"\r\n")
    assert b"x-target: " + target in head.split(b"\r\n")
    met = b"exchange" if name in BEHIND_A_HEAD else b"stranger at 127.0.0.1"
    assert b"x-asked: " + met in head.split(b"\r\n")
    assert b"connection: close" in head
    assert body.startswith(b'{"error"')
    assert got.count(b"x-drover-error") == 1
    assert not world.origin.peers
    assert code in CODES


@pytest.mark.parametrize("before", [b"", b"\r\n"])
async def test_an_error_of_head_has_no_body(world: World, before: bytes):
    """HEAD is answered by a head, also where nothing else could be read of it."""
    client = await world.client(before + b"HEAD / HTTP/1.1\r\nHost: a\r\nX: a\0\r\n\r\n")
    head, _, body = (await client.until_closed()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-length: " in head
    assert body == b""


async def test_too_many_connections_has_no_target():
    """Who is turned away at the door has asked for nothing yet."""
    async with World(Limits(**FAST, max_connections=1)) as world:
        await world.client()
        got = await (await world.client()).until_closed()
        assert got.startswith(b"HTTP/1.1 503 ")
        assert b"x-target: \r\n" in got


async def test_a_handler_without_words(world: World):
    """If the handler fails even at putting the error into words, the client is told it plainly."""

    def nothing(*_):
        raise RuntimeError("no words")

    world.handler.error_answer = nothing  # type: ignore[method-assign]
    got = await (await world.client(b"GET / HTTP/3.0\r\n\r\n")).until_closed()
    assert got.startswith(b"HTTP/1.1 505 ")
    assert got.endswith(b'{"error": "only HTTP/1.1 and HTTP/1.0 are spoken here"}')
    assert [str(problem["exception"]) for problem in world.problems] == ["no words"]
    world.problems.clear()


@pytest.mark.parametrize("fault", UpstreamFault)
def test_every_fault_has_a_code(fault: UpstreamFault):
    """What can go wrong with an upstream is in the reference of codes."""
    assert f"upstream_{fault.value}" in CODES


@pytest.mark.parametrize(
    ("raw", "target"),
    [
        (b"", b""),
        (b"GET / HTTP/1.1", b"/"),
        (b"\r\nGET /a?b HTTP/1.1\r\n", b"/a?b"),
        (b"GET HTTP://u@h/a ", b""),
        (b"POST https://h:1/v1/x HTTP/9", b"/v1/x"),
        (b"GET /a\x00 HTTP/1.1", b""),
        (b"G" * 10000, b""),
    ],
)
def test_targets_of_refused_heads(raw: bytes, target: bytes):
    """A target is recognised as far as it is certain, and never more than its plain bytes."""
    assert target_of(raw) == target


async def test_others_have_their_turn_between_pipelined_requests(world: World):
    """A thousand requests in one write are answered in order, and don't keep one of another's waiting."""
    world.handler.on_ready = lambda ex: ex.respond(200, [], ex.path)
    hog = await world.client()
    other = await world.client()
    await eventually_async(lambda: len(world.server.connections) == 2)
    hog.send(b"".join(get(b"/%d" % n) for n in range(1000)))
    other.send(get(b"/other"))
    await other.until(b"/other")
    assert [ex.path for ex in world.handler.exchanges].index(b"/other") < 200
    got = await hog.until(b"/999")
    assert re.findall(rb"\r\n\r\n/(\d+)", got) == [b"%d" % n for n in range(1000)]


async def test_a_pipeline_goes_on_behind_a_slow_answer(world: World):
    """Requests answered here and by the upstream, mixed in one write, keep their order."""
    world.handler.plan = BodyPlan.BUFFER
    world.handler.on_ready = lambda ex: (
        world.handler.send_on(ex) if ex.path == b"/up" else ex.respond(200, [], ex.path)
    )
    client = await world.client(b"".join([get(b"/%d" % n) for n in range(40)] + [get(b"/up"), get(b"/last")]))
    upstream = await world.origin.request()
    assert b"/last" not in client.received
    upstream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n/up")
    got = await client.until(b"/last")
    assert re.findall(rb"\r\n\r\n(/\d+|/up|/last)", got) == [b"/%d" % n for n in range(40)] + [
        b"/up",
        b"/last",
    ]
