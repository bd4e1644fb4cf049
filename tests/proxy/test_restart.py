"""`systemctl restart` under load: nothing is lost, streams finish, and two processes side by side get on."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest
from drover_proxy.app.service import CATALOGUE_PATIENCE_SECONDS

from tests.proxy.authority import Authority, context_of
from tests.proxy.rig import GIB, KEYS, MIDDLE, OTHER, SMALL
from tests.proxy.signer import Signer
from tests.proxy.systemd import Systemd, Traffic, alive
from tests.support import eventually

BACKLOG_SECONDS = 0.3
"""The promise. It is held against the best of three restarts: this machine may be busy with other things."""


@pytest.fixture
def make_systemd(make_rig):
    """Start a rig's proxy as systemd does; whatever is left at the end is ended."""
    made = []

    def make(**options):
        config, tls = options.pop("config", {}), options.pop("tls", None)
        options["knobs"] = {"answer_tokens": 5000} | options.get("knobs", {})
        rig = make_rig(**options)
        rig.write_config(**{"drain_seconds": 20} | config)
        for index in range(len(rig.gpu_bytes)):
            rig.start_instance(index)
        made.append(Systemd(rig, tls))
        made[-1].start()
        made[-1].wait_ready()
        eventually(rig.is_ready, timeout=20, ignore=(httpx.HTTPError,))
        return made[-1]

    yield make
    for one in made:
        one.close()


def generate(systemd, model, tokens):
    """Begin a stream in a thread; returns the thread and the list that its lines come into."""
    lines: list[dict] = []

    def read():
        with systemd.rig.http() as http:
            body = {"model": model, "prompt": "One", "options": {"num_predict": tokens}}
            with http.stream("POST", "/api/generate", json=body) as answer:
                lines.extend(json.loads(line) for line in answer.iter_lines())

    thread = threading.Thread(target=read)
    thread.start()
    return thread, lines


@pytest.mark.timeout(120)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_restart_under_load_loses_nothing(make_systemd, tmp_path, tls):
    """Three restarts under load: every request is answered, every stream ends whole, nobody waits long."""
    config, context = {}, None
    if tls:
        authority = Authority(tmp_path)
        cert, key, _ = authority.issue("server")
        config, context = {"tls": {"cert": str(cert), "key": str(key)}}, context_of(authority)
    systemd = make_systemd(slots=4, config=config, tls=context, knobs={"tokens_per_second": 200})
    traffic = Traffic(systemd.port, context)
    systemd.load(SMALL)
    traffic.start(streams=3, tokens=500)
    eventually(lambda: systemd.rig.core()["in_flight"] == 3)
    longest = []
    for _ in range(3):
        before = len(traffic.answers)
        assert systemd.restart() < 2, "the main process goes at once"
        count = len(traffic.answers)
        eventually(lambda count=count: len(traffic.answers) > count + 50)
        longest.append(max(traffic.answers[before:]))
    traffic.stop()

    assert not traffic.faults
    assert set(traffic.streams) == {501}
    assert max(traffic.answers) < 2
    assert min(longest) < BACKLOG_SECONDS, longest
    eventually(lambda: len(systemd.rig.lines("stopped")) == 3, timeout=25)
    assert [line["cut"] for line in systemd.rig.lines("stopped")] == [0, 0, 0]
    eventually(lambda: not systemd.servers())
    eventually(lambda: len(systemd.rig.lines("taken_over")) >= 1)
    assert sorted(path.name for path in systemd.runtime.iterdir()) == ["lock"]


def test_a_page_that_can_not_be_written_cuts_nothing(make_systemd):
    """Then there is no handing over, but what is under way is finished first."""
    systemd = make_systemd(knobs={"tokens_per_second": 200})
    thread, lines = generate(systemd, SMALL, 300)
    eventually(lambda: len(lines) > 10)
    (server,) = Path(f"/proc/{systemd.main.pid}/task/{systemd.main.pid}/children").read_text().split()
    (systemd.runtime / f"{server}.page").mkdir()
    systemd.stop()
    thread.join()
    assert lines[-1]["done"]
    assert systemd.rig.lines("handover_page_unwritten")
    assert [line["cut"] for line in systemd.rig.lines("stopped")] == [0]


