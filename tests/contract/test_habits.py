"""The simulation's own switches: each habit of the real scheduler turned off, and loads made to fail."""

from __future__ import annotations

import os

import pytest

from lab.gpu.state import claim
from tests.contract.harness import EMBEDDER, LARGE, SMALL
from tests.support import eventually

pytestmark = [pytest.mark.needs("simulated"), pytest.mark.timeout(120)]


@pytest.fixture
def with_habits(start):
    """Starts a server with one GPU, small contexts and other habits."""

    def run(env=None, knobs=None, **habits):
        env = {"OLLAMA_CONTEXT_LENGTH": "4096", **(env or {})}
        return start(env=env, knobs={**(knobs or {}), "habits": habits}, gpu_count=1)

    return run


def test_no_reload(with_habits):
    """Without `reload` a changed context leaves the runner as it is."""
    server = with_habits(reload=False)
    server.generate(SMALL, options={"num_ctx": 2048})
    server.generate(SMALL, options={"num_ctx": 1024})
    assert server.ps()[0]["context_length"] == 2048


def test_no_sticky_num_gpu(with_habits):
    """Without `sticky_num_gpu` the model comes back to the GPU."""
    server = with_habits(sticky_num_gpu=False)
    server.generate(SMALL, options={"num_gpu": 0})
    server.generate(SMALL)
    entry = server.ps()[0]
    assert entry["size_vram"] == entry["size"]


def test_least_recently_used(with_habits):
    """With `eviction_order: lru` the model goes that was used longest ago, whatever its keep_alive."""
    server = with_habits(env={"OLLAMA_MAX_LOADED_MODELS": "2"}, eviction_order="lru")
    server.generate(LARGE, keep_alive="10m")
    server.generate(SMALL, keep_alive="1m")
    server.generate(SMALL, "x", options={"num_predict": 1})
    server.post("/api/embed", {"model": EMBEDDER})
    assert SMALL in server.loaded()
    assert LARGE not in server.loaded()


def test_loud_spill(with_habits):
    """Without `silent_spill` what doesn't fit is refused."""
    server = with_habits(silent_spill=False)
    claim(server.state_file, 0, os.getpid(), 22 << 30)
    answer = server.generate(LARGE)
    assert answer.status == 500
    assert "out of memory" in answer.json["error"]


def test_no_ghosts(with_habits):
    """Without `ghosts` a deleted model is unloaded."""
    server = with_habits(ghosts=False)
    server.post("/api/copy", {"source": SMALL, "destination": "shade"})
    server.generate("shade", keep_alive=-1)
    server.request("DELETE", "/api/delete", {"model": "shade"})
    eventually(lambda: not server.ps(), what="the model is gone")


def test_no_leaks(with_habits):
    """Without `leaked_waiters` who leaves is forgotten, and the connection closed."""
    server = with_habits(knobs={"load_seconds_min": 1.0}, leaked_waiters=False)
    first = server.background("/api/generate", {"model": LARGE})
    eventually(server.runners, what="the load has begun")
    waiting = server.background("/api/generate", {"model": SMALL})
    waiting.half_close()
    first.finished()
    waiting.finished()
    assert waiting.buffer == b""


def test_true_accounting(start):
    """Without `stale_accounting` the third model goes to the GPU that has more free."""
    env = {"OLLAMA_CONTEXT_LENGTH": "4096"}
    server = start(env=env, knobs={"habits": {"stale_accounting": False}}, gpu_count=2)
    server.generate(SMALL)
    server.generate(LARGE)
    before = server.gpus()
    server.post("/api/embed", {"model": EMBEDDER})
    roomy = before.index(min(before))
    assert server.gpus()[roomy] > before[roomy]


def test_load_error(with_habits):
    """A model can be made to fail its load, with a text of one's own, and nothing is left of it."""
    text = "exit status 1: error loading model: made up"
    server = with_habits(knobs={"models": {SMALL: {"load_error": text}}})
    answer = server.generate(SMALL, "x")
    assert answer.status == 500
    assert answer.json == {"error": f"llama-server process has terminated: {text}"}
    assert server.gpus() == [0]
    assert server.generate(LARGE, "[[tokens=1]]").status == 200


def test_load_hangs(with_habits):
    """A load that doesn't come on is given up after OLLAMA_LOAD_TIMEOUT."""
    server = with_habits(env={"OLLAMA_LOAD_TIMEOUT": "1s"}, knobs={"models": {SMALL: {"load_hang": 1}}})
    answer = server.generate(SMALL, "x")
    assert (answer.status, answer.json) == (500, {"error": "timed out waiting for llama-server to start - "})
    assert server.runners() == []


def test_load_takes_its_time(with_habits):
    """A load takes what the model's size and the disk's speed say, or what is set for the model."""
    server = with_habits(knobs={"disk_bytes_per_second": 1e9, "models": {SMALL: {"load_seconds": 0.0}}})
    slow = server.generate(LARGE, "[[tokens=1]]").json["load_duration"]
    quick = server.generate(SMALL, "[[tokens=1]]").json["load_duration"]
    assert slow > 2.0e9
    assert quick < slow / 2


def test_tokens_take_their_time(with_habits):
    """Tokens come at the speed that is set; on the CPU far more slowly."""
    server = with_habits(knobs={"tokens_per_second": 50, "cpu_slowdown": 4})
    on_gpu = server.generate(SMALL, "[[tokens=10]]").json
    on_cpu = server.generate(SMALL, "[[tokens=10]]", options={"num_gpu": 0}).json
    assert on_gpu["eval_duration"] == pytest.approx(0.2e9, rel=0.5)
    assert on_cpu["eval_duration"] > 2.5 * on_gpu["eval_duration"]


def test_stalled_stream(with_habits):
    """A stream can be made to fall silent, and goes on when it is told to."""
    server = with_habits()
    answer = server.generate(SMALL, "[[tokens=4 stall_after=2 stall_s=0.5]]").json
    assert answer["eval_count"] == 4
    assert answer["eval_duration"] > 0.4e9


def test_unknown_knob(start, tmp_path):
    """A knob that doesn't exist ends the program, with those that do."""
    server = start(wait=False, knobs={"speed": 1})
    assert server.process.wait(20) == 1
    assert "unknown knob 'speed'; there are answer_tokens, " in server.log()
