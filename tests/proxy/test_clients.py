"""The real `openai` and `ollama` packages, unmodified, against the proxy."""

from __future__ import annotations

import http.client
import json

import ollama
import openai
import pytest

from tests.proxy.rig import EMBED, KEYS, MIDDLE, OTHER, SMALL

HELLO = [{"role": "user", "content": "Say hello."}]
TOOL = {
    "type": "function",
    "function": {"name": "look", "description": "Look.", "parameters": {"type": "object", "properties": {}}},
}


def test_openai_lists_models(shared):
    """The list has every model that is on disk."""
    assert {m.id for m in shared.openai().models.list()} == {SMALL, MIDDLE, OTHER, EMBED}


def test_openai_retrieves_one_model(shared):
    """A model's own path works, and one that isn't there is a NotFoundError."""
    assert shared.openai().models.retrieve(SMALL).id == SMALL
    with pytest.raises(openai.NotFoundError):
        shared.openai().models.retrieve("nobody")


def test_openai_chat(shared):
    """A chat is answered, and says which instance answered it."""
    raw = shared.openai().chat.completions.with_raw_response.create(model=SMALL, messages=HELLO)

    assert raw.parse().choices[0].message.content
    assert raw.headers["x-drover-instance"] == "gpu0"
    assert int(raw.headers["x-drover-queue-ms"]) >= int(raw.headers["x-drover-load-ms"]) >= 0


def test_openai_chat_streamed(shared):
    """A streamed chat arrives in pieces and ends by itself."""
    stream = shared.openai().chat.completions.create(model=SMALL, messages=HELLO, stream=True)
    pieces = [event.choices[0].delta.content or "" for event in stream if event.choices]

    assert len([piece for piece in pieces if piece]) > 3


def test_openai_completions_and_embeddings(shared):
    """The two older routes work too."""
    client = shared.openai()

    assert client.completions.create(model=SMALL, prompt="One").choices[0].text
    assert len(client.embeddings.create(model=EMBED, input=["a", "b"]).data) == 2


def test_openai_responses(shared):
    """The responses route works, streamed and not."""
    client = shared.openai()

    assert client.responses.create(model=SMALL, input="One").output_text
    kinds = [event.type for event in client.responses.create(model=SMALL, input="One", stream=True)]
    assert kinds[-1] == "response.completed"


def test_openai_tools_are_passed_on(shared):
    """A request with tools reaches the model as it is."""
    answer = shared.openai().chat.completions.create(model=SMALL, messages=HELLO, tools=[TOOL])

    assert answer.choices[0].finish_reason in {"stop", "tool_calls", "length"}


def test_openai_errors_are_typed(shared):
    """Wrong key, unknown model and bad body come as the package's own exceptions."""
    with pytest.raises(openai.AuthenticationError) as refused:
        shared.openai("drv_wrong").models.list()
    with pytest.raises(openai.NotFoundError) as absent:
        shared.openai().chat.completions.create(model="nobody:1b", messages=HELLO)
    with pytest.raises(openai.BadRequestError):
        shared.openai().chat.completions.create(model=SMALL, messages=[])

    assert refused.value.response.headers["x-drover-error"] == "unauthorized"
    assert refused.value.response.headers["www-authenticate"].startswith("Bearer")
    assert absent.value.response.headers["x-drover-error"] == "model_not_found"
    assert "nobody:1b" in str(absent.value)


def test_ollama_lists_and_shows(shared):
    """The native package lists and shows models."""
    client = shared.ollama()

    assert {m.model for m in client.list().models} == {SMALL, MIDDLE, OTHER, EMBED}
    assert client.show(SMALL).details.family == "llama"


def test_ollama_chat_and_generate(shared):
    """Chat and generate work, streamed and not."""
    client = shared.ollama()

    assert client.chat(SMALL, HELLO).message.content
    assert client.generate(SMALL, "One").response
    assert list(client.chat(SMALL, HELLO, stream=True))[-1].done
    assert list(client.generate(SMALL, "One", stream=True))[-1].done


def test_ollama_embeds(shared):
    """Both embedding routes work."""
    client = shared.ollama()

    assert len(client.embed(EMBED, ["a", "b"]).embeddings) == 2
    assert client.embeddings(EMBED, "a").embedding


def test_ollama_sees_what_is_loaded(shared):
    """`ps` lists what the instances have."""
    client = shared.ollama()
    client.generate(SMALL, "One")

    assert SMALL in {m.model for m in client.ps().models}


def test_ollama_errors_are_typed(shared):
    """The native package gets Ollama's own words for an unknown model, and 401 for a wrong key."""
    with pytest.raises(ollama.ResponseError, match="model 'nobody' not found") as absent:
        shared.ollama().generate("nobody", "One")
    with pytest.raises(ollama.ResponseError) as refused:
        shared.ollama("drv_wrong").list()

    assert (absent.value.status_code, refused.value.status_code) == (404, 401)


