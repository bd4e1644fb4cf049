"""A reload while clients are connected: every key counts at once, or is named as taking a restart."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import socket
import subprocess
import sys

import yaml

from tests.proxy.every_key import NOT_BUILT, OTHERS, base, leaves, with_other
from tests.proxy.rig import KEYS
from tests.proxy.stage import KEY, MODEL, stage
from tests.support import eventually, eventually_async, free_port


def test_a_changed_key_counts_or_is_named(make_rig, tmp_path):
    """Each key of the schema in turn: the log says that it changed, or that it takes a restart."""
    rig = make_rig()
    given = base(tmp_path, rig.keys_file)
    given["instances"][0]["url"] = f"http://127.0.0.1:{rig.instance_ports[0]}"
    rig.write_config(**given)
    config = yaml.safe_load(rig.config_file.read_text())
    rig.start()
    named = {}
    for leaf in leaves():
        if leaf in NOT_BUILT:
            continue
        other, key = with_other(config, leaf)
        count = len(rig.lines("reloaded"))
        for shown in (other, config):
            rig.config_file.write_text(yaml.safe_dump(shown))
            rig.signal(signal.SIGHUP)
            count += 1
            eventually(lambda count=count: len(rig.lines("reloaded")) == count, what=f"{leaf}, {shown}")
        there, back = (line["changed"] for line in rig.lines("reloaded")[-2:])
        waiting = [line["key"] for line in rig.lines("reload_needs_restart")]
        assert (there == back == [key]) is not (key in waiting), leaf
        named[leaf] = key in waiting
    assert set(named) == set(OTHERS)
    assert {leaf.partition("[")[0] for leaf, restart in named.items() if restart} == {
        "listen",
        "admin_listen",
        "instances",
        "gpus",
    }
    assert not rig.lines("reload_failed")


async def test_forwarding_changes_on_an_open_connection(tmp_path, nvml):
    """What instances are told, whose word counts, and our own name, from the next request on."""
    async with stage(tmp_path, nvml) as play:
        client = await play.connect()

        async def asked(**forwarding):
            """Reload, ask over the connection as ever; return the head that Ollama got, and the answer."""
            if forwarding:
                count = len(play.rig.lines("reloaded"))
                play.rig.write_config(forwarding=forwarding)
                play.rig.signal(signal.SIGHUP)
                await eventually_async(lambda: len(play.rig.lines("reloaded")) > count)
            tag = play.tag()
            body = json.dumps({"model": MODEL, "prompt": f"<<{tag}>>", "stream": False}).encode()
            client.received.clear()
            client.send(
                b"POST /api/generate HTTP/1.1\r\nHost: door\r\nX-Forwarded-For: 203.0.113.9\r\n%b"
                b"Content-Length: %d\r\n\r\n%b" % (KEY, len(body), body)
            )
            request = await play.ollama.request(tag)
            request.finish(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            return request.head, await client.until(b"{}")

        head, answer = await asked()
        assert b"\r\nX-Forwarded" not in head
        assert b"\r\nvia:" not in answer
        head, answer = await asked(x_forwarded="append", via="door-1")
        assert b"\r\nX-Forwarded-For: 127.0.0.1\r\n" in head
        assert b"\r\nVia: 1.1 door-1\r\n" in head
        assert b"\r\nvia: 1.1 door-1\r\n" in answer
        head, answer = await asked(x_forwarded="append", trusted_proxies=["127.0.0.0/8"])
        assert b"\r\nX-Forwarded-For: 203.0.113.9, 127.0.0.1\r\n" in head
        assert b"\r\nVia:" not in head
        assert b"\r\nvia:" not in answer
        head, _ = await asked(x_forwarded="replace", trusted_proxies=["127.0.0.0/8"])
        assert b"\r\nX-Forwarded-For: 203.0.113.9\r\n" in head
        head, _ = await asked(x_forwarded="none")
        assert b"\r\nX-Forwarded" not in head
        await asyncio.to_thread(eventually, lambda: len(play.rig.lines("access")) == 5)
        clients = [line["client"] for line in play.rig.lines("access")]
        assert clients == ["127.0.0.1"] * 2 + ["203.0.113.9"] * 2 + ["127.0.0.1"]


def test_limits_change_on_an_open_connection(rig):
    """A body that was let through is too long after the reload, and the other way round."""
    door = http.client.HTTPConnection("127.0.0.1", rig.port, timeout=10)
    body = json.dumps({"model": "nobody", "prompt": "x" * 4000})

    def status():
        door.request("POST", "/api/generate", body=body, headers={"x-api-key": KEYS["use"]})
        with door.getresponse() as answer:
            answer.read()
            return answer.status

    assert status() == 404
    kept = door.sock
    for count, (limit, expected) in enumerate(((2048, 413), (8192, 404)), start=1):
        rig.write_config(limits={"body_bytes": limit})
        rig.signal(signal.SIGHUP)
        eventually(lambda count=count: len(rig.lines("reloaded")) == count)
        if expected == 413:
            assert door.sock is kept
        assert status() == expected
    door.close()


def test_a_reload_that_opens_the_door_says_so(rig):
    """Without `auth` everybody may come in from then on, and the log is as loud about it as at a start."""
    rig.write_config(auth=None)
    rig.signal(signal.SIGHUP)
    eventually(lambda: rig.lines("reloaded"))
    with rig.http(None) as http:
        assert http.get("/api/tags").status_code == 200
    assert "NO KEYS" in rig.lines("open_door")[0]["message"]
    assert rig.lines("reloaded")[0]["changed"] == ["auth.keys_file"]


def reload(rig, expected):
    """Run the command; return what it says on stdout and on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "drover_proxy", "reload", "--config", str(rig.config_file)],
        env=rig.base_environment(), capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == expected, done
    return done.stdout, done.stderr


