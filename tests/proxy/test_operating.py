"""Running the process: reload, drain, socket activation, metrics, no keys, no GPUs."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.proxy.rig import COMPILED, EMBED, SMALL
from tests.support import eventually


def test_reload_takes_new_keys_and_keeps_the_last_good_one(rig):
    """SIGHUP lets a new key in; a broken file changes nothing and is said so; a revoked key is out."""
    from drover_proxy.guard.keys import hash_of

    fresh = {"name": "fresh", "sha256": hash_of("drv_fresh"), "scopes": ["use"]}
    rig.write_keys(fresh=fresh)
    rig.write_config(models={SMALL: {"aliases": ["house"]}})
    rig.signal(signal.SIGHUP)
    eventually(lambda: rig.lines("reloaded"))
    assert rig.ollama("drv_fresh").generate("house", "One").response

    rig.keys_file.write_text("keys: [{name: x}]")
    rig.signal(signal.SIGHUP)
    eventually(lambda: rig.lines("reload_failed"))
    assert rig.ollama("drv_fresh").list().models
    assert "drover_config_last_reload_successful 0.0" in rig.admin("/metrics").text

    rig.write_keys(fresh=fresh)
    rig.config_file.write_text("instances: {}")
    rig.signal(signal.SIGHUP)
    eventually(lambda: len(rig.lines("reload_failed")) == 2)
    files = [line["file"] for line in rig.lines("reload_failed")]
    assert files == [str(rig.keys_file), str(rig.config_file)]
    assert rig.ollama("drv_fresh").generate("house", "One").response
    rig.write_keys()
    rig.write_config(listen="127.0.0.1:1")
    rig.signal(signal.SIGHUP)
    eventually(lambda: rig.lines("reload_needs_restart"))
    with rig.http("drv_fresh") as http:
        assert http.get("/api/tags").status_code == 401


def test_sigterm_lets_answers_finish(make_rig):
    """After SIGTERM a stream under way ends whole, new connections are refused, and the exit code is 0."""
    rig = make_rig(knobs={"answer_tokens": 300}).start()
    rig.ollama().generate(SMALL)
    stream = rig.ollama().generate(SMALL, "One", stream=True)
    first = next(stream)
    rig.signal(signal.SIGTERM)
    eventually(lambda: rig.lines("draining"))
    rest = list(stream)

    assert first.response
    assert rest[-1].done
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", rig.port), timeout=2).close()
    assert rig.proxy.wait(10) == 0


def test_who_was_let_in_before_the_end_is_served(rig):
    """A request on its way at SIGTERM is answered, and the process doesn't wait for anybody else."""
    with socket.create_connection(("127.0.0.1", rig.port), timeout=10) as client:
        with rig.http() as http:  # accepted after it
            assert http.get("/api/version").status_code == 200
        rig.signal(signal.SIGTERM)
        eventually(lambda: rig.lines("draining"))
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(4096), b"")).lower()
    assert answer.startswith(b"http/1.1 200 ")
    assert b"\r\nconnection: close\r\n" in answer
    assert rig.proxy.wait(10) == 0


def test_the_state_names_the_build(shared):
    """Compiled where tests/compiled asked for it, else interpreted; the log's first line says the same."""
    build = "compiled" if COMPILED else "interpreted"

    assert shared.admin("/drover/v1/state").json()["build"] == build
    assert shared.lines("starting")[0]["build"] == build


def test_metrics_are_sane(rig):
    """Every family parses, starts with drover_ or process_, and the counts are those of what happened."""
    rig.ollama().generate(SMALL, "One")
    rig.ollama().embed(EMBED, "One")
    with rig.http(None) as http:
        http.get("/api/tags")
    families = {f.name: f for f in text_string_to_metric_families(rig.admin("/metrics").text)}

    with rig.http("drv_test-metrics-key") as scraper, rig.http() as user:
        assert "drover_build_info" in scraper.get("/metrics").text
        assert scraper.get("/api/tags").status_code == 403
        assert user.get("/metrics").status_code == 403

    def value(name, **labels):
        family = next(f for f in families.values() for s in f.samples if s.name == name)
        return sum(s.value for s in family.samples if s.name == name and labels.items() <= s.labels.items())

    assert all(name.startswith(("drover_", "process_")) for name in families)
    assert value("drover_requests_total", model=SMALL, status="200") == 1
    assert value("drover_errors_total", code="unauthorized") == 1
    assert [line["code"] for line in rig.lines("rejected")] == [
        "unauthorized",
        "scope_missing",
        "scope_missing",
    ]
    assert value("drover_loads_total", outcome="ok") == 2
    assert value("drover_load_duration_seconds_count") == 2
    assert value("drover_queue_wait_seconds_count") == 2
    assert value("drover_instance_up", instance="gpu0") == 1
    assert value("drover_gpu_memory_total_bytes", gpu="GPU-0") == rig.gpu_bytes[0]
    assert 0 < value("drover_gpu_memory_free_bytes", gpu="GPU-0") < rig.gpu_bytes[0]
    assert value("drover_runners", state="ready") == 2
    assert value("drover_queue_waiting") == 0