def test_a_new_process_that_can_tell_nothing_serves(make_systemd):
    """It says so, and the old one finishes what it has."""
    systemd = make_systemd(knobs={"tokens_per_second": 200})
    thread, lines = generate(systemd, SMALL, 300)
    eventually(lambda: len(lines) > 10)
    (systemd.runtime / "lock").unlink()
    (systemd.runtime / "lock").mkdir()
    systemd.restart()
    assert [line["error"] for line in systemd.rig.lines("handover_page_unwritten")]
    thread.join()
    assert lines[-1]["done"]
    other, more = generate(systemd, SMALL, 5)
    other.join()
    assert more[-1]["done"]


def test_slots_and_models_of_an_old_process_are_left_alone(make_systemd):
    """The new process waits for the slot of an old stream, and doesn't evict its model."""
    # The stream has to outlast a start, which takes seconds on a host that is busy.
    systemd = make_systemd(knobs={"tokens_per_second": 80}, models=(SMALL, MIDDLE, OTHER))
    rig = systemd.rig
    rig.ollama().generate(MIDDLE)
    old, lines = generate(systemd, MIDDLE, 600)
    eventually(lambda: rig.core()["in_flight"] == 1)
    systemd.restart()
    eventually(lambda: any(runner["elsewhere"] == 1 for runner in rig.core()["runners"]))
    same, more = generate(systemd, MIDDLE, 5)
    other, others = generate(systemd, OTHER, 5)  # of 10 GB only one of the two fits
    eventually(lambda: rig.core()["waiting"] == 2)
    assert rig.loaded() == {MIDDLE}
    assert not more
    assert not rig.lines("unload_started")
    for thread in (old, same, other):
        thread.join(30)

    assert (len(lines), len(more), len(others)) == (601, 6, 6)
    eventually(lambda: rig.lines("taken_over"), timeout=15)


def test_the_old_process_accepts_until_the_new_one_knows_the_models(make_systemd):
    """Where Ollama is too busy to list them, nobody is told that no instance answers."""
    systemd = make_systemd()
    systemd.load(SMALL)
    ollama = next(process for process in systemd.rig.processes if process is not systemd.main)
    ollama.send_signal(signal.SIGSTOP)
    restart = threading.Thread(target=systemd.restart)
    restart.start()
    try:
        eventually(lambda: systemd.rig.lines("taking_over"), timeout=20)
        restart.join(CATALOGUE_PATIENCE_SECONDS + 1)
        assert restart.is_alive()
        asked, lines = generate(systemd, SMALL, 5)
    finally:
        ollama.send_signal(signal.SIGCONT)
    asked.join(30)
    restart.join(30)

    assert len(lines) == 6
    assert not restart.is_alive()


def test_kept_connections_bring_one_more_request(make_systemd):
    """A connection kept from before, and one in the middle of a request, are served by the old process.

    It waits for the slot that a stream of the new process is in: slots are shared in both directions.
    """
    systemd = make_systemd(knobs={"tokens_per_second": 200})
    rig, traffic = systemd.rig, Traffic(systemd.port)
    systemd.load(SMALL)
    kept, half = traffic.connection(), socket.create_connection(("127.0.0.1", systemd.port), timeout=10)
    traffic.ask(kept, "/api/version")
    half.sendall(f"GET /api/version HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEYS['use']}\r\n".encode())
    systemd.restart()
    eventually(lambda: rig.lines("handed_over"))
    thread, lines = generate(systemd, SMALL, 300)
    eventually(lambda: rig.core()["in_flight"] == 1)

    half.sendall(b"\r\n")
    answer = b"".join(iter(lambda: half.recv(4096), b"")).lower()
    assert answer.startswith(b"http/1.1 200")
    assert b"connection: close\r\n" in answer
    ended = time.monotonic()
    body = {"model": SMALL, "prompt": "[[tokens=5]]"}
    assert len(traffic.ask(kept, "/api/generate", body).splitlines()) == 6
    assert time.monotonic() - ended > 0.2, "it waited for the slot"
    thread.join(20)
    assert len(lines) == 301
    for connection in (kept, half):
        connection.close()


