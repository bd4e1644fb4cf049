"""Bodies that try to have one model checked and another one run, at the door and at Ollama itself.

Where OLLAMA_BIN names one of 0.30 or later, the instance is that, and shows that tests/gojson.py reads alike.
"""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from drover_proxy.dialect.names import canonical

from tests.gojson import fields_of
from tests.proxy.rig import GIB, MIDDLE, SMALL, Rig, real_ollama
from tests.support import eventually

ALLOWED, OTHER = f'"{SMALL}"', f'"{MIDDLE}"'
REST = '"prompt":"Hello","stream":false'
TRICKS = {
    "plain": f'{{"model":{ALLOWED},{REST}}}',
    "the other": f'{{"model":{OTHER},{REST}}}',
    "twice, allowed last": f'{{"model":{OTHER},"model":{ALLOWED},{REST}}}',
    "twice, other last": f'{{"model":{ALLOWED},"model":{OTHER},{REST}}}',
    "cased, other last": f'{{"model":{ALLOWED},"Model":{OTHER},{REST}}}',
    "cased, other first": f'{{"MODEL":{OTHER},"model":{ALLOWED},{REST}}}',
    "only cased": f'{{"Model":{OTHER},{REST}}}',
    "only cased, allowed": f'{{"MODEL":{ALLOWED},{REST}}}',
    "escaped name": f'{{"mod\\u0065l":{OTHER},{REST}}}',
    "escaped twice": f'{{"model":{ALLOWED},"mod\\u0065l":{OTHER},{REST}}}',
    "escaped value": f'{{"model":"llama3.1\\u003a8b",{REST}}}',
    "null after": f'{{"model":{OTHER},"model":null,{REST}}}',
    "null before": f'{{"model":null,"model":{OTHER},{REST}}}',
    "name beside": f'{{"name":{ALLOWED},"model":{OTHER},{REST}}}',
    "name alone": f'{{"name":{OTHER},{REST}}}',
    "blanks to hide in": f'{{"model":{ALLOWED} ,\n\t"model":{OTHER},{REST}}}',
    "a second object": f'{{"model":{ALLOWED},{REST}}}{{"model":{OTHER},{REST}}}',
    "nested": f'{{"options":{{"model":{OTHER}}},"model":{ALLOWED},{REST}}}',
    "a list": f'[{{"model":{OTHER},{REST}}}]',
    "a byte order mark": f'\ufeff{{"model":{OTHER},{REST}}}',
    "not UTF-8": f'{{"model":{OTHER},'.encode() + b'"prompt":"\xff","stream":false}',
    "a name not in UTF-8": f'{{"model":{ALLOWED},"mo?del":{OTHER},{REST}}}'.encode().replace(b"?", b"\xff"),
    "half a character": f'{{"model":{OTHER},"prompt":"\\ud800","stream":false}}',
    "half a character in the name": f'{{"model":{ALLOWED},"model\\ud800":{OTHER},{REST}}}',
    "long s": f'{{"model":{OTHER},"prompt":"Hello","\u017ftream":false}}',
    "Kelvin": f'{{"model":{OTHER},"\u212aeep_alive":0,{REST}}}',
    "wide letters": f'{{"model":{ALLOWED},"\uff4d\uff4f\uff44\uff45\uff4c":{OTHER},{REST}}}',
    "no number": f'{{"model":{OTHER},"x":NaN,{REST}}}',
    "a huge number": f'{{"model":{OTHER},"x":1e99999,{REST}}}',
    "a long number": f'{{"model":{OTHER},"x":{"9" * 4000},{REST}}}',
    "deep": f'{{"model":{OTHER},"x":{"[" * 800}{"]" * 800},{REST}}}',
    "too deep": f'{{"model":{OTHER},"x":{"[" * 20000}{"]" * 20000},{REST}}}',
    "a comment": f'{{/**/"model":{OTHER},{REST}}}',
    "a comma too many": f'{{"model":{OTHER},{REST},}}',
    "single quotes": f"{{'model':{OTHER},{REST}}}",
    "another case": f'{{"model":"LLAMA3.1:8B",{REST}}}',
    "spelt out": f'{{"model":"registry.ollama.ai/library/llama3.1:8b",{REST}}}',
    "a scheme": f'{{"model":"https://registry.ollama.ai/library/llama3.1:8b",{REST}}}',
    "a path": f'{{"model":"llama3.2:3b/../llama3.1:8b",{REST}}}',
    "a blank": f'{{"model":" llama3.1:8b",{REST}}}',
    "a NUL": f'{{"model":"llama3.1:8b\\u0000",{REST}}}',
}  # fmt: skip


def body_of(trick):
    """Return the bytes of a trick."""
    body = TRICKS[trick]
    return body if isinstance(body, bytes) else body.encode()


@pytest.fixture(scope="module")
def roomy(tmp_path_factory, nvml) -> Iterator[Rig]:
    """A running rig whose GPU holds both models, so that nothing is ever evicted."""
    rig = Rig(tmp_path_factory.mktemp("rig"), nvml, gpu_bytes=(40 * GIB,), slots=2)
    try:
        yield rig.start()
    finally:
        rig.stop()


