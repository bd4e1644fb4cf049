"""The scheduler's habits: queueing, cancelling, placing, spilling, evicting."""

from __future__ import annotations

import os
import time

import pytest

from lab.gpu.state import claim
from tests.contract.harness import EMBEDDER, LARGE, SMALL
from tests.support import eventually

pytestmark = [pytest.mark.needs("start", "markers"), pytest.mark.timeout(120)]
LIMIT = {"num_predict": 2}


@pytest.fixture
def fast(start):
    """Starts a server with one GPU and small contexts."""

    def run(gpu_count=1, knobs=None, **env):
        return start(env={"OLLAMA_CONTEXT_LENGTH": "4096", **env}, knobs=knobs or {}, gpu_count=gpu_count)

    return run


@pytest.mark.needs("gpus")
def test_memory_is_taken_and_given_back(fast):
    """A loaded model holds its memory, and the CUDA context that ps doesn't tell of; unloading returns it."""
    server = fast()
    server.generate(LARGE)
    (entry,) = server.ps()
    assert entry["size"] == entry["size_vram"]
    (used,) = server.gpus()
    assert used == pytest.approx(entry["size_vram"] + (512 << 20), abs=1 << 20)
    server.unload(LARGE)
    eventually(lambda: server.gpus() == [0], what="the memory is free")


@pytest.mark.needs("gpus")
@pytest.mark.parametrize(
    ("options", "size_mib"),
    [
        ({"num_ctx": 4096}, 2627),
        ({"num_ctx": 8192}, 3343),
        ({"num_ctx": 16384, "num_batch": 512}, 3983),
        ({"num_ctx": 40000}, 7497),
    ],
)
def test_size_in_ps(fast, options, size_mib):
    """The size is weights, cache and compute buffer; a longer context gets a larger batch by itself."""
    server = fast()
    server.generate(LARGE, options=options)
    (entry,) = server.ps()
    assert entry["size"] / (1 << 20) == pytest.approx(size_mib, abs=3)
    assert entry["context_length"] == options["num_ctx"]


@pytest.mark.needs("gpus")
def test_two_gpus(fast):
    """The second model goes to the GPU that has more free."""
    server = fast(gpu_count=2)
    server.generate(LARGE)
    server.generate(SMALL)
    assert all(used > 0 for used in server.gpus())


@pytest.mark.needs("gpus")
@pytest.mark.parametrize("chosen", ["1", "GPU-00000002-aaaa-bbbb-cccc-dddddddddddd", "GPU-00000002"])
def test_visible_devices(fast, chosen):
    """CUDA_VISIBLE_DEVICES binds an instance to a GPU, by index or UUID."""
    server = fast(gpu_count=2, CUDA_VISIBLE_DEVICES=chosen)
    server.generate(SMALL)
    first, second = server.gpus()
    assert first == 0
    assert second > 0


@pytest.mark.needs("gpus")
def test_no_visible_device(fast):
    """With no GPU visible, everything runs on the CPU and is answered 200."""
    server = fast(CUDA_VISIBLE_DEVICES="-1")
    assert server.generate(SMALL, "x", options=LIMIT).status == 200
    assert server.ps()[0]["size_vram"] == 0
    assert server.gpus() == [0]


def _occupy(server, size_bytes: int) -> None:
    """Let another program hold memory of the first GPU: the test itself."""
    claim(server.state_file, 0, os.getpid(), size_bytes)


@pytest.mark.needs("gpus")
def test_silent_spill(fast):
    """A model that doesn't fit is put partly on the CPU without a word: only ps shows it."""
    server = fast()
    _occupy(server, 20 << 30)
    answer = server.generate(LARGE, "x", options={**LIMIT, "num_ctx": 32768, "num_batch": 512})
    assert answer.status == 200
    (entry,) = server.ps()
    assert 0 < entry["size_vram"] < entry["size"]


@pytest.mark.needs("gpus")
def test_explicit_layers_that_do_not_fit(fast):
    """num_gpu said aloud isn't fitted: it is taken, or the load fails."""
    server = fast()
    _occupy(server, 22 << 30)
    answer = server.generate(LARGE, "x", options={**LIMIT, "num_gpu": 99})
    assert answer.status == 500
    assert "out of memory" in answer.json["error"]
    assert server.ps() == []


@pytest.mark.needs("gpus")
def test_sticky_num_gpu(fast):
    """One client's num_gpu stays for all who don't name any."""
    server = fast()
    server.generate(SMALL, "x", options={**LIMIT, "num_gpu": 0})
    server.generate(SMALL, "x", options=LIMIT)
    assert server.ps()[0]["size_vram"] == 0