def test_the_command_reloads_and_says_what_that_came_to(rig):
    """By then what it says is in force; a key that takes a restart is named, and the others count."""
    rig.write_config(limits={"body_bytes": 2048})
    assert reload(rig, 0) == ("in force: limits.body_bytes\n", "")
    with rig.http() as http:
        assert http.post("/api/generate", json={"model": "x", "prompt": "x" * 4000}).status_code == 413
    assert reload(rig, 0) == ("in force: nothing new in the configuration\n", "")

    rig.write_config(gpus=[{"uuid": "GPU-0", "total_bytes": 1 << 34}])
    assert reload(rig, 3) == ("in force: limits.body_bytes\n", "takes a restart: gpus\n")
    body = ["limits.body_bytes"]
    assert [line["changed"] for line in rig.lines("reloaded")] == [body, [], body]


def test_the_command_says_why_nothing_was_changed(rig):
    """Whatever file it is, in the words of the proxy."""
    rig.keys_file.write_text("keys:\n  - {nme: a}\n")
    rig.write_config(limits={"body_bytes": 2048})
    shown, told = reload(rig, 1)
    assert shown == ""
    assert f"{rig.keys_file}: line 2: " in told
    assert told.endswith("nothing was changed: the last good configuration stays\n")
    assert rig.lines("reload_failed")[0]["file"] == str(rig.keys_file)

    rig.config_file.write_text("listen: 1.2.3.4\n")
    assert f"{rig.config_file}: line 1: listen: " in reload(rig, 2)[1]
    with rig.http() as http:
        assert http.post("/api/generate", json={"model": "x", "prompt": "x" * 4000}).status_code == 404


def test_the_command_says_that_another_admin_address_takes_a_restart(rig):
    """Nobody is there to be asked."""
    rig.write_config(admin_listen=f"127.0.0.1:{free_port()}")
    shown, told = reload(rig, 3)
    assert shown == ""
    assert "nobody answers at admin_listen 127.0.0.1:" in told


def test_the_command_asks_over_a_unix_socket_too(make_rig):
    """And of several admin addresses that which takes such a wish."""
    rig = make_rig()
    near = rig.folder / "admin"
    rig.write_config(
        admin_listen=[f"127.0.0.2:{rig.admin_port}", f"127.0.0.1:{rig.admin_port}", f"unix:{near}"]
    )
    rig.start()
    rig.write_config(admin_listen=[f"127.0.0.2:{rig.admin_port}", f"unix:{near}"], drain_seconds=1)
    assert reload(rig, 3) == ("in force: drain_seconds\n", "takes a restart: admin_listen\n")


def test_a_proxy_that_knows_no_reload_is_quoted(rig):
    """As an older one, whose release was replaced while it ran."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        rig.write_config(admin_listen=f"127.0.0.1:{server.getsockname()[1]}")
        with subprocess.Popen(
            [sys.executable, "-m", "drover_proxy", "reload", "--config", str(rig.config_file)],
            env=rig.base_environment(), stderr=subprocess.PIPE, text=True,
        ) as asking:  # fmt: skip
            server.settimeout(20)
            client, _ = server.accept()
            with client:
                assert client.recv(65536).startswith(b"POST /drover/v1/reload HTTP/1.1\r\n")
                client.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 8\r\n\r\nnot here")
            assert asking.communicate(timeout=20)[1] == "the proxy that runs answers 404: not here\n"
        assert asking.returncode == 1
