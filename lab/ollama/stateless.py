"""OpenAI's /v1/responses and Anthropic's /v1/messages, in the form that Ollama offers: without state."""

from __future__ import annotations

import json
import random
import time
from typing import Any

from lab.ollama.body import Refused, decode, json_kind
from lab.ollama.compat import thinking
from lab.ollama.converse import Context
from lab.ollama.dialects import JSON, SSE, Chat, Dialect, openai_error, openai_tool_calls
from lab.ollama.http import Answer, Request, dumps
from lab.ollama.inference import Ask, Piece, Stats
from lab.ollama.native import chat_with, messages_text

_RESPONSES = {"model": "string", "stream": "bool", "instructions": "string", "max_output_tokens": "int"}
_MESSAGES = {"model": "string", "messages": "[]openai.Message", "stream": "bool", "max_tokens": "int"}
_NO_CACHE = (("Cache-Control", "no-cache"),)


def anthropic_error(status: int, message: str) -> dict[str, Any]:
    """The error object of /v1/messages."""
    kinds = {
        400: "invalid_request_error",
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        429: "rate_limit_error",
        503: "overloaded_error",
    }
    request_id = f"req_{random.getrandbits(96):024x}"
    error = {"type": kinds.get(status, "api_error"), "message": message}
    return {"type": "error", "error": error, "request_id": request_id}


def _event(data: dict[str, Any]) -> bytes:
    return f"event: {data['type']}\ndata: ".encode() + dumps(data) + b"\n\n"


class Responses(Dialect):
    """/v1/responses."""

    stream_type = SSE
    whole_type = JSON
    whole_end = b"\n"
    stream_headers = _NO_CACHE

    def __init__(self, ask: Ask, request: dict[str, Any]) -> None:
        super().__init__(ask)
        self.request = request
        number = random.randrange(1_000_000)
        self.id, self.item = f"resp_{number}", f"msg_{number}"
        self.created = int(time.time())
        self.pieces: list[Piece] = []

    def error(self, status: int, message: str) -> tuple[bytes, str]:
        """Body and content type of an error before the answer's first byte."""
        return dumps(openai_error(status, message)) + b"\n", JSON

    def _emit(self, kind: str, **fields: Any) -> bytes:
        data = {**fields, "sequence_number": self.count, "type": kind}
        self.count += 1
        return _event(dict(sorted(data.items())))

    def _response(self, status: str, output: list[dict[str, Any]], stats: Stats | None) -> dict[str, Any]:
        usage = None
        if stats is not None:
            usage = {
                "input_tokens": stats.prompt_tokens,
                "output_tokens": stats.tokens,
                "total_tokens": stats.prompt_tokens + stats.tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens_details": {"reasoning_tokens": 0},
            }
        given = self.request
        found = {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "incomplete_details": None,
            "model": self.ask.model,
            "previous_response_id": given.get("previous_response_id"),
            "instructions": given.get("instructions"),
            "output": output,
            "error": None,
            "tools": given.get("tools") or [],
            "tool_choice": given.get("tool_choice") or "auto",
            "truncation": given.get("truncation") or "disabled",
            "parallel_tool_calls": True,
            "text": {"format": {"type": "text"}},
            "top_p": given.get("top_p", 1),
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "top_logprobs": 0,
            "temperature": given.get("temperature", 1),
            "reasoning": None,
            "usage": usage,
            "max_output_tokens": given.get("max_output_tokens"),
            "max_tool_calls": None,
            "store": False,
            "background": False,
            "service_tier": "default",
            "metadata": {},
            "safety_identifier": None,
            "prompt_cache_key": None,
        }
        return dict(sorted(found.items())) if status == "in_progress" else found

    def _output(self, pieces: list[Piece]) -> list[dict[str, Any]]:
        text = "".join(piece.text for piece in pieces)
        calls = openai_tool_calls([call for piece in pieces for call in piece.tool_calls])
        found: list[dict[str, Any]] = [
            {
                "id": f"fc_{call['id']}",
                "type": "function_call",
                "status": "completed",
                "call_id": call["id"],
                "name": call["function"]["name"],
                "arguments": call["function"]["arguments"],
            }
            for call in calls
        ]
        return found or [self._message("completed", text)]

    def _message(self, status: str, text: str | None) -> dict[str, Any]:
        content = [] if text is None else [self._part(text)]
        found = {
            "id": self.item,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }
        return dict(sorted(found.items())) if status == "in_progress" else found

    @staticmethod
    def _part(text: str) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def opening(self) -> bytes:
        """What a stream begins with."""
        begun = self._response("in_progress", [], None)
        where = {"item_id": self.item, "output_index": 0, "content_index": 0}
        return (
            self._emit("response.created", response=begun)
            + self._emit("response.in_progress", response=begun)
            + self._emit(
                "response.output_item.added", output_index=0, item=self._message("in_progress", None)
            )
            + self._emit("response.content_part.added", **where, part=dict(sorted(self._part("").items())))
        )

    def piece(self, piece: Piece) -> bytes:
        """A piece in a stream."""
        self.pieces.append(piece)
        where = {"item_id": self.item, "output_index": 0, "content_index": 0}
        return self._emit("response.output_text.delta", **where, delta=piece.text, logprobs=[])

    def last(self, stats: Stats) -> bytes:
        """The end of a whole stream."""
        text = "".join(piece.text for piece in self.pieces)
        where = {"item_id": self.item, "output_index": 0, "content_index": 0}
        output = self._output(self.pieces)
        return (
            self._emit("response.output_text.done", **where, text=text, logprobs=[])
            + self._emit("response.content_part.done", **where, part=self._part(text))
            + self._emit("response.output_item.done", output_index=0, item=self._message("completed", text))
            + self._emit("response.completed", response=self._response("completed", output, stats))
        )

    def broken(self, message: str) -> bytes:
        """What a stream ends with when the runner broke."""
        del message  # the stream just ends
        return b""

    def whole(self, pieces: list[Piece], stats: Stats) -> dict[str, Any]:
        """The answer as one object."""
        return self._response("completed", self._output(pieces), stats)

    def loaded(self, reason: str) -> dict[str, Any]:
        """The answer to a request that only loads or unloads."""
        return self.whole([], Stats(reason, 0, 0, 0, 0, 0, 0))


