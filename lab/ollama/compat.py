"""OpenAI's routes under /v1: models, chat/completions, completions, embeddings."""

from __future__ import annotations

import base64
import struct
from typing import Any

from lab.ollama import names
from lab.ollama.body import V1_CHAT, V1_COMPLETION, V1_EMBED, Refused, decode
from lab.ollama.converse import Context, check_capabilities, converse
from lab.ollama.dialects import JSON, OpenAiChat, OpenAiCompletion
from lab.ollama.gotext import quoted
from lab.ollama.http import Answer, Request
from lab.ollama.inference import Ask
from lab.ollama.native import chat_with, embed_vectors, inputs_of, messages_text

_EFFORTS: dict[str, object] = {
    "": None, "none": False, "minimal": "low", "low": "low", "medium": "medium", "high": "high", "max": "max",
    "xhigh": "max", "ultra": "max",
}  # fmt: skip


def sampling(data: dict[str, Any]) -> dict[str, Any]:
    """The options of the dialect under Ollama's names; unset ones get OpenAI's defaults."""
    options: dict[str, Any] = {"temperature": data.get("temperature", 1.0), "top_p": data.get("top_p", 1.0)}
    if data.get("max_tokens") is not None:
        options["num_predict"] = data["max_tokens"]
    for name in ("seed", "frequency_penalty", "presence_penalty"):
        if data.get(name) is not None:
            options[name] = data[name]
    stop = data.get("stop")
    if stop is not None:
        options["stop"] = (
            [stop]
            if isinstance(stop, str)
            else [item for item in stop if isinstance(item, str)]
            if isinstance(stop, list)
            else []
        )
    return options


def thinking(data: dict[str, Any]) -> object:
    """`reasoning_effort` as Ollama's `think`."""
    effort = data.get("reasoning_effort") or (data.get("reasoning") or {}).get("effort") or ""
    if effort not in _EFFORTS:
        raise Refused(
            400,
            f'invalid reasoning value: {quoted(str(effort))} (must be "minimal", "low", "medium", "high", '
            '"xhigh", "ultra", "max", or "none")',
        )
    return _EFFORTS[effort]


def wants_usage(data: dict[str, Any]) -> bool:
    """Whether a stream ends with an account of tokens."""
    return bool((data.get("stream_options") or {}).get("include_usage"))


async def chat_completions(context: Context, request: Request, answer: Answer) -> None:
    """POST /v1/chat/completions."""
    request.in_handler = False
    data = decode(await request.body(), "openai.ChatCompletionRequest", V1_CHAT, empty="EOF")
    messages = data.get("messages") or []
    if not messages:
        raise Refused(400, "[] is too short - 'messages'")
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else 0
        for part in content if isinstance(content, list) else ():
            if not isinstance(part, dict) or part.get("type") not in {"text", "image_url", "input_audio"}:
                raise Refused(400, "invalid message format")
        if not isinstance(content, str | list) and not (content is None and message.get("tool_calls")):
            kind = {type(None): "<nil>", dict: "map[string]interface {}"}.get(type(content), "float64")
            raise Refused(400, f"invalid message content type: {kind}")
    name = data.get("model") or ""
    ask = Ask(
        model=name,
        prompt=messages_text(messages),
        options=sampling(data),
        stream=bool(data.get("stream")),
        tools=data.get("tools") or [],
    )
    dialect = OpenAiChat(ask, include_usage=wants_usage(data))
    missing = (404, f"model '{name}' not found") if name else (400, "model is required")
    effort = thinking(data)
    request.in_handler = True
    await chat_with(context, request, answer, (ask, missing, effort, dialect))


async def completions(context: Context, request: Request, answer: Answer) -> None:
    """POST /v1/completions."""
    request.in_handler = False
    data = decode(await request.body(), "openai.CompletionRequest", V1_COMPLETION, empty="EOF")
    name = data.get("model") or ""
    ask = Ask(name, data.get("prompt") or "", sampling(data), stream=bool(data.get("stream")))
    request.in_handler = True
    model = context.find(name, (404, f"model '{name}' not found"))
    dialect = OpenAiCompletion(ask, include_usage=wants_usage(data))
    check_capabilities(model, ask, "generate", ["insert"] if data.get("suffix") else [], None)
    ask.empty = not ask.prompt
    await converse(context, request, answer, model, ask, dialect)


async def embeddings(context: Context, request: Request, answer: Answer) -> None:
    """POST /v1/embeddings."""
    request.in_handler = False
    data = decode(await request.body(), "openai.EmbedRequest", V1_EMBED, empty="EOF")
    form = str(data.get("encoding_format") or "float").lower()
    if form not in {"float", "base64"}:
        raise Refused(400, f"Invalid value for 'encoding_format' = {data.get('encoding_format')}. "
                           "Supported values: ['float', 'base64'].")  # fmt: skip
    given = data.get("input")
    if given is None or given == []:
        raise Refused(400, "invalid input")
    request.in_handler = True
    texts = [""] if given == "" else inputs_of(data)
    ask = Ask(data.get("model") or "", "", {})
    vectors, tokens, _, _ = await embed_vectors(
        context, request, ask, texts, int(data.get("dimensions") or 0)
    )
    entries = [
        {
            "object": "embedding",
            "embedding": base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
            if form == "base64"
            else values,
            "index": index,
        }
        for index, values in enumerate(vectors)
    ]
    count = {"prompt_tokens": tokens, "total_tokens": tokens}
    found = {"object": "list", "data": entries, "model": ask.model, "usage": count}
    answer.json(200, found, JSON, b"\n")


async def models(context: Context, request: Request, answer: Answer) -> None:
    """GET /v1/models."""
    del request
    stored = [context.store.load(name) for name in context.store.names()]
    stored.sort(key=lambda model: -int(model.modified_at))
    entries = [
        {
            "id": m.name.shortest,
            "object": "model",
            "created": int(m.modified_at),
            "owned_by": m.name.namespace,
        }
        for m in stored
    ]
    answer.json(200, {"object": "list", "data": entries or None}, JSON, b"\n")


async def model(context: Context, request: Request, answer: Answer) -> None:
    """GET /v1/models/NAME."""
    text = request.parameters["model"]
    name = names.parse(text)
    shown = name.shortest if name else text
    found = context.find(text, (404, f"model '{shown}' not found"))
    owner = name.namespace if name else "library"
    entry = {"id": text, "object": "model", "created": int(found.modified_at), "owned_by": owner}
    answer.json(200, entry, JSON, b"\n")
