"""Answers in each dialect, streamed and whole, and how streams end."""

from __future__ import annotations

import pytest

LIMIT = {"num_predict": 5}
MESSAGES = [{"role": "user", "content": "say something"}]


def test_generate_stream(server, model):
    """A native stream is NDJSON, an object a token, and ends with done and its numbers."""
    answer = server.post("/api/generate", {"model": model, "prompt": "hello there", "options": LIMIT})
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.headers["transfer-encoding"] == "chunked"
    *pieces, last = answer.lines
    assert pieces
    assert all(set(piece) == {"model", "created_at", "response", "done"} for piece in pieces)
    assert not any(piece["done"] for piece in pieces)
    assert last["done"] is True
    assert last["done_reason"] in {"length", "stop"}
    assert last["response"] == ""
    assert last["eval_count"] <= 5
    assert {
        "context",
        "total_duration",
        "load_duration",
        "prompt_eval_count",
        "eval_count",
        "eval_duration",
    } <= set(last)
    assert last["total_duration"] > last["eval_duration"] > 0
    assert last["created_at"].endswith("Z")


def test_generate_whole(server, model):
    """Without streaming there is one object with everything."""
    answer = server.generate(model, "hello there", options=LIMIT)
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    found = answer.json
    assert found["done"] is True
    assert found["model"] == model
    assert found["response"]
    assert "content-length" in answer.headers or answer.headers["transfer-encoding"] == "chunked"


@pytest.mark.needs("markers")
def test_limit_is_told(server, model):
    """An answer cut by num_predict says so."""
    assert server.generate(model, "[[tokens=9]]", options={"num_predict": 3}).json["done_reason"] == "length"
    assert server.generate(model, "[[tokens=3]]", options={"num_predict": 9}).json["done_reason"] == "stop"


def test_raw_has_no_context(server, model):
    """A raw prompt is answered without the context array."""
    assert "context" not in server.generate(model, "hello", raw=True, options=LIMIT).json


def test_chat_stream(server, model):
    """A chat's pieces are messages of the assistant."""
    answer = server.post("/api/chat", {"model": model, "messages": MESSAGES, "options": LIMIT})
    assert answer.headers["content-type"] == "application/x-ndjson"
    *pieces, last = answer.lines
    assert all(piece["message"]["role"] == "assistant" for piece in pieces)
    assert last["done"] is True
    assert last["message"] == {"role": "assistant", "content": ""}
    assert "context" not in last


def test_chat_whole(server, model):
    """A whole chat answer is one message."""
    answer = server.post(
        "/api/chat", {"model": model, "messages": MESSAGES, "stream": False, "options": LIMIT}
    )
    message = answer.json["message"]
    assert message["role"] == "assistant"
    assert message["content"]
    assert answer.json["eval_count"] <= 5


def test_v1_chat_whole(server, model):
    """OpenAI's chat: one JSON body without charset, ended by a newline, with the count of tokens."""
    answer = server.post("/v1/chat/completions", {"model": model, "messages": MESSAGES, "max_tokens": 5})
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.body.endswith(b"\n")
    found = answer.json
    assert found["object"] == "chat.completion"
    assert found["id"].startswith("chatcmpl-")
    assert found["system_fingerprint"] == "fp_ollama"
    assert found["choices"][0]["message"]["role"] == "assistant"
    assert found["choices"][0]["finish_reason"] in {"length", "stop"}
    usage = found["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_v1_chat_stream(server, model):
    """OpenAI's stream: chunks with one id, a finish reason, usage when asked for, and [DONE]."""
    body = {
        "model": model,
        "messages": MESSAGES,
        "max_tokens": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    answer = server.post("/v1/chat/completions", body)
    assert answer.headers["content-type"] == "text/event-stream"
    *chunks, done = [data for _, data in answer.events]
    assert done == "[DONE]"
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] <= 5
    assert chunks[-2]["choices"][0]["finish_reason"] in {"length", "stop"}
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks[:-2])


@pytest.mark.needs("modern")
def test_v1_chat_stream_deltas(server, model):
    """The role stands in the first delta only, and the finishing one is empty."""
    body = {"model": model, "messages": MESSAGES, "max_tokens": 3, "stream": True}
    *chunks, _ = [data for _, data in server.post("/v1/chat/completions", body).events]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert set(deltas[0]) == {"role", "content"}
    assert all(set(delta) == {"content"} for delta in deltas[1:-1])
    assert deltas[-1] == {}


def test_v1_completions(server, model):
    """OpenAI's older completions, whole and streamed."""
    found = server.post("/v1/completions", {"model": model, "prompt": "hello", "max_tokens": 5}).json
    assert found["object"] == "text_completion"
    assert found["id"].startswith("cmpl-")
    assert found["choices"][0]["text"]
    body = {"model": model, "prompt": "hello", "max_tokens": 5, "stream": True}
    *chunks, done = [data for _, data in server.post("/v1/completions", body).events]
    assert done == "[DONE]"
    assert all(chunk["object"] == "text_completion" for chunk in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] in {"length", "stop"}


