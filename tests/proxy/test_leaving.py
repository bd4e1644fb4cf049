"""A client that leaves frees its slot when Ollama has stopped: seen at an Ollama, simulated or real."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import pytest
from drover_proxy.app.gateway import STOP_SECONDS

from tests.proxy.authority import Authority, context_of
from tests.proxy.rig import KEYS, SMALL
from tests.support import eventually

ESTABLISHED = "01"


@pytest.mark.timeout(120)
def test_the_slot_of_who_left_is_free_soon_and_not_at_once(make_rig):
    """The next one is served by the only slot, after Ollama has ended with the one before."""
    rig = make_rig(knobs={"answer_tokens": 4000, "tokens_per_second": 50.0}).start()
    body = {"model": SMALL, "prompt": "a", "options": {"num_predict": 4000}}
    waits = []
    with rig.http() as client:
        for _ in range(5):
            with client.stream("POST", "/api/generate", json=body) as answer:
                assert answer.status_code == 200
                lines = answer.iter_lines()  # kept: httpx closes the answer with it
                next(lines)
                assert rig.core()["in_flight"] == 1
            left_at = time.monotonic()
            eventually(rig.idle, every=0.005, timeout=5)
            waits.append(time.monotonic() - left_at)
    assert sorted(waits)[2] < 1.0, waits
    assert not rig.lines("slow_to_stop")


def unread_bytes(port: int) -> int:
    """Return what connections to a port have got from there and nobody has read."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(
        int(row[4].partition(":")[2], 16)
        for row in rows
        if row[2].endswith(f":{port:04X}") and row[3] == ESTABLISHED
    )


WAYS = {
    "half-close": lambda client: client.shutdown(socket.SHUT_WR),  # over TLS this says nothing of its end
    "close": lambda client: client.close(),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_slow_reader_that_leaves_holds_nothing(make_rig, tmp_path, tls, way):
    """Everything between it and Ollama is full: it is seen to leave all the same, and Ollama hears of it."""
    rig = make_rig(knobs={"answer_tokens": 150_000, "tokens_per_second": 100_000.0})
    authority = Authority(tmp_path)
    if tls:
        authority.furnish(rig)
    rig.start()
    body = json.dumps({"model": SMALL, "prompt": "a", "options": {"num_predict": 150_000}}).encode()
    head = f"POST /api/generate HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEYS['use']}\r\n"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(20)
        client.connect(("127.0.0.1", rig.port))
        if tls:
            client = context_of(authority).wrap_socket(client, server_hostname="localhost")  # noqa: PLW2901
        with client:
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert client.recv(12) == b"HTTP/1.1 200"
            port, seen = rig.instance_ports[0], [-1, -2]

            def stands_still():
                seen.append(unread_bytes(port))
                return seen[-1] == seen[-2] == seen[-3] > 0

            eventually(stands_still, timeout=40, every=0.3)
            assert rig.core()["in_flight"] == 1
            WAYS[way](client)
            eventually(rig.idle, every=0.01, timeout=STOP_SECONDS - 5)
    eventually(lambda: rig.lines("access"))
    assert rig.lines("access")[0]["kind"] == "client_gone"
    assert not rig.lines("slow_to_stop")
