"""Loading and unloading by requests, and what /api/ps tells of it."""

from __future__ import annotations

import time

import pytest

from tests.contract.harness import Answer
from tests.support import eventually


def _year(entry) -> int:
    return int(entry["expires_at"][:4])


def test_load_answer(server, model):
    """No prompt loads the model; the answer is one JSON object even where a stream was asked for."""
    answer: Answer = server.post("/api/generate", {"model": model})
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("application/json")
    found = answer.json
    assert found.pop("created_at").endswith("Z")
    assert found == {"model": model, "response": "", "done": True, "done_reason": "load"}
    assert len(server.ps()) == 1


def test_load_answer_chat(server, model):
    """A chat without messages loads too."""
    found = server.post("/api/chat", {"model": model, "messages": []}).json
    assert found["message"] == {"role": "assistant", "content": ""}
    assert found["done_reason"] == "load"


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
def test_unload_answer(server, model, path):
    """keep_alive 0 without a prompt unloads: answered at once, done a little later."""
    server.generate(model)
    found = server.post(path, {"model": model, "keep_alive": 0}).json
    assert found["done_reason"] == "unload"
    eventually(lambda: not server.ps(), what="the model is gone")


def test_unload_what_is_not_loaded(server, model):
    """Unloading what isn't loaded succeeds."""
    assert server.post("/api/generate", {"model": model, "keep_alive": 0}).json["done_reason"] == "unload"
    assert server.ps() == []


def test_ps_entry(server, model):
    """An entry has the manifest's digest, the details of the model and the context of a slot."""
    server.generate(model, options={"num_ctx": 2048})
    (entry,) = server.ps()
    tag = next(
        tag for tag in server.get("/api/tags").json["models"] if tag["name"] in {model, f"{model}:latest"}
    )
    assert {"name", "model", "size", "digest", "details", "expires_at", "size_vram", "context_length"} <= set(
        entry
    )
    assert entry["name"] == entry["model"] == tag["name"]
    assert entry["digest"] == tag["digest"]
    assert entry["context_length"] == 2048
    assert entry["size"] >= entry["size_vram"] >= 0
    assert {"parent_model", "format", "family", "families", "parameter_size", "quantization_level"} <= set(
        entry["details"]
    )


@pytest.mark.parametrize(("keep_alive", "forever"), [(-1, True), ("-1m", True), ("10m", False), (600, False)])
def test_keep_alive(server, model, keep_alive, forever):
    """A negative keep_alive means for ever, which is 292 years; numbers are seconds."""
    server.generate(model, keep_alive=keep_alive)
    entry = server.ps()[0]
    assert (_year(entry) > 2300) is forever


def test_keep_alive_sticks(server, model):
    """A request without keep_alive leaves the runner's value as it is."""
    server.generate(model, keep_alive=-1)
    server.generate(model, "x", options={"num_predict": 1})
    assert _year(server.ps()[0]) > 2300


def test_keep_alive_zero_unloads_after(server, model):
    """keep_alive 0 with a prompt answers, and unloads then."""
    assert server.generate(model, "x", keep_alive=0, options={"num_predict": 2}).json["eval_count"] <= 2
    eventually(lambda: not server.ps(), what="the model is gone")


def test_keep_alive_runs_out(server, model):
    """A model goes when its time is over."""
    server.generate(model, keep_alive="300ms")
    eventually(lambda: not server.ps(), timeout=10, what="the model is gone")


@pytest.mark.needs("start", "upload")
def test_default_keep_alive(start, model):
    """OLLAMA_KEEP_ALIVE is taken where a request says nothing."""
    server = start(env={"OLLAMA_KEEP_ALIVE": "-1"})
    server.generate(model)
    assert _year(server.ps()[0]) > 2300


