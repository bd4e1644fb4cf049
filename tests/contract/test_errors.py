"""Error statuses and bodies, in each dialect."""

from __future__ import annotations

import pytest

NATIVE = [
    "/api/generate",
    "/api/chat",
    "/api/embed",
    "/api/embeddings",
    "/api/show",
    "/api/create",
    "/api/pull",
    "/api/copy",
]
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize("path", NATIVE)
def test_empty_body(server, path):
    """An empty body is named as such."""
    answer = server.post(path, b"")
    assert (answer.status, answer.json) == (400, {"error": "missing request body"})
    assert answer.headers["content-type"] == "application/json; charset=utf-8"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"])
def test_empty_body_v1(server, path):
    """Under /v1 an empty body is Go's EOF."""
    answer = server.post(path, b"")
    assert answer.status == 400
    assert answer.json == {
        "error": {"message": "EOF", "type": "invalid_request_error", "param": None, "code": None}
    }


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"model":', "unexpected EOF"),
        (b"nonsense", "invalid character 'o' in literal null (expecting 'u')"),
        (b"?", "invalid character '?' looking for beginning of value"),
        (
            b'{"model": 1}',
            "json: cannot unmarshal number into Go struct field GenerateRequest.model of type string",
        ),
        (
            b'{"model": "x", "stream": "no"}',
            "json: cannot unmarshal string into Go struct field GenerateRequest.stream of type bool",
        ),
        (
            b'{"model": "x", "options": 3}',
            (
                "json: cannot unmarshal number into Go struct field GenerateRequest.options of type "
                "map[string]interface {}"
            ),
        ),
        (b"[]", "json: cannot unmarshal array into Go value of type api.GenerateRequest"),
    ],
)
def test_bad_json(server, body, text):
    """What isn't the right JSON is refused in Go's words."""
    answer = server.post("/api/generate", body)
    assert (answer.status, answer.json) == (400, {"error": text})


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/api/generate", {}, 404, "model '' not found"),
        ("/api/generate", {"model": "none"}, 404, "model 'none' not found"),
        ("/api/chat", {"model": "none"}, 404, "model 'none' not found"),
        ("/api/chat", {}, 400, "model is required"),
        ("/api/show", {}, 400, "model is required"),
        ("/api/copy", {"source": "none", "destination": "x"}, 404, 'model "none" not found'),
        ("/api/embed", {"model": "none", "input": "x"}, 404, 'model "none" not found, try pulling it first'),
        ("/api/embeddings", {"model": "none"}, 404, 'model "none" not found, try pulling it first'),
    ],
)
def test_missing_model(server, path, body, status, text):
    """A model that isn't there is told in the words of each route."""
    answer = server.post(path, body)
    assert (answer.status, answer.json) == (status, {"error": text})


@pytest.mark.needs("modern")
def test_missing_model_show(server):
    """`show` names the model with its tag."""
    answer = server.post("/api/show", {"model": "none"})
    assert (answer.status, answer.json) == (404, {"error": "model 'none:latest' not found"})


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_missing_model_v1(server, path):
    """OpenAI's routes answer with OpenAI's error object."""
    answer = server.post(path, {"model": "none", "prompt": "x", **CHAT})
    assert answer.status == 404
    error = {"message": "model 'none' not found", "type": "not_found_error", "param": None, "code": None}
    assert answer.json == {"error": error}
    assert answer.headers["content-type"] == "application/json"


def test_missing_model_anthropic(server):
    """Anthropic's route answers with Anthropic's error object."""
    answer = server.post("/v1/messages", {"model": "none", "max_tokens": 5, **CHAT})
    assert answer.status == 404
    found = answer.json
    assert found["type"] == "error"
    assert found["error"] == {"type": "not_found_error", "message": "model 'none' not found"}


def test_empty_messages_v1(server, model):
    """A chat of OpenAI's needs messages."""
    answer = server.post("/v1/chat/completions", {"model": model, "messages": []})
    assert answer.status == 400
    assert answer.json["error"]["message"] == "[] is too short - 'messages'"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"messages": CHAT["messages"]}, "max_tokens is required and must be positive"),
        ({"max_tokens": 5}, "messages is required"),
    ],
)
def test_anthropic_requirements(server, model, body, text):
    """Anthropic's route insists on max_tokens and messages."""
    answer = server.post("/v1/messages", {"model": model, **body})
    assert answer.status == 400
    assert answer.json["error"] == {"type": "invalid_request_error", "message": text}


def test_option_of_wrong_type(server, model):
    """An option of the wrong type is a 500, though the client is to blame."""
    answer = server.generate(model, "x", options={"num_ctx": "8192"})
    assert (answer.status, answer.json) == (500, {"error": 'option "num_ctx" must be of type integer'})


def test_unknown_option(server, model):
    """An unknown option is ignored."""
    assert server.generate(model, "x", options={"mirostat_nonsense": 1, "num_predict": 2}).status == 200


@pytest.mark.parametrize("value", ["-1", "300", "soon"])
def test_bad_keep_alive(server, model, value):
    """A keep_alive without a unit is refused."""
    answer = server.generate(model, "x", keep_alive=value)
    assert answer.status == 400
    assert answer.json["error"].startswith("time: ")
    assert f'"{value}"' in answer.json["error"]