def test_v1_responses(server, model):
    """OpenAI's responses, whole and as numbered events."""
    found = server.post("/v1/responses", {"model": model, "input": "hello", "max_output_tokens": 5}).json
    assert found["object"] == "response"
    assert found["status"] == "completed"
    assert found["output"][0]["content"][0]["type"] == "output_text"
    body = {"model": model, "input": "hello", "max_output_tokens": 5, "stream": True}
    answer = server.post("/v1/responses", body)
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-cache"
    events = answer.events
    kinds = [kind for kind, _ in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))


def test_v1_messages(server, model):
    """Anthropic's messages, whole and as events; no [DONE]."""
    body = {"model": model, "max_tokens": 5, "messages": MESSAGES}
    found = server.post("/v1/messages", body).json
    assert found["type"] == "message"
    assert found["content"][0]["type"] == "text"
    assert found["stop_reason"] in {"end_turn", "max_tokens"}
    kinds = [kind for kind, _ in server.post("/v1/messages", {**body, "stream": True}).events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}


@pytest.mark.needs("markers")
def test_crash_in_native_stream(server, model):
    """A runner that dies in a stream: a clean 200 whose last line is an error."""
    answer = server.post("/api/generate", {"model": model, "prompt": "[[tokens=9 crash_after=3]]"})
    assert answer.status == 200
    *pieces, last = answer.lines
    assert len(pieces) == 3
    assert last == {"error": "an error was encountered while running the model: unexpected EOF"}
    assert server.generate(model, "[[tokens=2]]").status == 200


@pytest.mark.needs("markers")
def test_crash_in_native_whole(server, model):
    """Without streaming a dead runner is a 500."""
    answer = server.generate(model, "[[tokens=9 crash_after=3]]")
    assert answer.status == 500
    assert answer.json == {"error": "an error was encountered while running the model: unexpected EOF"}


@pytest.mark.needs("markers")
def test_crash_in_v1_stream(server, model):
    """OpenAI's stream of a dead runner tells no error: an empty chunk of a nameless model, and no [DONE]."""
    messages = [{"role": "user", "content": "[[tokens=9 crash_after=3]]"}]
    answer = server.post("/v1/chat/completions", {"model": model, "messages": messages, "stream": True})
    assert answer.status == 200
    chunks = [data for _, data in answer.events]
    assert "[DONE]" not in chunks
    assert chunks[-1]["model"] == ""
    assert chunks[-1]["choices"][0]["delta"].get("content") == ""
    assert chunks[-1]["choices"][0]["finish_reason"] is None


@pytest.mark.needs("markers")
@pytest.mark.parametrize(
    ("path", "end"), [("/v1/responses", "response.completed"), ("/v1/messages", "message_stop")]
)
def test_crash_in_stateless_stream(server, model, path, end):
    """The two newer dialects just stop."""
    messages = [{"role": "user", "content": "[[tokens=9 crash_after=3]]"}]
    body = {
        "model": model,
        "input": messages[0]["content"],
        "messages": messages,
        "max_tokens": 99,
        "stream": True,
    }
    answer = server.post(path, body)
    assert answer.status == 200
    kinds = [kind for kind, _ in answer.events]
    assert end not in kinds
    assert kinds[-1].endswith("delta")
    assert not any("error" in kind or "failed" in kind for kind in kinds)


@pytest.mark.needs("markers")
def test_crash_in_v1_whole(server, model):
    """Without streaming OpenAI's client gets a 500 with OpenAI's error object."""
    messages = [{"role": "user", "content": "[[tokens=9 crash_after=3]]"}]
    answer = server.post("/v1/chat/completions", {"model": model, "messages": messages})
    assert answer.status == 500
    assert answer.json["error"]["type"] == "api_error"
    assert "unexpected EOF" in answer.json["error"]["message"]


@pytest.mark.needs("markers")
@pytest.mark.parametrize("stream", [True, False])
def test_runner_refuses(server, model, stream):
    """The runner's own error keeps its status, and its raw JSON becomes the text."""
    body = {"model": model, "prompt": "[[error_status=503 error_text=busy]]", "stream": stream}
    answer = server.post("/api/generate", body)
    assert answer.status == 503
    text = answer.json["error"]
    assert text.startswith("{")
    assert "busy" in text
    if stream:
        assert answer.headers["content-type"] == "application/json"


@pytest.mark.needs("simulated")
def test_tool_calls(server, model):
    """A prompt may ask the simulation for a tool call; each dialect shows it in its own way."""
    properties = {"city": {"type": "string"}, "days": {"type": "integer"}}
    function = {"name": "weather", "parameters": {"type": "object", "properties": properties}}
    messages = [{"role": "user", "content": "[[tool=weather]]"}]
    body = {
        "model": model,
        "messages": messages,
        "tools": [{"type": "function", "function": function}],
        "stream": False,
    }
    call = server.post("/api/chat", body).json["message"]["tool_calls"][0]
    assert call["function"]["name"] == "weather"
    assert call["function"]["arguments"] == {"city": "a city", "days": 1}
    choice = server.post("/v1/chat/completions", body).json["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city":"a city","days":1}'