def test_a_client_may_load_and_ask_to_unload(shared):
    """An empty prompt loads; keep_alive 0 is answered as Ollama does, and nothing is unloaded."""
    client = shared.ollama()
    loaded = client.generate(SMALL)
    unloaded = client.generate(SMALL, keep_alive=0)

    assert (loaded.done_reason, unloaded.done_reason) == ("load", "unload")
    assert SMALL in shared.loaded()


def test_runner_options_of_a_client_reload_nothing(shared):
    """Whatever num_ctx and num_gpu clients send, the runner stays as it is, and /v1 shares it."""
    client = shared.ollama()
    client.generate(SMALL, "One")
    before = runner_starts(shared)
    for options in ({"num_ctx": 2048}, {"num_gpu": 0}, {"num_ctx": 8192, "temperature": 0.1}, {}):
        assert client.generate(SMALL, "One", options=options, keep_alive="1s").response
    shared.openai().chat.completions.create(model=SMALL, messages=HELLO)

    assert runner_starts(shared) == before > 0
    listed = shared.admin("/drover/v1/state").json()["runners_listed"]["gpu0"]
    entry = next(item for item in listed if item["name"] == SMALL)
    assert entry["size_vram"] == entry["size"]
    assert entry["expires_at"] > "2200"


def runner_starts(rig):
    """Return how often the instance has started a runner."""
    return (rig.folder / "ollama0.log").read_text().count("load_tensors: offloaded")


def test_anthropic_errors_have_their_own_shape(shared):
    """The messages route answers, and its errors are Anthropic's."""
    body = {"model": SMALL, "max_tokens": 8, "messages": HELLO}
    with shared.http(None) as http:
        refused = http.post("/v1/messages", json=body)
        good = http.post("/v1/messages", json=body, headers={"x-api-key": KEYS["use"]})

    assert refused.status_code == 401
    assert refused.json()["error"]["type"] == "authentication_error"
    assert good.json()["type"] == "message"


def test_a_body_that_is_too_long_is_said_in_the_dialect(shared):
    """413 comes before the body is read, in the words of whom it is for."""
    connection = http.client.HTTPConnection("127.0.0.1", shared.port, timeout=10)
    try:
        connection.putrequest("POST", "/v1/messages")
        connection.putheader("x-api-key", KEYS["use"])
        connection.putheader("content-length", "99999999")
        connection.endheaders()
        answer = connection.getresponse()
        body = json.load(answer)
    finally:
        connection.close()

    assert answer.status == 413
    assert answer.headers["x-drover-error"] == "body_too_long"
    assert body["error"]["type"] == "request_too_large"


def test_a_key_sees_and_uses_only_its_models(shared):
    """A key with a pattern lists, shows and uses what it matches, and nothing else."""
    client = shared.openai("some")

    assert {m.id for m in client.models.list()} == {SMALL}
    assert {m.model for m in shared.ollama("some").list().models} == {SMALL}
    assert client.chat.completions.create(model=SMALL, messages=HELLO).choices
    with pytest.raises(openai.PermissionDeniedError) as refused:
        client.chat.completions.create(model=MIDDLE, messages=HELLO)
    assert refused.value.response.headers["x-drover-error"] == "model_not_allowed"


def test_the_head_of_a_list_tells_no_more_than_the_list(shared):
    """To a key with patterns: no length of models that it doesn't see."""
    with shared.http("some") as narrow, shared.http("use") as all_of_them:
        listed, asked = narrow.get("/api/tags"), narrow.head("/api/tags")
        whole = all_of_them.head("/api/tags")

    assert (asked.status_code, asked.content) == (200, b"")
    assert asked.headers["content-length"] == str(len(listed.content))
    assert whole.status_code == 200


def test_management_needs_the_admin_scope(shared):
    """A plain key may neither pull, create, copy nor delete."""
    client = shared.ollama()
    calls = (
        lambda: client.pull("qwen2.5:0.5b"),
        lambda: client.create("mine", from_=SMALL),
        lambda: client.copy(SMALL, "mine"),
        lambda: client.delete(SMALL),
    )
    for call in calls:
        with pytest.raises(ollama.ResponseError) as refused:
            call()
        assert refused.value.status_code == 403


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "//api/tags", 404),
        ("GET", "/api/../api/tags", 404),
        ("GET", "/API/tags", 404),
        ("GET", "/api/tags/", 404),
        ("GET", "/api/generate", 405),
        ("POST", "/api/me", 403),
        ("POST", "/api/experimental/web_search", 403),
        ("GET", "/debug/pprof", 404),
        ("GET", "/", 200),
        ("GET", "/api/version", 200),
    ],
)
def test_only_exact_known_routes_are_served(shared, method, path, status):
    """What isn't in the table, as it is written, goes nowhere."""
    connection = http.client.HTTPConnection("127.0.0.1", shared.port, timeout=10)
    try:
        connection.putrequest(method, path)  # as it is: httpx would clean it
        connection.putheader("authorization", f"Bearer {KEYS['use']}")
        connection.endheaders()
        assert connection.getresponse().status == status
    finally:
        connection.close()
