"""Ollama's own routes for inference: generate, chat, embed and the older embeddings."""

from __future__ import annotations

import base64
import hashlib
import math
import time
from typing import Any

from lab.ollama.body import CHAT, EMBED, EMBEDDING, GENERATE, Refused, decode, json_kind
from lab.ollama.converse import Context, acquire, check_capabilities, converse
from lab.ollama.dialects import Chat, Dialect, Generate
from lab.ollama.gotext import keep_alive_seconds, quoted
from lab.ollama.http import Answer, Request
from lab.ollama.inference import Ask, count_tokens, marks, pause, take_slot
from lab.ollama.process import Runner
from lab.ollama.store import Stored

NO_EMBEDDINGS = "This server does not support embeddings. Start it with `--embeddings`"
_THINK_LEVELS = ("low", "medium", "high", "max")
_THINK_VALUES = '"high", "medium", "low", "max", true, or false'


def keep_alive_of(data: dict[str, Any]) -> float | None:
    """The request's keep_alive; a bad one is answered 400."""
    try:
        return keep_alive_seconds(data.get("keep_alive"))
    except ValueError as error:
        raise Refused(400, str(error)) from error


def think_of(data: dict[str, Any]) -> object:
    """The request's `think`: a boolean or a level."""
    think = data.get("think")
    if isinstance(think, str) and think not in _THINK_LEVELS:
        raise Refused(
            400,
            f"invalid think value: {quoted(think)} (must be {_THINK_VALUES})",
        )
    if think is not None and not isinstance(think, bool | str):
        raise Refused(400, f"think must be a boolean or string ({_THINK_VALUES})")
    return think


def _check_message(message: object) -> None:
    """Refuse a message that isn't an object, or whose role is no text."""
    if not isinstance(message, dict):
        kind = json_kind(message)
        where = "ChatRequest.messages of type api.Alias"
        raise Refused(400, f"json: cannot unmarshal {kind} into Go struct field {where}")
    for field, allowed in (("role", str), ("content", str | list)):
        value = message.get(field)
        if value is not None and not isinstance(value, allowed):
            kind = json_kind(value)
            where = f"ChatRequest.messages.{field} of type string"
            raise Refused(400, f"json: cannot unmarshal {kind} into Go struct field {where}")


def messages_text(messages: list[Any]) -> str:
    """All that the messages say, as one prompt."""
    parts = []
    for message in messages:
        _check_message(message)
        content = message.get("content") or ""
        if isinstance(content, list):
            content = " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        parts.append(f"<|{message.get('role', '')}|> {content}")
    return "\n".join(parts)


def _format_problem(data: dict[str, Any]) -> str:
    """What is wrong with the wanted format; the original finds it out behind its stream."""
    form = data.get("format")
    if isinstance(form, dict) or form in {None, "", "json"}:
        return ""
    return f'invalid format: {quoted(str(form))}; expected "json" or a valid JSON Schema object'


def _check_range(data: dict[str, Any]) -> None:
    if not 0 <= (data.get("top_logprobs") or 0) <= 20:
        raise Refused(400, "top_logprobs must be between 0 and 20")


def _check_images(data: dict[str, Any]) -> None:
    try:
        for image in data.get("images") or []:
            base64.b64decode(str(image), validate=True)
    except ValueError:
        raise Refused(400, "illegal base64 data at input byte 0") from None


async def generate(context: Context, request: Request, answer: Answer) -> None:
    """POST /api/generate."""
    data = decode(await request.body(), "api.GenerateRequest", GENERATE)
    _check_range(data)
    _check_images(data)
    name = data.get("model") or ""
    ask = Ask(
        model=name,
        prompt=data.get("prompt") or "",
        options=data.get("options") or {},
        stream=data.get("stream") is not False,
        keep_alive_seconds=keep_alive_of(data),
        raw=bool(data.get("raw")),
    )
    think = think_of(data)
    model = context.find(name, (404, f"model '{name}' not found"))
    dialect = Generate(ask)
    if not ask.prompt and ask.keep_alive_seconds == 0:
        context.scheduler.unload(model)
        answer.json(200, dialect.loaded("unload"))
        return
    if ask.raw and (data.get("template") or data.get("system") or data.get("context")):
        raise Refused(400, "raw mode does not support template, system, or context")
    template = data.get("template") or ""
    if template.count("{{") != template.count("}}"):
        raise Refused(500, "template: :1: unclosed action")
    check_capabilities(model, ask, "generate", ["insert"] if data.get("suffix") else [], think)
    ask.empty = not ask.prompt
    ask.problem = _format_problem(data)
    await converse(context, request, answer, model, ask, dialect, data.get("shift"))