@pytest.mark.needs("gpus")
@pytest.mark.parametrize(("keep", "gone"), [(("10m", "3m"), SMALL), (("3m", "10m"), LARGE)])
def test_eviction_order(fast, keep, gone):
    """The model with the shortest keep_alive goes, not the one used least recently."""
    server = fast(OLLAMA_MAX_LOADED_MODELS="2")
    server.generate(LARGE, keep_alive=keep[0])
    server.generate(SMALL, keep_alive=keep[1])
    used_last = LARGE if gone == LARGE else SMALL
    server.generate(used_last, "x", options=LIMIT)
    server.post("/api/embed", {"model": EMBEDDER, "keep_alive": "20m"})
    names = {name.partition(":latest")[0] for name in server.loaded()}
    assert names == {SMALL, LARGE, EMBEDDER} - {gone}


def test_eviction_waits_for_the_busy(fast):
    """A busy model isn't interrupted: the load waits until it is idle."""
    server = fast(OLLAMA_MAX_LOADED_MODELS="1")
    busy = server.background("/api/generate", {"model": SMALL, "prompt": "[[tokens=30 rate=30]]"})
    eventually(lambda: busy.first_at, what="the first token")
    waiting = server.background("/api/generate", {"model": LARGE, "prompt": "x", "options": LIMIT})
    busy.finished()
    waiting.finished(60)
    assert b'"done":true' in busy.body
    assert waiting.first_at > busy.ended_at


def test_slots(fast):
    """With one slot, requests to a model are served one after the other; with two, side by side."""
    prompt = "[[tokens=20 rate=40]]"
    for slots, together in (("1", False), ("2", True)):
        server = fast(OLLAMA_NUM_PARALLEL=slots)
        server.generate(SMALL)
        pair = [server.background("/api/generate", {"model": SMALL, "prompt": prompt}) for _ in range(2)]
        for one in pair:
            one.finished()
        first, second = sorted(pair, key=lambda one: one.first_at)
        assert (second.first_at < first.ended_at) is together


def test_queue_is_full(fast):
    """Loads beyond OLLAMA_MAX_QUEUE are refused: 503, no Retry-After, in each dialect's words."""
    server = fast(OLLAMA_MAX_QUEUE="2", knobs={"load_seconds_min": 2})
    first = server.background("/api/generate", {"model": LARGE})
    eventually(server.runners, what="the load has begun")
    waiting = [server.background("/api/generate", {"model": SMALL}) for _ in range(4)]
    eventually(lambda: [one.status for one in waiting].count(503) == 2, timeout=3, what="two are refused")
    refused = server.generate(SMALL)
    assert refused.status == 503
    assert refused.json == {"error": "server busy, please try again.  maximum pending requests exceeded"}
    assert "retry-after" not in refused.headers
    messages = [{"role": "user", "content": "x"}]
    chat = server.post("/v1/chat/completions", {"model": SMALL, "messages": messages})
    assert (chat.status, chat.json["error"]["type"]) == (503, "api_error")
    anthropic = server.post("/v1/messages", {"model": SMALL, "messages": messages, "max_tokens": 3})
    assert (anthropic.status, anthropic.json["error"]["type"]) == (503, "overloaded_error")
    assert first.finished(60).status == 200
    assert sorted(one.finished(60).status for one in waiting) == [200, 200, 503, 503]


def test_head_of_line(fast):
    """One load at a time: a small model waits behind a large one; what is loaded is served meanwhile."""
    server = fast(knobs={"load_seconds_min": 1.5})
    server.post("/api/embed", {"model": EMBEDDER})
    slow = server.background("/api/generate", {"model": LARGE})
    eventually(lambda: len(server.runners()) == 2, what="the load has begun")
    behind = server.background("/api/generate", {"model": SMALL})
    began = time.monotonic()
    assert server.post("/api/embed", {"model": EMBEDDER, "input": "x"}).status == 200
    assert time.monotonic() - began < 1
    slow.finished(60)
    behind.finished(60)
    assert behind.ended_at > slow.ended_at + 1