def test_an_old_process_goes_by_the_keys_of_today(make_systemd):
    """A key that is revoked during a restart doesn't come in by a connection that was kept from before."""
    systemd = make_systemd()
    rig = systemd.rig
    with rig.http() as kept:
        assert kept.get("/api/version").status_code == 200
        systemd.restart()
        rig.keys_file.write_text("keys: []")
        eventually(lambda: len(rig.lines("keys_reloaded")) == 2)
        assert systemd.servers(), "else the rest of this shows nothing"
        answer = kept.get("/api/version")
        assert (answer.status_code, answer.headers["connection"]) == (401, "close")


def test_an_old_process_finishes_loads_for_those_who_wait(make_systemd):
    """Requests that wait for a load when the proxy is restarted get their answer; the next load waits."""
    systemd = make_systemd(knobs={"disk_bytes_per_second": 2e9}, models=(SMALL, MIDDLE, OTHER))
    rig = systemd.rig
    first, lines = generate(systemd, MIDDLE, 5)
    eventually(lambda: rig.lines("load_started"))
    systemd.restart()
    second, more = generate(systemd, OTHER, 5)
    for thread in (first, second):
        thread.join(40)

    assert (len(lines), len(more)) == (6, 6)
    order = [(line["event"], line["model"]) for line in _log(rig) if line["event"].startswith("load_")]
    assert order == [
        ("load_started", MIDDLE),
        ("load_finished", MIDDLE),
        ("load_started", OTHER),
        ("load_finished", OTHER),
    ]


def _log(rig):
    return [json.loads(line) for line in rig.log.read_text().splitlines() if line.startswith("{")]


def test_a_restart_waits_for_the_admin_address(make_systemd):
    """Somebody has it for a moment: the start says so, waits, and clients are served by the old process."""
    systemd = make_systemd()
    rig = systemd.rig
    systemd.stop()
    with socket.socket() as somebody:
        somebody.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        somebody.bind(("127.0.0.1", rig.admin_port))
        somebody.listen()
        systemd.start()
        eventually(lambda: rig.lines("address_taken"))
        with rig.http() as http:
            assert http.get("/api/version").status_code == 200
    systemd.wait_ready()
    assert str(rig.admin_port) in rig.lines("address_taken")[0]["message"]


def test_a_signature_is_used_once_over_a_restart(make_systemd):
    """What either process took, the other refuses from another address; what is new, both take."""
    systemd = make_systemd()
    rig, signer = systemd.rig, Signer()
    rig.write_keys(ann={"name": "ann", "ssh": signer.line})
    eventually(lambda: rig.lines("keys_reloaded"))
    stamp = int(time.time())

    def ask(client, path):
        return signer.send(client, "GET", path, stamp=stamp).status_code

    with rig.http(None, transport=_elsewhere(9)) as kept, rig.http(None) as before:
        assert ask(before, "/api/tags") == 200
        assert kept.get("/api/tags", headers={"x-api-key": KEYS["use"]}).status_code == 200
        systemd.restart()
        eventually(lambda: rig.lines("handed_over"))
        with rig.http(None) as new, rig.http(None, transport=_elsewhere(8)) as thief:
            assert ask(new, "/api/ps") == 200
            assert ask(thief, "/api/tags") == 401
            assert ask(kept, "/api/ps") == 401, "the old process, on a connection from before"
            assert ask(thief, "/api/version") == 200, "not used yet"
    assert {line["why"] for line in rig.lines("rejected")} == {"signature_replayed"}
    assert not rig.lines("signatures_not_kept")


def _elsewhere(number):
    """Come from an address of its own."""
    return httpx.HTTPTransport(local_address=f"127.0.9.{number}")


