"""The server as a process: start, log lines, settings, stop, kill."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time

import pytest

from tests.contract.harness import Ollama
from tests.support import eventually

pytestmark = [pytest.mark.needs("start"), pytest.mark.timeout(120)]


def test_doctor_lines(start):
    """The log tells the settings, where it listens, and last the default context."""
    server = start(env={"OLLAMA_KEEP_ALIVE": "7m"})
    log = server.log()
    assert 'msg="server config" env="map[' in log
    assert "OLLAMA_KEEP_ALIVE:7m0s" in log
    assert f'msg="Listening on 127.0.0.1:{server.port} (version ' in log
    assert 'msg="vram-based default context"' in log
    assert "default_num_ctx=" in log
    assert 'msg="inference compute"' in log


@pytest.mark.needs("gpus")
def test_gpus_in_the_log(start):
    """Each GPU has a line, with the token that chose it."""
    server = start(env={"CUDA_VISIBLE_DEVICES": "GPU-00000002"})
    lines = [line for line in server.log().splitlines() if 'msg="inference compute"' in line]
    assert len(lines) == 1
    for part in ("id=0", "filter_id=GPU-00000002", "library=CUDA", "compute=8.9", "name=CUDA0",
                 'description="NVIDIA Invented 24"', "type=discrete", 'total="24.0 GiB"'):  # fmt: skip
        assert part in lines[0]
    assert "user overrode visible devices" in server.log()


@pytest.mark.needs("gpus")
@pytest.mark.parametrize(("gpu_count", "context"), [(0, 4096), (1, 32768), (2, 262144)])
def test_default_context(start, gpu_count, context):
    """The default context goes by the memory of all GPUs together."""
    assert f"default_num_ctx={context}" in start(gpu_count=gpu_count).log()


@pytest.mark.parametrize(
    ("key", "value", "default"), [("OLLAMA_NUM_PARALLEL", "abc", 1), ("OLLAMA_CONTEXT_LENGTH", "-1", 0)]
)
def test_bad_number(start, key, value, default):
    """A bad number is warned about, and the default taken."""
    log = start(env={key: value}).log()
    assert (
        f'msg="invalid environment variable, using default" key={key} value={value} default={default}' in log
    )


@pytest.mark.parametrize("value", ["abc", "5 m"])
def test_bad_keep_alive(start, value):
    """A bad OLLAMA_KEEP_ALIVE is five minutes, without a word."""
    log = start(env={"OLLAMA_KEEP_ALIVE": value}).log()
    assert "OLLAMA_KEEP_ALIVE:5m0s" in log
    assert "invalid" not in log


@pytest.mark.needs("modern")
def test_bad_cache_type(start, model):
    """An unknown cache type is found out by the first load."""
    answer = start(env={"OLLAMA_KV_CACHE_TYPE": "BOGUS"}).generate(model)
    assert answer.status == 500
    assert "Unsupported cache type: bogus" in answer.json["error"]


def test_port_is_taken(start, tmp_path):
    """A taken port ends the program with 1 and says so."""
    first = start()
    second = Ollama(first.kind, tmp_path / "second", port=first.port).prepare()
    done = subprocess.run(
        [*second.program, "serve"],
        env=second.environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert f"Error: listen tcp 127.0.0.1:{first.port}: bind: address already in use" in done.stderr


def test_models_folder_is_no_folder(start, tmp_path):
    """A models folder that is a file ends the program with 1."""
    first = start()
    (tmp_path / "file").write_text("x", encoding="ascii")
    env = first.environment() | {"OLLAMA_MODELS": str(tmp_path / "file"), "OLLAMA_HOST": "127.0.0.1:1"}
    done = subprocess.run(
        [*first.program, "serve"], env=env, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert (
        f"Error: mkdir {tmp_path / 'file'}: not a directory: ensure path elements are traversable"
        in done.stderr
    )


def test_stop_when_idle(start, model):
    """SIGTERM ends it with 0 at once, and its runners with it."""
    server = start()
    server.generate(model)
    pids = server.runners()
    assert pids
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(10) == 0
    assert time.monotonic() - began < 3
    eventually(lambda: not server.runners(), what="the runners are gone")


@pytest.mark.needs("markers")
def test_stop_cuts_streams(start, model):
    """SIGTERM cuts streams: the connection closes without the last chunk."""
    server = start()
    stream = server.background("/api/generate", {"model": model, "prompt": "[[tokens=1000 rate=20]]"})
    eventually(lambda: stream.first_at, what="the first token")
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(10) == 0
    stream.finished()
    assert not stream.buffer.endswith(b"0\r\n\r\n")
    assert b'"done":true' not in stream.buffer


@pytest.mark.needs("gpus")
def test_kill_leaves_orphans(start, model):
    """SIGKILL leaves the runner alive with its memory, and the next server doesn't know it."""
    server = start(gpu_count=1)
    server.generate(model)
    (pid,) = server.runners()
    before = server.gpus()
    server.process.kill()
    server.process.wait()
    os.kill(pid, 0)
    assert server.gpus() == before
    assert before[0] > 0
    server.start()
    assert server.ps() == []
    assert server.gpus() == before


@pytest.mark.needs("markers")
def test_runner_is_killed_while_idle(start, model):
    """A runner that dies while idle stays listed until the next request, which loads it again."""
    server = start()
    server.generate(model)
    (pid,) = server.runners()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: pid not in server.runners(), what="the runner is dead")
    assert len(server.ps()) == 1
    assert server.generate(model, "[[tokens=1]]").status == 200
    assert server.runners() != [pid]


@pytest.mark.needs("simulated")
def test_port_is_bound_before_answers(start):
    """Connections are taken before anything is answered: ready is who answers."""
    server = start(knobs={"discovery_seconds": 1.0}, wait=False)
    began = time.monotonic()
    eventually(lambda: _connects(server.port), what="the port is bound")
    eventually(server.answers, timeout=10, what="the server answers")
    assert time.monotonic() - began > 0.5


def _connects(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 0.2):
            return True
    except OSError:
        return False


@pytest.mark.needs("simulated")
def test_hung_runner(start, model):
    """A stopped runner's stream is silent; a new request gives it up after a while, and loads it again."""
    server = start(knobs={"hung_runner_seconds": 0.5})
    server.generate(model)
    (pid,) = server.runners()
    os.kill(pid, signal.SIGSTOP)
    answer = server.generate(model, "[[tokens=1]]")
    assert answer.status == 200
    assert server.runners() != [pid]