def model_of(answer):
    """Return the canonical name of the model that answered; "" where none did."""
    if answer.status_code != 200:
        return ""
    name = answer.json()["model"]
    return canonical(name.strip().removeprefix("https://"))  # forms that Ollama takes and the proxy refuses


@pytest.mark.parametrize("path", ["/api/generate", "/v1/completions"])
@pytest.mark.parametrize("trick", TRICKS)
def test_a_key_runs_only_its_models(roomy, path, trick):
    """Whatever the body does, the key of one model is never answered by another one."""
    body = body_of(trick)
    with roomy.http("some") as http:
        limited = http.post(path, content=body)
    with roomy.http("use") as http:
        anyone = http.post(path, content=body)

    assert model_of(limited) in {"", SMALL}, trick
    assert limited.status_code < 500
    assert anyone.status_code < 500


@pytest.mark.skipif(not real_ollama(), reason="OLLAMA_BIN names no ollama of 0.30 or later")
@pytest.mark.parametrize("path", ["/api/generate", "/v1/completions"])
@pytest.mark.parametrize("trick", TRICKS)
def test_ollama_reads_bodies_as_we_think(roomy, path, trick):
    """A real Ollama reads a trick as the reader of the tests does, and runs what the proxy runs."""
    body = body_of(trick)
    direct_url = f"http://127.0.0.1:{roomy.instance_ports[0]}{path}"
    direct = httpx.post(direct_url, content=body, headers={"content-type": "application/json"}, timeout=60)
    with roomy.http("use") as http:
        anyone = http.post(path, content=body)

    if direct.status_code == 200:
        assert model_of(anyone) in {"", model_of(direct)}
        read = str(fields_of(body, ("model",)).get("model", ""))
        assert canonical(read.strip().removeprefix("https://")) == model_of(direct)


@pytest.mark.parametrize("trick", TRICKS)
def test_a_key_is_shown_only_its_models(roomy, trick):
    """/api/show, which takes `name` too, tells a key nothing of the models that it may not use."""
    with roomy.http("some") as http:
        answer = http.post("/api/show", content=body_of(trick))

    if answer.status_code == 200:
        assert answer.json()["model_info"]["llama.block_count"] == 28, trick
    else:
        assert 400 <= answer.status_code < 500


SEARCH = 'hi [[tokens=1 text={"name":"web_search","parameters":{"query":"x"}}]]'
"""A prompt that a simulated model answers by calling a tool."""


@pytest.mark.parametrize(
    ("path", "kind"), [("/v1/messages", "web_search_20250305"), ("/v1/responses", "web_search")]
)
def test_no_tool_takes_a_prompt_to_ollama_com(roomy, path, kind):
    """What Ollama would run there for the host's account is refused as its routes are, and nothing else."""
    body = {
        "model": SMALL,
        "max_tokens": 9,
        "messages": [{"role": "user", "content": SEARCH}],
        "input": SEARCH,
    }
    own = {"type": "function", "name": "find", "input_schema": {"type": "object"}, "parameters": {}}
    with roomy.http("use") as http:
        refused = http.post(path, json=body | {"tools": [own, {"type": kind, "name": "web_search"}]})
        answered = http.post(path, json=body | {"tools": [own]})

    assert (refused.status_code, refused.headers["x-drover-error"]) == (403, "not_offered")
    assert answered.status_code == 200


STUB = {"model": "stub", "from": "gpt-oss:120b", "remote_host": "https://ollama.com", "stream": False}


def test_no_model_of_a_plain_name_is_one_of_the_cloud(roomy):
    """Nobody makes one, however the field is spelt."""
    with roomy.http("admin") as http:
        made = [
            http.post("/api/create", json=STUB),
            http.post(
                "/api/create", content='{"model":"stub","from":"a","Remote_ho\\u0073t":"https://b.example"}'
            ),
        ]
        named = {model["name"] for model in http.get("/api/tags").json()["models"]}

    assert [(one.status_code, one.headers["x-drover-error"]) for one in made] == [(403, "cloud_refused")] * 2
    assert "stub:latest" not in named


@pytest.mark.skipif(not real_ollama(), reason="OLLAMA_BIN names no ollama of 0.30 or later")
@pytest.mark.parametrize("path", ["/api/generate", "/v1/chat/completions", "/api/show", "/api/embed"])
def test_a_model_of_the_cloud_that_is_there_is_not_asked(roomy, path):
    """One that was made at Ollama itself; it can still be deleted."""
    direct = f"http://127.0.0.1:{roomy.instance_ports[0]}"
    assert httpx.post(f"{direct}/api/create", json=STUB, timeout=60).status_code == 200
    body = {"model": "stub", "prompt": "a", "input": "a", "messages": [{"role": "user", "content": "a"}]}
    with roomy.http("admin") as http:
        asked = eventually(lambda: told if (told := http.post(path, json=body)).status_code != 404 else None)
        deleted = http.request("DELETE", "/api/delete", json={"model": "stub"})

    assert (asked.status_code, asked.headers["x-drover-error"]) == (403, "cloud_refused")
    assert deleted.status_code == 200