async def chat(context: Context, request: Request, answer: Answer) -> None:
    """POST /api/chat."""
    data = decode(await request.body(), "api.ChatRequest", CHAT)
    name = data.get("model") or ""
    messages = data.get("messages") or []
    ask = Ask(
        model=name,
        prompt=messages_text(messages),
        options=data.get("options") or {},
        stream=data.get("stream") is not False,
        keep_alive_seconds=keep_alive_of(data),
        tools=data.get("tools") or [],
        empty=not messages,
        problem=_format_problem(data),
    )
    _check_range(data)
    missing = (404, f"model '{name}' not found") if name else (400, "model is required")
    think = think_of(data)
    await chat_with(context, request, answer, (ask, missing, think, Chat(ask)), data.get("shift"))


async def chat_with(
    context: Context,
    request: Request,
    answer: Answer,
    what: tuple[Ask, tuple[int, str], object, Dialect],
    shift: object = None,
) -> None:
    """The part of a chat that all dialects share."""
    ask, missing, think, dialect = what
    model = context.find(ask.model, missing)
    if ask.empty and ask.keep_alive_seconds == 0:
        context.scheduler.unload(model)
        answer.json(200, dialect.loaded("unload"))
        return
    check_capabilities(model, ask, "chat", ["tools"] if ask.tools else [], think)
    await converse(context, request, answer, model, ask, dialect, shift)


def vector(text: str, size: int) -> list[float]:
    """A direction that belongs to a text: the same every time, of length one."""
    values: list[float] = []
    block = 0
    while len(values) < size:
        raw = hashlib.sha256(f"{block}:{text}".encode()).digest()
        values += [byte / 127.5 - 1 for byte in raw]
        block += 1
    values = values[:size]
    norm = math.sqrt(sum(value * value for value in values)) or 1.0
    return [round(value / norm, 8) for value in values]


def inputs_of(data: dict[str, Any]) -> list[str]:
    """The texts to embed."""
    given = data.get("input")
    if given is None or given == "":
        return []
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and all(isinstance(item, str) for item in given):
        return given
    raise Refused(400, "invalid input type")


async def _embed_one(
    context: Context, request: Request, runner: Runner, model: Stored, text: str
) -> list[float]:
    wanted = marks(text)
    if "embedding" not in model.capabilities:
        raise Refused(501, NO_EMBEDDINGS)
    await take_slot(runner, request.gone)
    try:
        rate = context.knobs.prompt_tokens_per_second / (1 + runner.cpu_part * 19)
        await pause(count_tokens(text) / rate + float(wanted.get("prompt_s", 0)), request.gone)
    finally:
        runner.slots.release()
    return vector(text, model.header.number("embedding_length", 8))


async def embed_vectors(
    context: Context, request: Request, ask: Ask, texts: list[str], dimensions: int
) -> tuple[list[list[float]], int, float, float]:
    """Embeddings of some texts, their number of tokens, and the seconds for all and for the load."""
    began = time.monotonic()
    missing = (
        f"model {quoted(ask.model)} not found, try pulling it first" if ask.model else "model '' not found"
    )
    model = context.find(ask.model, (404, missing))
    runner = await acquire(context, request, model, ask)
    loaded = time.monotonic()
    try:
        found = []
        for text in texts:
            values = await _embed_one(context, request, runner, model, text)
            if 0 < dimensions < len(values):
                norm = math.sqrt(sum(value * value for value in values[:dimensions])) or 1.0
                values = [value / norm for value in values[:dimensions]]
            found.append(values)
    finally:
        context.scheduler.done(runner)
    return found, sum(map(count_tokens, texts)), time.monotonic() - began, loaded - began


async def embed(context: Context, request: Request, answer: Answer) -> None:
    """POST /api/embed."""
    data = decode(await request.body(), "api.EmbedRequest", EMBED)
    ask = Ask(data.get("model") or "", "", data.get("options") or {}, keep_alive_seconds=keep_alive_of(data))
    texts = inputs_of(data)
    vectors, tokens, seconds, load = await embed_vectors(
        context, request, ask, texts, int(data.get("dimensions") or 0)
    )
    found: dict[str, Any] = {"model": ask.model, "embeddings": vectors}
    if texts:
        found |= {
            "total_duration": int(seconds * 1e9),
            "load_duration": int(load * 1e9),
            "prompt_eval_count": tokens,
        }
    answer.json(200, found)


async def embeddings(context: Context, request: Request, answer: Answer) -> None:
    """POST /api/embeddings, the older form."""
    data = decode(await request.body(), "api.EmbeddingRequest", EMBEDDING)
    name = data.get("model") or ""
    if not name:
        raise Refused(400, "model is required")
    context.find(name, (404, f"model {quoted(name)} not found, try pulling it first"))
    ask = Ask(name, "", data.get("options") or {}, keep_alive_seconds=keep_alive_of(data))
    prompt = data.get("prompt") or ""
    try:
        vectors, _, _, _ = await embed_vectors(context, request, ask, [prompt] if prompt else [], 0)
    except Refused as error:
        raise Refused(500 if error.status == 501 else error.status, str(error)) from error
    answer.json(200, {"embedding": vectors[0] if vectors else []})