def test_health_and_state(rig):
    """Health, readiness and state are JSON or text an operator can read; unknown paths say what there is."""
    assert rig.admin("/healthz").text == "ok\n"
    assert rig.admin("/readyz").json()["instances"]["gpu0"]["up"] is True
    assert rig.admin("/drover/v1/state").json()["core"]["waiting"] == 0
    assert rig.admin("/drover/v1/state").json()["contradictions"] == ""
    rig.ollama().generate(SMALL, "One")
    told = rig.admin(f"/drover/v1/explain?model={SMALL}").json()
    assert any("loading" in line["what"] for line in told["story"])
    assert rig.admin("/drover/v1/explain?model=nobody").status_code == 404
    assert rig.admin("/nothing").status_code == 404
    assert "/metrics" in rig.admin("/nothing").text
    assert httpx.post(f"{rig.admin_url}/metrics").status_code == 405


def test_no_prompt_and_no_key_in_the_log(rig):
    """The log, at its most talkative, has neither prompts nor keys nor answers."""
    rig.ollama().generate(SMALL, "A very secret prompt")
    with rig.http("drv_a-secret-wrong-key") as http:
        http.post("/api/generate", json={"model": SMALL, "prompt": "A very secret prompt"})
    log = eventually(lambda: len(rig.lines("access")) >= 2 and rig.log.read_text())

    for secret in ("secret", "drv_", "simulated answer"):
        assert secret not in log


def test_an_open_door_is_said_loudly(make_rig):
    """Without keys everybody may come in, and the log says so."""
    rig = make_rig()
    rig.write_config(auth=None)
    rig.start()

    with rig.http(None) as http:
        assert http.get("/api/tags").status_code == 200
    assert "NO KEYS" in rig.lines("open_door")[0]["message"]


def start_activated(rig, listener, environment=None):
    """Start the proxy as systemd does, with a socket that listens already."""
    program = (
        "import os,sys;os.dup2(int(sys.argv[1]),3);os.environ['LISTEN_PID']=str(os.getpid());"
        "os.environ['LISTEN_FDS']='1';"
        "os.execv(sys.executable,[sys.executable,'-m','drover_proxy','serve','--config',sys.argv[2]])"
    )
    with rig.log.open("ab") as log:
        rig.proxy = subprocess.Popen(
            [sys.executable, "-c", program, str(listener.fileno()), str(rig.config_file)],
            env=rig.base_environment() | (environment or {}),
            pass_fds=[listener.fileno()],
            stderr=log,
            cwd=rig.folder,
        )
    rig.processes.append(rig.proxy)


def test_a_restart_loses_no_request(make_rig):
    """While the proxy is restarted behind its socket, callers wait a moment, and every one is answered."""
    rig = make_rig(slots=4, knobs={"answer_tokens": 60})
    rig.start_instance(0)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        rig.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        start_activated(rig, listener)
        eventually(rig.is_ready, timeout=20, ignore=(httpx.HTTPError,))
        rig.ollama().generate(SMALL)
        stop, answers = threading.Event(), []

        def ask():
            while not stop.is_set():
                with rig.http() as fresh:
                    answer = fresh.post("/api/generate", json={"model": SMALL, "prompt": "One"})
                    answers.append((answer.status_code, '"done":true' in answer.text))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(answers) > 4)
        for _ in range(2):
            before = rig.proxy
            rig.signal(signal.SIGTERM)
            assert before.wait(10) == 0
            start_activated(rig, listener)
            count = len(answers)
            eventually(lambda count=count: len(answers) > count + 4, timeout=20)
        stop.set()
        for thread in threads:
            thread.join(20)

    assert set(answers) == {(200, True)}


