"""The keys file while the proxy runs: changes count, a broken file changes nothing, guessing is slow."""

from __future__ import annotations

import signal
import socket
import threading
import time

import pytest
import yaml
from drover_proxy.guard.keys import hash_of

from tests.proxy.rig import KEYS, SMALL
from tests.support import eventually


@pytest.fixture
def fresh(make_rig):
    """A running rig of the test's own."""
    return make_rig().start()


def status(rig, key, path="/api/tags"):
    """Ask with a key."""
    with rig.http(key) as http:
        return http.get(path).status_code


def entry(name, key, **more):
    """Return an entry of the keys file."""
    return {"name": name, "sha256": hash_of(key), **more}


def metric(rig, name):
    """Return a metric's value, by its name with its labels."""
    lines = rig.admin("/metrics").text.splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(f"{name} ")), None)


def test_a_change_counts_without_a_signal(fresh):
    """A key that is added is let in, one that is taken out is not, within seconds and on open connections."""
    with fresh.http("drv_late") as http:
        assert http.get("/api/tags").status_code == 401
        fresh.write_keys(late=entry("late", "drv_late"))
        eventually(lambda: http.get("/api/tags").status_code == 200)
        fresh.write_keys()
        eventually(lambda: http.get("/api/tags").status_code == 401)
    assert not fresh.lines("reloaded")
    assert fresh.proxy.poll() is None


def test_a_head_that_is_known_lets_nobody_in(fresh):
    """The same head on a connection of its own each time: what counts are the keys in force."""

    def chat(key="drv_late"):
        with fresh.http(key) as http:  # curl's way: a connection for a request
            return http.post("/api/chat", json={"model": SMALL, "stream": False}).status_code

    assert chat() == 401
    fresh.write_keys(late=entry("late", "drv_late"))
    eventually(lambda: chat() == 200)
    fresh.write_keys(late=entry("late", "drv_late", models=["another"]))
    eventually(lambda: chat() == 403)
    fresh.write_keys(late=entry("late", "drv_late", expires="2020-01-01"))
    eventually(lambda: chat() == 401)
    assert chat("use") == 200
    fresh.write_keys()
    assert chat() == 401
    assert chat("use") == 200


def test_a_broken_file_keeps_the_last_good_one(fresh):
    """The log names the line, never what stands there; the metric says so until the file is whole again."""
    good = fresh.keys_file.read_text()
    fresh.keys_file.write_text(good + "- {name: x, sha256: drv_pasted-by-mistake}\n")
    failed = eventually(lambda: fresh.lines("keys_reload_failed"))

    assert status(fresh, "use") == 200
    assert metric(fresh, "drover_keys_last_reload_successful") == 0
    assert failed[0]["file"] == str(fresh.keys_file)
    assert "line" in failed[0]["problems"][0]
    assert "sha256" in failed[0]["problems"][0]
    assert "drv_pasted" not in fresh.log.read_text()
    fresh.keys_file.unlink()
    eventually(lambda: len(fresh.lines("keys_reload_failed")) == 2)
    assert status(fresh, "use") == 200
    fresh.keys_file.write_text(good)
    eventually(lambda: metric(fresh, "drover_keys_last_reload_successful") == 1)
    assert len(fresh.lines("keys_reload_failed")) == 2, "a file that stays broken is told of once"


def test_keys_are_followed_whatever_the_configuration_is_like(fresh):
    """A reload that fails for another reason doesn't swallow a change of the keys."""
    good = fresh.config_file.read_text()
    fresh.config_file.write_text("instances: 1")
    fresh.write_keys(late=entry("late", "drv_late"))
    fresh.signal(signal.SIGHUP)
    eventually(lambda: fresh.lines("reload_failed"))
    eventually(lambda: status(fresh, "drv_late") == 200)
    fresh.config_file.write_text(good)
    fresh.keys_file.write_text("keys: [{name: drv_raw}]")
    fresh.signal(signal.SIGHUP)
    eventually(lambda: metric(fresh, "drover_keys_last_reload_successful") == 0)
    assert status(fresh, "drv_late") == 200