def test_old_processes_end_when_told_again_or_when_their_time_is_over(make_systemd):
    """Two restarts in a row: one old process is told to stop, the other's time runs out; both cut and go."""
    systemd = make_systemd(slots=2, knobs={"tokens_per_second": 20})
    rig = systemd.rig
    rig.ollama().generate(SMALL)
    threads = []
    for count in (1, 2):
        threads.append(_doomed(systemd))
        eventually(lambda: rig.core()["in_flight"] == 1)
        if count == 2:
            rig.write_config(drain_seconds=1)
        systemd.restart()
        eventually(lambda count=count: rig.core()["siblings"]["requests"] == count)
    first, second = systemd.servers()
    os.kill(first, signal.SIGTERM)
    eventually(lambda: first not in systemd.servers())
    eventually(lambda: rig.core()["siblings"]["requests"] == 1)
    os.kill(second, signal.SIGKILL)  # a crash: its page is known for a dead one's
    eventually(lambda: rig.core()["siblings"]["requests"] == 0)
    eventually(lambda: rig.lines("taken_over"))
    for thread in threads:
        thread.join(10)
    assert [line["cut"] for line in rig.lines("stopped")] == [1]


def _doomed(systemd):
    """Begin a stream that will be cut."""

    def read():
        body = {"model": SMALL, "prompt": "One", "options": {"num_predict": 2000}}
        with systemd.rig.http() as http, pytest.raises(httpx.HTTPError):
            http.post("/api/generate", json=body)

    thread = threading.Thread(target=read)
    thread.start()
    return thread


def test_what_takes_too_long_is_cut(make_systemd):
    """After drain_seconds the old process cuts what is left, says how much, and goes."""
    systemd = make_systemd(knobs={"tokens_per_second": 20}, config={"loads": {}})
    rig = systemd.rig
    rig.write_config(drain_seconds=2)
    rig.signal(signal.SIGHUP)
    eventually(lambda: rig.lines("reloaded"))
    rig.ollama().generate(SMALL)
    thread = _doomed(systemd)
    eventually(lambda: rig.core()["in_flight"] == 1)
    systemd.restart()
    eventually(lambda: rig.lines("stopped"), timeout=15)
    thread.join(10)

    assert rig.lines("stopped")[0]["cut"] == 1
    assert rig.lines("handed_over")[0]["requests"] == 1


def test_a_stop_lets_streams_finish_and_closes_the_door(make_systemd):
    """`systemctl stop`: the main process goes at once, the stream ends whole, the server ends by itself."""
    systemd = make_systemd(knobs={"tokens_per_second": 100}, config={"drain_seconds": 6})
    systemd.rig.ollama().generate(SMALL)
    thread, lines = generate(systemd, SMALL, 300)
    eventually(lambda: systemd.rig.core()["in_flight"] == 1)
    assert systemd.stop() < 2
    thread.join(20)

    assert len(lines) == 301
    eventually(lambda: not systemd.servers(), timeout=20)
    assert [line["cut"] for line in systemd.rig.lines("stopped")] == [0]


def test_a_reload_cuts_nothing(make_systemd):
    """SIGHUP with streams under way: they end whole, and it is the same process as before."""
    systemd = make_systemd(knobs={"tokens_per_second": 100}, config={"models": {}})
    systemd.rig.ollama().generate(SMALL)
    thread, lines = generate(systemd, SMALL, 200)
    eventually(lambda: systemd.rig.core()["in_flight"] == 1)
    for count in (1, 2, 3):
        systemd.rig.signal(signal.SIGHUP)
        eventually(lambda count=count: len(systemd.rig.lines("reloaded")) == count)
    thread.join(20)

    assert len(lines) == 201
    assert systemd.main.poll() is None


def test_server_and_supervisor_live_and_die_together(make_systemd):
    """A killed server ends the main process the same way; a killed supervisor takes its server along."""
    systemd = make_systemd(gpu_bytes=(10 * GIB,))
    server = _server_of(systemd.main.pid)
    os.kill(server, signal.SIGKILL)
    assert systemd.main.wait(10) == -signal.SIGKILL

    systemd.start()
    systemd.wait_ready()
    server = _server_of(systemd.main.pid)
    systemd.main.kill()
    systemd.main.wait(10)
    eventually(lambda: not alive(server))

    systemd.start()
    systemd.wait_ready()
    systemd.main.send_signal(signal.SIGABRT)  # as systemd's watchdog does
    assert systemd.main.wait(10) == -signal.SIGABRT


def _server_of(pid):
    """Return the only child of a process."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)