def test_format_is_checked(server, model):
    """An unknown format is a 500."""
    answer = server.generate(model, "x", format="xml")
    assert answer.status == 500
    assert "format" in answer.json["error"]


@pytest.mark.needs("upload")
def test_capability_tools(server, model):
    """A model whose template knows no tools refuses them, by its full name."""
    made = server.post(
        "/api/create", {"model": "plain", "from": model, "template": "{{ .Prompt }}", "stream": False}
    )
    assert made.status == 200
    tools = [
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    ]
    answer = server.post("/api/chat", {"model": "plain", "tools": tools, **CHAT})
    assert answer.status == 400
    assert answer.json == {"error": "registry.ollama.ai/library/plain:latest does not support tools"}


def test_capability_thinking(server, model):
    """A model that doesn't think says so, by its short name."""
    answer = server.generate(model, "x", think=True)
    assert (answer.status, answer.json) == (400, {"error": f'"{model}" does not support thinking'})


def test_capability_insert(server, model):
    """A suffix needs a template that knows of one."""
    answer = server.post(
        "/api/generate", {"model": model, "prompt": "a", "suffix": "b", "options": {"num_predict": 1}}
    )
    known = "insert" in server.post("/api/show", {"model": model}).json["capabilities"]
    assert answer.status == (200 if known else 400)


@pytest.mark.needs("embedder")
def test_capability_generate(server, embedder):
    """A model for embeddings doesn't generate."""
    answer = server.generate(embedder)
    assert (answer.status, answer.json) == (400, {"error": f'"{embedder}" does not support generate'})
    answer = server.post("/api/chat", {"model": embedder, **CHAT})
    assert (answer.status, answer.json) == (400, {"error": f'"{embedder}" does not support chat'})


@pytest.mark.needs("start")
def test_cloud_is_disabled(server):
    """With OLLAMA_NO_CLOUD a cloud model is refused, not looked for."""
    answer = server.generate("some:cloud", "x")
    assert answer.status == 403
    assert answer.json == {"error": "ollama cloud is disabled: remote model is unavailable"}


def test_raw_with_system(server, model):
    """A raw prompt excludes template, system and context."""
    answer = server.generate(model, "x", raw=True, system="y")
    assert (answer.status, answer.json) == (
        400,
        {"error": "raw mode does not support template, system, or context"},
    )


def test_unknown_role_and_fields(server, model):
    """Unknown roles and fields are accepted."""
    body = {
        "model": model,
        "messages": [{"role": "bogus", "content": "x"}],
        "surprise": 1,
        "stream": False,
        "options": {"num_predict": 2},
    }
    assert server.post("/api/chat", body).status == 200


@pytest.mark.parametrize("path", ["/api/generate", "/api/show"])
@pytest.mark.parametrize("name", ["a b", "a/b/c/d/e"])
@pytest.mark.needs("modern")
def test_name_that_is_none(server, path, name):
    """What can't be a model's name is refused as such."""
    answer = server.post(path, {"model": name})
    assert (answer.status, answer.json) == (400, {"error": "invalid model name"})


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"role": 1}, "ChatRequest.messages.role of type string"),
        ({"content": 3}, "ChatRequest.messages.content of type string"),
    ],
)
def test_message_of_wrong_type(server, model, message, text):
    """A message's fields are texts."""
    answer = server.post("/api/chat", {"model": model, "messages": [message]})
    assert answer.status == 400
    assert answer.json == {"error": f"json: cannot unmarshal number into Go struct field {text}"}


@pytest.mark.parametrize("content", [[{"type": "bogus"}], 3, None])
def test_v1_content_of_wrong_type(server, model, content):
    """OpenAI's content is a text or known parts; the middleware's complaint comes in UTF-8 JSON."""
    answer = server.post(
        "/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": content}]}
    )
    assert answer.status == 400
    assert answer.json["error"]["message"].startswith("invalid message ")
    assert answer.headers["content-type"] == "application/json; charset=utf-8"


def test_v1_error_of_the_handler(server, model):
    """What the model can't do is found out behind the middleware, and told as plain JSON with a newline."""
    body = {"model": model, "reasoning_effort": "high", **CHAT}
    answer = server.post("/v1/chat/completions", body)
    assert answer.status == 400
    assert answer.headers["content-type"] == "application/json"
    assert answer.body.endswith(b"\n")
    assert answer.json["error"]["message"] == f'"{model}" does not support thinking'


def test_strange_fields_are_ignored(server, model):
    """Fields of the wrong kind that OpenAI's dialect doesn't read are passed over."""
    body = {"model": model, "stop": 3, "user": 5, "max_tokens": 2, **CHAT}
    assert server.post("/v1/chat/completions", body).status == 200


@pytest.mark.parametrize("value", [-1, 21])
def test_top_logprobs(server, model, value):
    """top_logprobs has a range."""
    answer = server.generate(model, "x", top_logprobs=value)
    assert (answer.status, answer.json) == (400, {"error": "top_logprobs must be between 0 and 20"})


def test_images_are_base64(server, model):
    """An image that isn't base64 is refused."""
    answer = server.generate(model, "x", images=["?"])
    assert (answer.status, answer.json) == (400, {"error": "illegal base64 data at input byte 0"})