@pytest.mark.needs("upload")
def test_alias_shares_the_runner(server, model):
    """Two names of one blob share a runner, which shows the first name and unloads by either."""
    assert server.post("/api/copy", {"source": model, "destination": "alias"}).status == 200
    server.generate(model)
    server.generate("alias", "x", options={"num_predict": 1})
    (entry,) = server.ps()
    assert entry["name"].startswith(model)
    server.unload("alias")
    eventually(lambda: not server.ps(), what="the runner is gone")


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.1}, {"top_k": 1, "seed": 3}, {"num_predict": 2}, {"stop": ["x"]}, {"bogus": 1}],
)
def test_no_reload(server, model, options):
    """Sampling options don't reload the model."""
    options = {"num_predict": 1, **options}
    server.generate(model, options={"num_ctx": 2048})
    before = server.log().count(RELOADED) if server.process else 0
    server.generate(model, "x", options={"num_ctx": 2048, **options})
    assert (server.log().count(RELOADED) if server.process else 0) == before
    assert server.ps()[0]["context_length"] == 2048


RELOADED = "msg=reloading"


@pytest.mark.parametrize(
    "change", [{"num_ctx": 1024}, {"num_batch": 256}, {"num_thread": 2}, {"use_mmap": False}]
)
@pytest.mark.needs("start")
def test_reload(server, model, change):
    """Options of the runner reload the model when they change."""
    first = {"num_ctx": 2048}
    server.generate(model, options=first)
    before = server.log().count(RELOADED)
    server.generate(model, options={**first, **change})
    assert server.log().count(RELOADED) == before + 1
    assert server.ps()[0]["context_length"] == change.get("num_ctx", 2048)


@pytest.mark.needs("start")
def test_v1_reloads_too(server, model):
    """OpenAI's clients can't name a context, so they and native ones reload each other."""
    server.generate(model, options={"num_ctx": 2048})
    server.post("/v1/completions", {"model": model, "prompt": "x", "max_tokens": 1})
    assert server.ps()[0]["context_length"] != 2048


def test_context_of_the_model(server, model):
    """A context above what the model was trained for is capped."""
    info = server.post("/api/show", {"model": model}).json["model_info"]
    trained = info[f"{info['general.architecture']}.context_length"]
    server.generate(model, options={"num_ctx": trained * 2})
    assert server.ps()[0]["context_length"] == trained


def test_smallest_context(server, model):
    """A context below four becomes four."""
    server.generate(model, options={"num_ctx": 1})
    assert server.ps()[0]["context_length"] == 4


@pytest.mark.needs("upload")
def test_parameters_of_the_model(server, model):
    """A derived model's num_ctx is taken, and the request's own goes before it."""
    server.post(
        "/api/create", {"model": "ctx2k", "from": model, "parameters": {"num_ctx": 2048}, "stream": False}
    )
    server.generate("ctx2k")
    assert server.ps()[0]["context_length"] == 2048
    server.generate("ctx2k", options={"num_ctx": 1024})
    assert server.ps()[0]["context_length"] == 1024


@pytest.mark.needs("upload")
def test_ghost(server, model):
    """Deleting a model leaves its runner: listed, not to be unloaded by its name, but by another's."""
    server.post("/api/copy", {"source": model, "destination": "shade"})
    server.generate("shade", keep_alive=-1)
    assert server.request("DELETE", "/api/delete", {"model": "shade"}).status == 200
    assert [name.partition(":")[0] for name in server.loaded()] == ["shade"]
    answer = server.post("/api/generate", {"model": "shade", "keep_alive": 0})
    assert (answer.status, answer.json) == (404, {"error": "model 'shade' not found"})
    server.unload(model)
    eventually(lambda: not server.ps(), what="the ghost is gone")


@pytest.mark.needs("markers")
def test_unload_while_busy(server, model):
    """A busy model is marked as expired, serves what comes, and goes afterwards."""
    server.generate(model)
    busy = server.background("/api/generate", {"model": model, "prompt": "[[tokens=40 rate=40]]"})
    eventually(lambda: busy.first_at, what="the first token")
    server.unload(model)
    eventually(
        lambda: server.ps()[0]["expires_at"][:19] <= time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()),
        timeout=1,
        what="it is marked as expired",
    )
    busy.finished()
    assert b'"done":true' in busy.body
    eventually(lambda: not server.ps(), what="the model is gone")


@pytest.mark.needs("start", "markers")
def test_not_listed_while_loading(start, model):
    """A model that is being loaded isn't listed."""
    server = start(knobs={"load_seconds_min": 1.5})
    loading = server.background("/api/generate", {"model": model})
    eventually(server.runners, what="the runner has started")
    assert server.ps() == []
    loading.finished()
    assert len(server.ps()) == 1