def test_an_answer_in_flight_outlives_its_key(make_rig):
    """A stream that was let in goes on to its end; the next request of the same key is refused."""
    rig = make_rig(knobs={"answer_tokens": 400, "tokens_per_second": 100.0})
    rig.write_keys(late=entry("late", "drv_late"))
    rig.start()
    with (
        rig.http("drv_late") as http,
        http.stream("POST", "/api/generate", json={"model": SMALL, "prompt": "x"}) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        rig.write_keys()
        eventually(lambda: rig.lines("keys_reloaded"))
        assert '"done":true' in list(lines)[-1]
        assert http.get("/api/tags").status_code == 401


def raw_answer(port, path, shown, number):
    """Ask with a key, from an address of its own; return the answer without what differs by time."""
    line = f"Authorization: Bearer {shown}\r\n" if shown else ""
    source = (f"127.0.7.{number}", 0)  # tries from one address would slow each other down
    with socket.create_connection(("127.0.0.1", port), timeout=20, source_address=source) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{line}\r\n".encode())
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    fields = head.split(b"\r\n")
    return tuple(f for f in fields if not f.lower().startswith((b"date:", b"x-request-id:"))), body


def test_kinds_of_strangers_are_told_the_same(fresh):
    """Unknown, expired, revoked and no key: every byte but the date is the same, in the dialect's words."""
    old = entry("old", "drv_old", expires="2020-01-01")
    fresh.write_keys(old=old, left=entry("left", "drv_left"))
    eventually(lambda: status(fresh, "drv_left") == 200)
    fresh.write_keys(old=old)
    eventually(lambda: len(fresh.lines("keys_reloaded")) == 2)
    number = 0
    for path in ("/api/tags", "/v1/models", "/v1/messages", "/no/such/path"):
        told = set()
        for shown in ("drv_unknown", "drv_old", "drv_left", None):
            number += 1
            told.add(raw_answer(fresh.port, path, shown, number))
        assert len(told) == 1, told
        fields, body = told.pop()
        assert fields[0].startswith(b"HTTP/1.1 401 ")
        assert any(field.lower().startswith(b"www-authenticate: bearer") for field in fields)
        assert isinstance(yaml.safe_load(body)["error"], dict if path.startswith("/v1/") else str)


def test_guessing_is_slowed_and_right_keys_are_not(fresh):
    """Some wrong tries are answered at once, more of them later and later; the right key never waits."""
    times = []
    with fresh.http("drv_guess") as guesser:
        for _ in range(8):
            began = time.monotonic()
            assert guesser.get("/api/tags").status_code == 401
            times.append(time.monotonic() - began)
    began = time.monotonic()
    assert status(fresh, "use") == 200
    right = time.monotonic() - began

    assert max(times[:4]) < 0.4
    assert times[-1] > 0.9
    assert right < 0.9
    assert metric(fresh, "drover_slowed_answers_total") >= 2
    assert metric(fresh, 'drover_kept_out_total{reason="key_unknown"}') == 8


def test_nobody_who_asks_without_a_key_is_slowed(fresh):
    """Health checks come without one, and are answered at once however often."""
    began = time.monotonic()
    with fresh.http(None) as http:
        assert {http.get("/api/version").status_code for _ in range(40)} == {401}
    assert time.monotonic() - began < 3
    assert metric(fresh, "drover_slowed_answers_total") == 0


def test_a_flood_of_keyless_requests_is_no_flood_of_log(fresh):
    """A few lines, then counts; the metrics count all, and whoever has a key is logged as ever."""
    with fresh.http(None) as http:
        assert {http.get("/api/version").status_code for _ in range(300)} == {401}
    for name in ("use", "admin"):
        assert status(fresh, name) == 200
    eventually(lambda: len(fresh.lines("access")) >= 7)
    access = fresh.lines("access")
    assert [line["status"] for line in access] == [401] * 5 + [200] * 2
    ids = [line["id"] for line in fresh.lines("rejected")]
    assert ids == [line["id"] for line in access[:5]]
    assert metric(fresh, 'drover_kept_out_total{reason="no_key"}') == 300
    assert metric(fresh, 'drover_errors_total{code="unauthorized"}') == 300
    fresh.signal(signal.SIGTERM)  # what a window held back is told at the end, too
    assert fresh.proxy.wait(10) == 0
    (more,) = fresh.lines("rejected_more")
    assert (more["count"], more["codes"], more["most"]) == (295, {"unauthorized": 295}, {"127.0.0.1": 295})


def test_guessers_hold_nothing(fresh):
    """Many at once wait in bounded number; those who leave are forgotten at once, and so are their places."""

    def guess():
        with socket.create_connection(("127.0.0.1", fresh.port), timeout=20) as client:
            client.sendall(b"GET /api/tags HTTP/1.1\r\nHost: x\r\nx-api-key: drv_guess\r\n\r\n")
            client.settimeout(0.3)
            try:
                client.recv(1)
            except TimeoutError:
                return True  # it leaves without its answer
        return False

    with fresh.http("drv_guess") as http:
        for _ in range(7):
            http.get("/api/tags")
    waited = []
    threads = [threading.Thread(target=lambda: waited.append(guess())) for _ in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert len(waited) == 60
    assert 0 < sum(waited) < 60
    eventually(lambda: metric(fresh, "drover_slowed_answers_waiting") == 0, timeout=3)
    eventually(lambda: metric(fresh, "drover_connections") <= 2)
    assert status(fresh, "use") == 200
    assert not fresh.lines("internal_error")


def test_keys_by_command_count_at_once(fresh):
    """What the command writes while the proxy runs is let in and out; the raw key is nowhere in the log."""
    import subprocess
    import sys

    def keys(*words, **more):
        command = [sys.executable, "-m", "drover_proxy", "keys", *words, "--file", str(fresh.keys_file)]
        return subprocess.run(command, capture_output=True, text=True, check=True, **more).stdout.strip()

    key = keys("add", "new", "--scope", "use", "--model", "llama*")
    eventually(lambda: status(fresh, key) == 200)
    keys("revoke", "new")
    eventually(lambda: status(fresh, key) == 401)
    assert key not in fresh.log.read_text()
    assert KEYS["use"] not in fresh.log.read_text()


def test_patterns_hold_for_management_too(make_rig):
    """An admin of some models neither deletes nor replaces others, nor copies them to a name of its own."""
    rig = make_rig()
    rig.write_keys(team=entry("team", "drv_team", scopes=["admin"], models=["team/*"]))
    rig.start()
    with rig.http("drv_team") as team, rig.http("admin") as boss:
        refused = [
            team.request("DELETE", "/api/delete", json={"model": SMALL}),
            team.post("/api/copy", json={"source": SMALL, "destination": "team/mine"}),
            team.post("/api/create", json={"model": "team/mine", "from": SMALL}),
            team.post("/api/create", json={"model": "team/mine", "From": SMALL}),
            team.post("/api/create", json={"model": SMALL, "from": "team/mine"}),
            team.post("/api/pull", json={"model": SMALL}),
        ]
        assert boss.post("/api/copy", json={"source": SMALL, "destination": "team/one"}).status_code == 200
        copied = team.post("/api/copy", json={"source": "team/one", "destination": "team/two"})
        replaced = team.post("/api/copy", json={"source": "team/one", "destination": SMALL})
        deleted = team.request("DELETE", "/api/delete", json={"model": "team/two"})

    assert [(r.status_code, r.headers["x-drover-error"]) for r in [*refused, replaced]] == [
        (403, "model_not_allowed")
    ] * 7
    assert (copied.status_code, deleted.status_code) == (200, 200)


def test_a_model_is_written_under_the_name_that_was_checked(make_rig):
    """`:local` is a tag to Ollama where it copies, and none where it runs: no other tag is made by it."""
    rig = make_rig()
    patterns = ["llama3.2", "mine:latest"]
    rig.write_keys(team=entry("team", "drv_team", scopes=["admin"], models=patterns))
    rig.start()
    with rig.http("drv_team") as team, rig.http("admin") as boss:
        copied = [
            team.post("/api/copy", json={"source": f"{source}:3b{local}", "destination": f"mine{local}"})
            for source, local in (("llama3.2", ":local"), ("LLAMA3.2", ":LOCAL"))
        ]
        refused = team.post("/api/copy", json={"source": SMALL, "destination": "other:local"})
        named = {model["name"] for model in boss.get("/api/tags").json()["models"]}
        deleted = team.request("DELETE", "/api/delete", json={"model": "mine"})

    assert [answer.status_code for answer in copied] == [200, 200]
    assert refused.headers["x-drover-error"] == "model_not_allowed"
    assert {name for name in named if name.startswith("mine")} == {"mine:latest"}
    assert not any(name.startswith("other") for name in named)
    assert deleted.status_code == 200
