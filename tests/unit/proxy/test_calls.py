"""Control calls: one request on one connection, and every way in which no whole answer comes."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from drover_proxy.drivers.calls import Address, Answer, CallError, address_of, call
from drover_proxy.drivers.ollama import OllamaClient, OllamaError

from tests.support import eventually_async, free_port

LIMITS = {"connect_seconds": 2.0, "answer_seconds": 2.0}


@contextlib.asynccontextmanager
async def server(answer, heard=None, left=None):
    """A server that sends these bytes to whoever asks, and then closes unless the bytes end with `...`."""
    writers = []

    async def serve(reader, writer):
        writers.append(writer)
        head = await reader.readuntil(b"\r\n\r\n")
        if heard is not None:
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
            heard.append(head + await reader.readexactly(length))
        writer.write(answer.removesuffix(b"..."))
        if answer.endswith(b"..."):
            with contextlib.suppress(ConnectionError):
                await reader.read()
            if left is not None:
                left.set()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield Address("127.0.0.1", listening.sockets[0].getsockname()[1])
    finally:
        listening.close()
        for writer in writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


def ask(answer, *, body=None, heard=None, **limits):
    """Send one request to such a server."""

    async def run():
        async with server(answer, heard) as address:
            return await call(address, "POST" if body else "GET", "/api/x", body, **{**LIMITS, **limits})

    return asyncio.run(run())


def test_whole_answers():
    """By length and in chunks, while the connection stays open or closes."""
    plain = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nyes..."
    assert ask(plain) == Answer(200, b"yes", "text/plain")
    chunked = b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n1\r\n!\r\n0\r\n\r\n"
    assert ask(chunked) == Answer(404, b"no!", "")


def test_what_is_sent():
    """The Host that a loopback Ollama accepts, the body with its length, no wish to keep the connection."""
    heard: list[bytes] = []
    ask(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", body=b'{"a":1}', heard=heard)

    head, _, body = heard[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /api/x HTTP/1.1\r\nhost: localhost\r\n")
    assert b"connection: close" in head
    assert body == b'{"a":1}'


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", "before the answer was whole"),
        (b"", "before the answer was whole"),
        (b"SSH-2.0-OpenSSH_9.2\r\n...", "no HTTP"),
    ],
)
def test_what_is_no_answer(answer, said):
    """Cut off, closed at once, or another protocol: an error that says so."""
    with pytest.raises(CallError, match=said):
        ask(answer)


def test_too_long_an_answer(monkeypatch):
    """An answer without an end isn't collected for ever."""
    monkeypatch.setattr("drover_proxy.drivers.calls.MOST_BYTES", 10)
    with pytest.raises(CallError, match="longer than"):
        ask(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nmore than ten bytes...")


def test_no_answer_in_time():
    """Silence ends with the time limit, and the server is told by the closed connection."""

    async def run():
        left = asyncio.Event()
        async with server(b"...", left=left) as address:
            with pytest.raises(asyncio.TimeoutError):
                await call(address, "GET", "/", **{**LIMITS, "answer_seconds": 0.05})
            await asyncio.wait_for(left.wait(), 5)

    asyncio.run(run())


def test_who_stops_asking_closes_the_connection():
    """A call that is cancelled, like a load at the proxy's end, is closed, which aborts it."""

    async def run():
        left, heard = asyncio.Event(), []
        async with server(b"...", heard, left) as address:
            task = asyncio.create_task(call(address, "GET", "/", **LIMITS))
            await eventually_async(lambda: heard, every=0)
            task.cancel()
            await asyncio.wait_for(left.wait(), 5)

    asyncio.run(run())


def test_ollamas_errors():
    """Nobody there counts as refused, a status as itself with Ollama's own words, silence as a time-out."""

    async def version(answer):
        async with server(answer) as (host, port):
            return await OllamaClient("gpu0", f"http://{host}:{port}").version()

    with pytest.raises(OllamaError) as nobody:
        asyncio.run(OllamaClient("gpu0", f"http://127.0.0.1:{free_port()}").version())
    assert nobody.value.refused
    with pytest.raises(OllamaError, match="no such model") as refused:
        asyncio.run(version(b'HTTP/1.1 404 X\r\nContent-Length: 25\r\n\r\n{"error":"no such model"}'))
    assert (refused.value.status, refused.value.refused) == (404, False)
    with pytest.raises(OllamaError, match="no JSON"):
        asyncio.run(version(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n<>"))


def test_addresses():
    """Of names, of IPv6, and without a port."""
    assert address_of("http://127.0.0.1:11434") == ("127.0.0.1", 11434)
    assert address_of("http://[::1]:11435/") == ("::1", 11435)
    assert address_of("http://ollama") == ("ollama", 80)