@pytest.mark.parametrize("path", ["/api/generate", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [True, False])
def test_cancel_frees_the_slot(fast, path, stream):
    """A client that leaves is noticed at once, and its slot is free for the next."""
    server = fast()
    server.generate(SMALL)
    messages = [{"role": "user", "content": "[[tokens=1000 rate=20]]"}]
    body = {"model": SMALL, "prompt": messages[0]["content"], "messages": messages, "stream": stream}
    leaving = server.background(path, body)
    if stream:
        eventually(lambda: leaving.first_at, what="the first token")
    else:
        time.sleep(0.3)  # nothing is to be seen from outside while it works
    leaving.cut()
    began = time.monotonic()
    assert server.generate(SMALL, "[[tokens=1]]").status == 200
    assert time.monotonic() - began < 2


def test_first_client_leaves_the_load(fast):
    """Who asked for a load and leaves ends it, and the next who waits starts it again."""
    server = fast(knobs={"load_seconds_min": 1.5})
    first = server.background("/api/generate", {"model": SMALL})
    (pid,) = eventually(server.runners, what="the load has begun")
    waiting = server.background("/api/generate", {"model": SMALL})
    time.sleep(0.2)  # so that it waits for the load, which nothing shows
    first.cut()
    eventually(lambda: server.runners() not in ([pid], []), timeout=15, what="another runner has started")
    assert waiting.finished(60).status == 200


def test_load_is_aborted_when_nobody_waits(fast):
    """A load whose only client leaves leaves nothing behind."""
    server = fast(knobs={"load_seconds_min": 3})
    only = server.background("/api/generate", {"model": SMALL})
    eventually(server.runners, what="the load has begun")
    only.cut()
    eventually(lambda: not server.runners(), timeout=10, what="the runner is gone")
    assert server.ps() == []


def test_waiter_that_leaves_is_leaked(fast):
    """Who waits for a load and leaves is never finished: its socket stays half closed for good."""
    server = fast(knobs={"load_seconds_min": 1.5})
    first = server.background("/api/generate", {"model": LARGE})
    eventually(server.runners, what="the load has begun")
    waiting = server.background("/api/generate", {"model": SMALL})
    time.sleep(0.2)  # so that it waits for the load, which nothing shows
    waiting.half_close()
    first.finished(60)
    assert server.generate(SMALL, "x", options=LIMIT).status == 200
    assert waiting.ended_at is None
    assert waiting.buffer == b""
    waiting.cut()


def test_half_closed_client_of_a_loaded_model(fast):
    """A client that closes its side gets no answer to a generation, though the version still answers."""
    server = fast()
    server.generate(SMALL)
    half = server.background("/api/generate", {"model": SMALL, "prompt": "[[tokens=3]]"})
    half.half_close()
    assert server.generate(SMALL, "[[tokens=3]]").status == 200
    assert b'"done":true' not in half.buffer
    half.cut()


@pytest.mark.needs("simulated")
def test_late_memory(start):
    """Memory that the driver returns late is still taken when the unload has been answered."""
    knobs = {"habits": {"late_memory_seconds": 1.0}}
    server = start(env={"OLLAMA_CONTEXT_LENGTH": "4096"}, knobs=knobs, gpu_count=1)
    server.generate(SMALL)
    server.unload(SMALL)
    eventually(lambda: not server.ps(), what="the model is gone")
    assert server.gpus()[0] > 0
    eventually(lambda: server.gpus() == [0], timeout=5, what="the memory is free")


@pytest.mark.needs("gpus")
def test_phantom_memory(fast):
    """Once every GPU carries a runner, the second one looks empty, and the next model goes there."""
    server = fast(gpu_count=2)
    server.generate(SMALL)
    small_on = next(index for index, used in enumerate(server.gpus()) if used)
    server.generate(LARGE)
    before = server.gpus()
    assert before[1 - small_on] > before[small_on] > 0
    server.post("/api/embed", {"model": EMBEDDER})
    after = server.gpus()
    assert after[1] > before[1]
    assert after[0] == before[0]


def test_keep_alive_freezes_the_load(fast):
    """A request with a keep_alive to the busy victim puts off its unloading, and so the load that waits."""
    server = fast(OLLAMA_MAX_LOADED_MODELS="1")
    busy = server.background("/api/generate", {"model": SMALL, "prompt": "[[tokens=30 rate=20]]"})
    eventually(lambda: busy.first_at, what="the first token")
    waiting = server.background("/api/generate", {"model": LARGE})
    time.sleep(0.3)  # so that the load has chosen its victim, which nothing shows
    again = server.background("/api/generate", {"model": SMALL, "prompt": "[[tokens=1]]", "keep_alive": "3s"})
    again.finished()
    busy.finished()
    waiting.finished(60)
    assert waiting.status == 200
    assert waiting.first_at - max(busy.ended_at, again.ended_at) > 2.5


def test_traffic_starves_the_load(fast):
    """As long as requests to the victim overlap, the load waits."""
    server = fast(OLLAMA_MAX_LOADED_MODELS="1", OLLAMA_NUM_PARALLEL="2")
    prompt = "[[tokens=10 rate=20]]"
    current = server.background("/api/generate", {"model": SMALL, "prompt": prompt})
    eventually(lambda: current.first_at, what="the first token")
    waiting = server.background("/api/generate", {"model": LARGE})
    for _ in range(6):
        following = server.background("/api/generate", {"model": SMALL, "prompt": prompt})
        current.finished()
        current = following
    assert waiting.ended_at is None
    current.finished()
    assert waiting.finished(60).status == 200
