"""Loads beside other runners: Ollama's guess, its books of the memory, and whom it evicts for them.

The proxy reckons both (drover_proxy.vram.guess, drover_proxy.core.beside) so that a load never makes Ollama
evict. Here the server's own log says what it guessed and what it believed.
"""

from __future__ import annotations

import re

import pytest
from drover_proxy.vram import guessed_bytes, model_info_from_show

from tests.contract.harness import EMBEDDER, GPU_BYTES, LARGE, SMALL
from tests.support import eventually

pytestmark = [pytest.mark.needs("start", "gpus", "modern"), pytest.mark.timeout(120)]
GIB = 1 << 30
SURCHARGES = {512: 0, 1024: 768 << 20, 2048: 2 << 30}
VERDICT = re.compile(
    r'msg="llama-server model (predicted to exceed|fits alongside).*? predicted="([\d.]+) GiB" '
    r'predicted_num_ctx=(\d+) num_batch=(\d+) available="([\d.]+) GiB"'
)
EIGHT, GEMMA, MIDDLE = "llama3.1:8b", "gemma3:4b", "qwen2.5:7b"
ALL = (SMALL, LARGE, EMBEDDER, EIGHT, GEMMA, MIDDLE)


@pytest.fixture
def one_gpu(start):
    """Starts a server with one GPU of 24 GiB and small contexts."""

    def run(**env):
        return start(env={"OLLAMA_CONTEXT_LENGTH": "4096", **env}, gpu_count=1, seeds=ALL)

    return run


def verdicts(server):
    """Return each decision about a load beside others: fits, GiB guessed, tokens, batch, GiB free."""
    return [
        (found[1].startswith("fits"), float(found[2]), int(found[3]), int(found[4]), float(found[5]))
        for found in VERDICT.finditer(server.log())
    ]


def info_of(server, model):
    """Return what the proxy would know of a model."""
    size = next(e["size"] for e in server.get("/api/tags").json["models"] if e["name"].startswith(model))
    return model_info_from_show(model, server.post("/api/show", {"model": model, "verbose": True}).json, size)


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize(
    ("model", "context"), [(EIGHT, 4096), (EIGHT, 20000), (LARGE, 3000), (GEMMA, 8192), (MIDDLE, 16384)]
)
def test_the_guess(one_gpu, model, context, slots):
    """The proxy's guess is the server's, for grouped heads, windows, several slots, any context."""
    server = one_gpu(OLLAMA_NUM_PARALLEL=str(slots))
    server.generate(SMALL)
    server.generate(model, options={"num_ctx": context})
    ((_, guessed, tokens, batch, _),) = verdicts(server)
    assert tokens == context * slots
    chosen = SURCHARGES[batch]  # by the server itself, such that it fits: it never makes it evict
    ours = guessed_bytes(info_of(server, model), context=context, slots=slots) + chosen
    assert guessed == pytest.approx(ours / GIB, abs=0.06)


def test_the_guess_of_an_encoder(one_gpu):
    """A model for embeddings has one slot, and no surcharge for its batch."""
    server = one_gpu(OLLAMA_NUM_PARALLEL="3")
    server.generate(SMALL)
    server.post("/api/embed", {"model": EMBEDDER})
    text = server.log()
    found = re.search(r'fits alongside.*? predicted="([\d.]+) MiB" predicted_num_ctx=2048 ', text)
    assert found, text[-3000:]
    ours = guessed_bytes(info_of(server, EMBEDDER), context=2048, slots=1) / (1 << 20)
    assert float(found[1]) == pytest.approx(ours, abs=1)


