"""How one answer looks in each of the dialects: Ollama's own two, and OpenAI's two older ones."""

from __future__ import annotations

import json
import random
import time
from abc import ABC, abstractmethod
from typing import Any

from lab.ollama.gotext import timestamp
from lab.ollama.http import JSON_UTF8, dumps
from lab.ollama.inference import Ask, Piece, Stats

NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
JSON = "application/json"


def openai_error(status: int, message: str) -> dict[str, Any]:
    """The error object of /v1."""
    kind = {400: "invalid_request_error", 404: "not_found_error"}.get(status, "api_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


class Dialect(ABC):
    """Turns pieces and statistics into bytes; one object per answer."""

    stream_type = NDJSON
    whole_type = JSON_UTF8
    whole_end = b""
    stream_headers: tuple[tuple[str, str], ...] = ()

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.count = 0

    def error(self, status: int, message: str) -> tuple[bytes, str]:
        """Body and content type of an error before the answer's first byte."""
        del status
        return dumps({"error": message}), JSON_UTF8

    def opening(self) -> bytes:
        """What a stream begins with, before the first piece."""
        return b""

    @abstractmethod
    def piece(self, piece: Piece) -> bytes:
        """A piece in a stream."""

    @abstractmethod
    def last(self, stats: Stats) -> bytes:
        """The end of a whole stream."""

    @abstractmethod
    def broken(self, message: str) -> bytes:
        """What a stream ends with when the runner broke."""

    @abstractmethod
    def whole(self, pieces: list[Piece], stats: Stats) -> dict[str, Any]:
        """The answer as one object."""

    @abstractmethod
    def loaded(self, reason: str) -> dict[str, Any]:
        """The answer to a request that only loads or unloads."""


def _numbers(stats: Stats) -> dict[str, Any]:
    found = {
        "total_duration": int(stats.total_seconds * 1e9),
        "load_duration": int(stats.load_seconds * 1e9),
        "prompt_eval_count": stats.prompt_tokens,
        "prompt_eval_duration": int(stats.prompt_seconds * 1e9),
        "eval_count": stats.tokens,
        "eval_duration": int(stats.token_seconds * 1e9),
    }
    return {key: value for key, value in found.items() if value}


class Generate(Dialect):
    """/api/generate."""

    def _object(self, response: str, done: bool) -> dict[str, Any]:
        return {
            "model": self.ask.model,
            "created_at": timestamp(time.time()),
            "response": response,
            "done": done,
        }

    def piece(self, piece: Piece) -> bytes:
        """A piece in a stream."""
        found = self._object(piece.text, done=False)
        if piece.thinking:
            found = self._with_thinking(found, piece.thinking)
        return dumps(found) + b"\n"

    @staticmethod
    def _with_thinking(found: dict[str, Any], thinking: str) -> dict[str, Any]:
        done = found.pop("done")
        return {**found, "thinking": thinking, "done": done}

    def _context(self, stats: Stats) -> dict[str, Any]:
        return (
            {} if self.ask.raw else {"context": list(range(1000, 1000 + stats.prompt_tokens + stats.tokens))}
        )

    def last(self, stats: Stats) -> bytes:
        """The end of a whole stream."""
        found = self._object("", done=True) | {"done_reason": stats.done_reason}
        return dumps(found | self._context(stats) | _numbers(stats)) + b"\n"

    def broken(self, message: str) -> bytes:
        """What a stream ends with when the runner broke."""
        return dumps({"error": message}) + b"\n"

    def whole(self, pieces: list[Piece], stats: Stats) -> dict[str, Any]:
        """The answer as one object."""
        found = self._object("".join(piece.text for piece in pieces), done=True)
        if thinking := "".join(piece.thinking for piece in pieces):
            found = self._with_thinking(found, thinking)
        return found | {"done_reason": stats.done_reason} | self._context(stats) | _numbers(stats)

    def loaded(self, reason: str) -> dict[str, Any]:
        """The answer to a request that only loads or unloads."""
        return self._object("", done=True) | {"done_reason": reason}


class Chat(Dialect):
    """/api/chat."""

    def _object(self, message: dict[str, Any], done: bool) -> dict[str, Any]:
        return {
            "model": self.ask.model,
            "created_at": timestamp(time.time()),
            "message": message,
            "done": done,
        }

    @staticmethod
    def message(pieces: list[Piece]) -> dict[str, Any]:
        """The message that some pieces make."""
        found: dict[str, Any] = {"role": "assistant", "content": "".join(piece.text for piece in pieces)}
        if thinking := "".join(piece.thinking for piece in pieces):
            found["thinking"] = thinking
        if calls := [call for piece in pieces for call in piece.tool_calls]:
            found["tool_calls"] = calls
        return found

    def piece(self, piece: Piece) -> bytes:
        """A piece in a stream."""
        return dumps(self._object(self.message([piece]), done=False)) + b"\n"

    def last(self, stats: Stats) -> bytes:
        """The end of a whole stream."""
        found = self._object(self.message([]), done=True) | {"done_reason": stats.done_reason}
        return dumps(found | _numbers(stats)) + b"\n"

    def broken(self, message: str) -> bytes:
        """What a stream ends with when the runner broke."""
        return dumps({"error": message}) + b"\n"

    def whole(self, pieces: list[Piece], stats: Stats) -> dict[str, Any]:
        """The answer as one object."""
        found = self._object(self.message(pieces), done=True)
        return found | {"done_reason": stats.done_reason} | _numbers(stats)

    def loaded(self, reason: str) -> dict[str, Any]:
        """The answer to a request that only loads or unloads."""
        return self._object(self.message([]), done=True) | {"done_reason": reason}


def openai_tool_calls(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tool calls with their arguments as text."""
    return [
        {
            "id": call["id"],
            "index": call["function"]["index"],
            "type": "function",
            "function": {
                "name": call["function"]["name"],
                "arguments": json.dumps(call["function"]["arguments"], separators=(",", ":")),
            },
        }
        for call in calls
    ]


def usage(stats: Stats) -> dict[str, int]:
    """OpenAI's account of tokens."""
    return {
        "prompt_tokens": stats.prompt_tokens,
        "completion_tokens": stats.tokens,
        "total_tokens": stats.prompt_tokens + stats.tokens,
    }


class OpenAi(Dialect):
    """What /v1/chat/completions and /v1/completions have in common."""

    stream_type = SSE
    whole_type = JSON
    whole_end = b"\n"
    kind = ""
    prefix = ""

    def __init__(self, ask: Ask, *, include_usage: bool) -> None:
        super().__init__(ask)
        self.include_usage = include_usage
        self.id = f"{self.prefix}-{random.randrange(1000)}"
        self.created = int(time.time())
        self.called = False

    def error(self, status: int, message: str) -> tuple[bytes, str]:
        """Body and content type of an error before the answer's first byte."""
        return dumps(openai_error(status, message)) + b"\n", JSON

    def _chunk(self, choices: list[dict[str, Any]], model: str | None = None, **more: Any) -> bytes:
        begin = {"id": self.id, "object": self.kind, "created": self.created}
        named = {"model": self.ask.model if model is None else model, "system_fingerprint": "fp_ollama"}
        if self.kind == "text_completion":
            found = {**begin, "choices": choices, **named}
        else:
            found = {**begin, **named, "choices": choices}
        return b"data: " + dumps(found | more) + b"\n\n"

    def loaded(self, reason: str) -> dict[str, Any]:
        """The answer to a request that only loads or unloads."""
        return self.whole([], Stats(reason, 0, 0, 0, 0, 0, 0))


class OpenAiChat(OpenAi):
    """/v1/chat/completions."""

    kind = "chat.completion.chunk"
    prefix = "chatcmpl"

    def _delta(self, piece: Piece) -> dict[str, Any]:
        delta: dict[str, Any] = {} if self.count else {"role": "assistant"}
        self.count += 1
        delta["content"] = piece.text
        if piece.thinking:
            delta["reasoning"] = piece.thinking
        if piece.tool_calls:
            delta["tool_calls"] = openai_tool_calls(piece.tool_calls)
            self.called = True
        return delta

    def piece(self, piece: Piece) -> bytes:
        """A piece in a stream."""
        return self._chunk([{"index": 0, "delta": self._delta(piece), "finish_reason": None}])

    def last(self, stats: Stats) -> bytes:
        """The end of a whole stream."""
        out = b"" if self.count else self.piece(Piece())
        reason = "tool_calls" if self.called and stats.done_reason == "stop" else stats.done_reason
        out += self._chunk([{"index": 0, "delta": {}, "finish_reason": reason}])
        if self.include_usage:
            out += self._chunk([], usage=usage(stats))
        return out + b"data: [DONE]\n\n"

    def broken(self, message: str) -> bytes:
        """What a stream ends with when the runner broke."""
        del message  # the original loses it: what comes is an empty piece of a nameless model, and no [DONE]
        return self._chunk([{"index": 0, "delta": {"content": ""}, "finish_reason": None}], model="")

    def whole(self, pieces: list[Piece], stats: Stats) -> dict[str, Any]:
        """The answer as one object."""
        message = Chat.message(pieces)
        calls = message.pop("tool_calls", [])
        if thinking := message.pop("thinking", ""):
            message["reasoning"] = thinking
        if calls:
            message["tool_calls"] = openai_tool_calls(calls)
        reason = "tool_calls" if calls and stats.done_reason == "stop" else stats.done_reason
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.ask.model,
            "system_fingerprint": "fp_ollama",
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": usage(stats),
        }


class OpenAiCompletion(OpenAi):
    """/v1/completions."""

    kind = "text_completion"
    prefix = "cmpl"

    def piece(self, piece: Piece) -> bytes:
        """A piece in a stream."""
        more: dict[str, Any] = {"usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}}
        choice = {"text": piece.text, "index": 0, "finish_reason": None}
        return self._chunk([choice], **(more if self.include_usage else {}))

    def last(self, stats: Stats) -> bytes:
        """The end of a whole stream."""
        more: dict[str, Any] = {"usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}}
        choice = {"text": "", "index": 0, "finish_reason": stats.done_reason}
        out = self._chunk([choice], **(more if self.include_usage else {}))
        if self.include_usage:
            out += self._chunk([], usage=usage(stats))
        return out + b"data: [DONE]\n\n"

    def broken(self, message: str) -> bytes:
        """What a stream ends with when the runner broke."""
        del message
        return self._chunk([{"text": "", "index": 0, "finish_reason": None}], model="")

    def whole(self, pieces: list[Piece], stats: Stats) -> dict[str, Any]:
        """The answer as one object."""
        text = "".join(piece.text for piece in pieces)
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.ask.model,
            "system_fingerprint": "fp_ollama",
            "choices": [{"text": text, "index": 0, "finish_reason": stats.done_reason}],
            "usage": usage(stats),
        }