class Messages(Dialect):
    """/v1/messages."""

    stream_type = SSE
    whole_type = JSON
    whole_end = b"\n"
    stream_headers = _NO_CACHE

    def __init__(self, ask: Ask) -> None:
        super().__init__(ask)
        self.id = f"msg_{random.getrandbits(96):024x}"
        self.called = False
        self.open = ""

    def error(self, status: int, message: str) -> tuple[bytes, str]:
        """Body and content type of an error before the answer's first byte."""
        return dumps(anthropic_error(status, message)) + b"\n", JSON

    def _message(
        self, content: list[dict[str, Any]], reason: str | None, tokens: tuple[int, int]
    ) -> dict[str, Any]:
        found: dict[str, Any] = {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.ask.model,
            "content": content,
        }
        if reason:
            found["stop_reason"] = reason
        return found | {"usage": {"input_tokens": tokens[0], "output_tokens": tokens[1]}}

    def opening(self) -> bytes:
        """What a stream begins with."""
        guess = max(1, len(self.ask.prompt) // 4)
        return _event({"type": "message_start", "message": self._message([], None, (guess, 0))})

    def _block(self, kind: str, start: dict[str, Any]) -> bytes:
        if self.open == kind:
            return b""
        out = self._stop()
        self.open = kind
        return out + _event({"type": "content_block_start", "index": self.count, "content_block": start})

    def _stop(self) -> bytes:
        if not self.open:
            return b""
        self.open = ""
        self.count += 1
        return _event({"type": "content_block_stop", "index": self.count - 1})

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event({"type": "content_block_delta", "index": self.count, "delta": delta})

    def piece(self, piece: Piece) -> bytes:
        """A piece in a stream."""
        out = b""
        if piece.thinking:
            out += self._block("thinking", {"type": "thinking", "thinking": ""})
            out += self._delta({"type": "thinking_delta", "thinking": piece.thinking})
        if piece.text:
            out += self._block("text", {"type": "text", "text": ""})
            out += self._delta({"type": "text_delta", "text": piece.text})
        for call in piece.tool_calls:
            self.called = True
            function = call["function"]
            start = {"type": "tool_use", "id": call["id"], "name": function["name"], "input": {}}
            out += self._block(f"tool {call['id']}", start)
            arguments = json.dumps(function["arguments"], separators=(",", ":"))
            out += self._delta({"type": "input_json_delta", "partial_json": arguments})
        return out

    def _reason(self, stats: Stats) -> str:
        return "tool_use" if self.called else "max_tokens" if stats.done_reason == "length" else "end_turn"

    def last(self, stats: Stats) -> bytes:
        """The end of a whole stream."""
        usage = {"input_tokens": stats.prompt_tokens, "output_tokens": stats.tokens}
        delta = {"stop_reason": self._reason(stats)}
        out = self._stop() + _event({"type": "message_delta", "delta": delta, "usage": usage})
        return out + _event({"type": "message_stop"})

    def broken(self, message: str) -> bytes:
        """What a stream ends with when the runner broke."""
        del message  # the stream just ends
        return b""

    def whole(self, pieces: list[Piece], stats: Stats) -> dict[str, Any]:
        """The answer as one object."""
        message = Chat.message(pieces)
        content: list[dict[str, Any]] = []
        if "thinking" in message:
            content.append({"type": "thinking", "thinking": message["thinking"]})
        if message["content"]:
            content.append({"type": "text", "text": message["content"]})
        for call in message.get("tool_calls", []):
            self.called = True
            function = call["function"]
            content.append(
                {
                    "type": "tool_use",
                    "id": call["id"],
                    "name": function["name"],
                    "input": function["arguments"],
                }
            )
        return self._message(content, self._reason(stats), (stats.prompt_tokens, stats.tokens))

    def loaded(self, reason: str) -> dict[str, Any]:
        """The answer to a request that only loads or unloads."""
        return self.whole([], Stats(reason, 0, 0, 0, 0, 0, 0))


def _functions(tools: list[dict[str, Any]], parameters: str) -> list[dict[str, Any]]:
    """Tools of either dialect as Ollama's."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.get("name", ""),
                "description": tool.get("description", ""),
                "parameters": tool.get(parameters) or {},
            },
        }
        for tool in tools
        if isinstance(tool, dict) and tool.get("name")
    ]


def _input_text(given: object) -> str:
    """The prompt in a responses request: a string, or items with content."""
    if given is None or isinstance(given, str):
        return given or ""
    if not isinstance(given, list):
        raise Refused(
            400,
            "input must be a string or array: json: cannot unmarshal "
            f"{json_kind(given)} into Go value of type []json.RawMessage",
        )
    return messages_text([item for item in given if isinstance(item, dict)])


async def responses(context: Context, request: Request, answer: Answer) -> None:
    """POST /v1/responses."""
    request.in_handler = False
    data = decode(await request.body(), "openai.ResponsesRequest", _RESPONSES, empty="EOF")
    name = data.get("model") or ""
    options: dict[str, Any] = {}
    if data.get("max_output_tokens") is not None:
        options["num_predict"] = data["max_output_tokens"]
    prompt = _input_text(data.get("input"))
    ask = Ask(
        name,
        prompt,
        options,
        stream=bool(data.get("stream")),
        tools=_functions(data.get("tools") or [], "parameters"),
    )
    missing = (404, f"model '{name}' not found") if name else (400, "model is required")
    ask.empty = not prompt
    effort = thinking(data)
    request.in_handler = True
    await chat_with(context, request, answer, (ask, missing, effort, Responses(ask, data)))


async def messages(context: Context, request: Request, answer: Answer) -> None:
    """POST /v1/messages."""
    request.in_handler = False
    data = decode(await request.body(), "anthropic.MessagesRequest", _MESSAGES, empty="EOF")
    name = data.get("model") or ""
    if not name:
        raise Refused(400, "model is required")
    if int(data.get("max_tokens") or 0) <= 0:
        raise Refused(400, "max_tokens is required and must be positive")
    if not data.get("messages"):
        raise Refused(400, "messages is required")
    think: object = None
    if isinstance(data.get("thinking"), dict):
        think = data["thinking"].get("type") == "enabled" or None
    ask = Ask(
        name,
        messages_text(data["messages"]),
        {"num_predict": int(data["max_tokens"])},
        stream=bool(data.get("stream")),
        tools=_functions(data.get("tools") or [], "input_schema"),
    )
    request.in_handler = True
    await chat_with(context, request, answer, (ask, (404, f"model '{name}' not found"), think, Messages(ask)))