@pytest.mark.parametrize("batch", SURCHARGES)
def test_a_batch_that_is_asked_for_is_added(one_gpu, batch):
    """A batch in the Modelfile makes the guess larger; the proxy counts it too."""
    server = one_gpu()
    made = {"model": "wide", "from": EIGHT, "parameters": {"num_batch": batch}, "stream": False}
    assert server.post("/api/create", made).status == 200
    server.generate(SMALL)
    server.generate("wide")
    ((_, guessed, _, used, _),) = verdicts(server)
    plain = guessed_bytes(info_of(server, EIGHT), context=4096, slots=1)
    assert used == batch
    assert guessed == pytest.approx((plain + SURCHARGES[batch]) / GIB, abs=0.06)
    assert guessed_bytes(info_of(server, "wide"), context=4096, slots=1) / GIB == pytest.approx(
        guessed, abs=0.06
    )


def test_the_books(one_gpu):
    """Believed free is what one of the loaded, by chance, saw at its load, less what it reports."""
    server = one_gpu()
    left = []
    for model in (LARGE, SMALL):
        (used,) = server.gpus()
        server.generate(model)
        (entry,) = (entry for entry in server.ps() if entry["name"].startswith(model))
        left.append(GPU_BYTES - used - entry["size_vram"])
    server.generate(EIGHT)
    *_, (fits, _, _, _, available) = verdicts(server)
    assert fits
    accounted = GPU_BYTES - sum(entry["size_vram"] for entry in server.ps() if EIGHT not in entry["name"])
    believed = {round(min(accounted, one) / GIB, 1) for one in left}
    assert any(available == pytest.approx(one, abs=0.11) for one in believed)


def test_stale_books(one_gpu):
    """A runner loaded beside another counts that one for good: less is believed free than is."""
    server = one_gpu()
    server.generate(EIGHT)
    (used,) = server.gpus()
    server.generate(SMALL)
    (entry,) = (entry for entry in server.ps() if entry["name"].startswith(SMALL))
    left = GPU_BYTES - used - entry["size_vram"]
    server.unload(EIGHT)
    eventually(lambda: len(server.ps()) == 1, what="it has gone")
    eventually(lambda: server.gpus()[0] < used / 2, what="its memory is back")
    server.generate(LARGE)
    *_, (_, _, _, _, available) = verdicts(server)
    assert available == pytest.approx(left / GIB, abs=0.11)
    assert available < (GPU_BYTES - entry["size_vram"]) / GIB - 4


@pytest.mark.parametrize(("context", "evicts"), [(81000, False), (96000, True)])
def test_eighty_percent(start, context, evicts):
    """A model is loaded beside another up to 80 % of what is believed free; beyond, that one goes."""
    server = start(
        env={"OLLAMA_CONTEXT_LENGTH": "4096"}, gpu_count=1, seeds=(SMALL, EIGHT), gpu_bytes=20 * GIB
    )
    server.generate(SMALL, keep_alive=-1)
    server.generate(EIGHT, options={"num_ctx": context, "num_batch": 512})
    *_, (fits, guessed, _, _, available) = (verdict for verdict in verdicts(server))
    assert fits is not evicts
    assert (guessed <= 0.8 * available + 0.06) is not evicts or abs(guessed - 0.8 * available) < 0.1
    names = {name.partition(":latest")[0] for name in server.loaded()}
    assert names == ({EIGHT} if evicts else {EIGHT, SMALL})
    (entry,) = (entry for entry in server.ps() if entry["name"].startswith(EIGHT))
    assert entry["size"] == entry["size_vram"]


def test_alone_there_is_no_rule(start):
    """With nothing else loaded a model may be guessed at more than 80 % of the GPU."""
    total = 14 * GIB
    server = start(env={"OLLAMA_CONTEXT_LENGTH": "4096"}, gpu_count=1, seeds=(EIGHT,), gpu_bytes=total)
    server.generate(EIGHT, options={"num_ctx": 60000, "num_batch": 512})
    (entry,) = server.ps()
    assert verdicts(server) == []
    assert entry["size_vram"] == entry["size"]
    assert guessed_bytes(info_of(server, EIGHT), context=60000, slots=1) > 0.8 * total