def test_socket_activation_and_notify(make_rig):
    """Sockets handed over by systemd are used, and systemd hears READY and STOPPING."""
    rig = make_rig()
    rig.start_instance(0)
    notify_path = str(rig.folder / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, socket.socket() as listener:
        notify.bind(notify_path)
        notify.settimeout(15)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        start_activated(rig, listener, {"NOTIFY_SOCKET": notify_path})
        assert b"READY=1" in notify.recv(1000)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api/version"
        assert httpx.get(url, headers={"authorization": "Bearer drv_test-use-key"}).status_code == 200
        rig.signal(signal.SIGHUP)
        assert b"RELOADING=1" in notify.recv(1000)
        assert b"READY=1" in notify.recv(1000)
        rig.signal(signal.SIGTERM)
        assert b"STOPPING=1" in notify.recv(1000)
    assert rig.proxy.wait(10) == 0


def test_gpus_of_the_configuration(make_rig):
    """Without NVML, the configured memory is reckoned with, and eviction works all the same."""
    rig = make_rig()
    rig.write_config(gpus=[{"uuid": "GPU-0", "total_bytes": "10GiB"}])
    rig.start()
    from tests.proxy.rig import MIDDLE, OTHER

    rig.ollama().generate(MIDDLE, "One")
    rig.ollama().generate(OTHER, "One")
    assert rig.loaded() == {OTHER}


def test_an_unknown_gpu_stops_the_start(make_rig):
    """An instance bound to a GPU that isn't there is refused at the start, by name."""
    rig = make_rig()
    rig.start_instance(0)
    instance = {"name": "x", "url": f"http://127.0.0.1:{rig.instance_ports[0]}", "gpus": ["GPU-7"]}
    rig.write_config(instances=[instance])
    proxy = rig.start_proxy(wait=False)

    assert proxy.wait(15) == 1
    assert "no GPU GPU-7" in rig.log.read_text()


def test_a_missing_driver_doesnt_stop_it(make_rig):
    """Without NVML the proxy serves lists, says why not more, and goes on when the driver is there."""
    rig = make_rig()
    good = rig.state.read_text()
    rig.state.write_text(good.replace("loaded=1", "loaded=0"))
    rig.start_instance(0)
    rig.start_proxy(wait=False)
    eventually(lambda: rig.lines("ready"), timeout=20)
    with rig.http() as http:
        assert http.get("/api/tags").status_code == 200
        refused = http.post("/api/generate", json={"model": SMALL, "prompt": "One"})
        assert (refused.status_code, refused.headers["x-drover-error"]) == (503, "starting")
        assert "error 9" in rig.admin("/readyz").json()["gpus"]
        rig.state.write_text(good)
        rig.processes[0].terminate()  # an Ollama that began without GPUs stays on the CPU
        rig.processes[0].wait(10)
        rig.start_instance(0)
        eventually(lambda: rig.admin("/readyz").status_code == 200, timeout=20)
        assert http.post("/api/generate", json={"model": SMALL, "prompt": "One"}).status_code == 200


def test_a_port_in_use_is_said_plainly(rig):
    """A second proxy on the same port ends with one line that names the address."""
    done = subprocess.run(
        [sys.executable, "-m", "drover_proxy", "serve", "--config", str(rig.config_file)],
        env=rig.base_environment(),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )

    assert done.returncode == 1
    assert f"can't listen on 127.0.0.1:{rig.port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_is_left_open(rig):
    """After many requests, also refused and broken ones, the proxy holds no more files than before."""
    rig.ollama().generate(SMALL, "One")

    def descriptors():
        return len(list(Path(f"/proc/{rig.proxy.pid}/fd").iterdir()))

    def some():
        with rig.http() as http, rig.http(None) as nobody:
            for _ in range(20):
                assert http.post("/api/chat", json={"model": SMALL, "messages": []}).status_code == 200
                assert nobody.get("/api/tags").status_code == 401
                assert http.post("/api/chat", json={"model": "nobody"}).status_code == 404

    some()
    before = descriptors()
    threads = [threading.Thread(target=some) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: descriptors() <= before + 4, timeout=15, what="descriptors are closed")
    assert rig.idle()
