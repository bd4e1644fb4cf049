"""The HTTP routes of llama-server that Ollama uses, with made-up tokens and the faults a prompt asks for."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from typing import Any

from lab.ollama.config import Knobs
from lab.ollama.http import Answer, Request, dumps
from lab.ollama.inference import count_tokens, marks, pause
from lab.ollama.native import NO_EMBEDDINGS, messages_text, vector
from lab.standin.devices import say
from lab.standin.load import Loaded

_SSE = "text/event-stream"
_BATCH = 512  # prompt tokens after which a client that left is noticed


def _error(status: int, message: str, kind: str = "server_error") -> dict[str, Any]:
    return {"error": {"code": status, "message": message, "type": kind}}


class Routes:
    """One model's server."""

    def __init__(self, loaded: Loaded, knobs: Knobs, *, embedding: bool) -> None:
        self.loaded = loaded
        self.knobs = knobs
        self.embedding = embedding
        self.ready = False
        self._slots = asyncio.Semaphore(loaded.slots)

    async def handle(self, request: Request, answer: Answer) -> None:
        """Answer one request."""
        routes = {
            ("GET", "/health"): self._health,
            ("POST", "/completion"): self._completion,
            ("POST", "/v1/chat/completions"): self._chat,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/detokenize"): self._detokenize,
            ("POST", "/apply-template"): self._template,
            ("POST", "/v1/embeddings"): self._embed,
        }
        route = routes.get((request.method, request.path))
        if route is None:
            answer.json(404, _error(404, "File Not Found", "not_found_error"))
        elif not self.ready:
            answer.json(
                503, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}
            )
        else:
            raw = await request.body()
            await route(request, answer, json.loads(raw) if raw else {})

    async def _health(self, request: Request, answer: Answer, data: dict[str, Any]) -> None:
        del request, data
        answer.json(200, {"status": "ok"})

    async def _tokenize(self, request: Request, answer: Answer, data: dict[str, Any]) -> None:
        del request
        text = data.get("content", "")
        answer.json(200, {"tokens": list(range(1000, 1000 + count_tokens(text))) if text else []})

    async def _detokenize(self, request: Request, answer: Answer, data: dict[str, Any]) -> None:
        del request
        answer.json(200, {"content": " ".join(f"w{token}" for token in data.get("tokens", []))})

    async def _template(self, request: Request, answer: Answer, data: dict[str, Any]) -> None:
        del request
        answer.json(200, {"prompt": messages_text(data.get("messages", [])) + "<|assistant|>"})

    async def _embed(self, request: Request, answer: Answer, data: dict[str, Any]) -> None:
        if not self.embedding:
            answer.json(501, _error(501, NO_EMBEDDINGS, "not_supported_error"))
            return
        given = data.get("input", "")
        text = given if isinstance(given, str) else json.dumps(given)
        count = count_tokens(text)
        await pause(count / self.knobs.prompt_tokens_per_second, request.gone)
        values = vector(text, self.loaded.header.number("embedding_length", 8))
        entry = {"object": "embedding", "index": 0, "embedding": values}
        usage = {"prompt_tokens": count, "total_tokens": count}
        answer.json(200, {"object": "list", "model": self.loaded.name, "usage": usage, "data": [entry]})

    async def _completion(self, request: Request, answer: Answer, data: dict[str, Any]) -> None:
        prompt = data.get("prompt", "")
        if isinstance(prompt, dict):
            prompt = prompt.get("prompt_string", "")
        text, count = (prompt, count_tokens(prompt)) if isinstance(prompt, str) else ("", len(prompt))

        def piece(index: int, word: str) -> dict[str, Any]:
            return {"index": 0, "content": word, "tokens": [1000 + index], "stop": False, "id_slot": 0}

        def last(stopped: str, timings: dict[str, Any]) -> list[bytes]:
            done = {"index": 0, "content": "", "tokens": [], "stop": True, "stop_type": stopped,
                    "stopping_word": "", "timings": timings}  # fmt: skip
            return [_event(done)]

        await self._generate(request, answer, (data, text, count), piece, last)

    async def _chat(self, request: Request, answer: Answer, data: dict[str, Any]) -> None:
        text = messages_text(data.get("messages", []))

        def piece(index: int, word: str) -> dict[str, Any]:
            del index
            choice: dict[str, Any] = {"finish_reason": None, "index": 0, "delta": {"content": word}}
            return {"choices": [choice], "object": "chat.completion.chunk"}

        def last(stopped: str, timings: dict[str, Any]) -> list[bytes]:
            choice: dict[str, Any] = {
                "finish_reason": "length" if stopped == "limit" else "stop",
                "index": 0,
                "delta": {},
            }
            done = {"choices": [choice], "object": "chat.completion.chunk", "timings": timings}
            return [_event(done), b"data: [DONE]\n\n"]

        await self._generate(request, answer, (data, text, count_tokens(text)), piece, last)

    async def _generate(
        self, request: Request, answer: Answer, asked: tuple[dict[str, Any], str, int], piece: Any, last: Any
    ) -> None:
        data, text, count = asked
        wanted = marks(text)
        if status := int(wanted.get("error_status", 0)):
            answer.json(status, _error(status, wanted.get("error_text", "made-up failure")))
            return
        async with self._slots:
            began = time.monotonic()
            drag = 1 + self.loaded.cpu_part * (self.knobs.cpu_slowdown - 1)
            speed = float(wanted.get("prompt_rate", self.knobs.prompt_tokens_per_second)) / drag
            for first in range(0, count, _BATCH):
                await pause(min(_BATCH, count - first) / speed, request.gone)
            await asyncio.sleep(float(wanted.get("prompt_s", 0)))  # one batch, which nothing interrupts
            read = time.monotonic()
            limit = int(data.get("n_predict") or data.get("max_tokens") or -1)
            full = int(wanted.get("tokens", self.knobs.answer_tokens))
            tokens = full if limit < 0 else min(full, limit)
            answer.start(200, _SSE)
            rate = float(wanted.get("rate", self.knobs.tokens_per_second)) / drag
            for index in range(tokens):
                await self._fault(wanted, index, request)
                await pause(read + (index + 1) / rate - time.monotonic(), request.gone)
                await answer.chunk(_event(piece(index, wanted.get("text", f"tok{index} "))))
            ended = time.monotonic()
            timings = {"cache_n": 0, "prompt_n": count, "prompt_ms": (read - began) * 1e3,
                       "predicted_n": tokens, "predicted_ms": (ended - read) * 1e3}  # fmt: skip
            for event in last("limit" if tokens < full else "eos", timings):
                await answer.chunk(event)
            answer.end()

    async def _fault(self, wanted: dict[str, str], index: int, request: Request) -> None:
        if index == int(wanted.get("stall_after", -1)):
            await pause(float(wanted.get("stall_s", 1e6)), request.gone)
        if index != int(wanted.get("crash_after", -1)):
            return
        how = wanted.get("crash_how", "signal:9")
        if how == "close":
            request.connection.transport.abort()
        elif how == "oom":
            say("ggml_backend_cuda_buffer_type_alloc_buffer: allocating 9999.00 MiB on device 0: "
                "cudaMalloc failed: out of memory")  # fmt: skip
            say("CUDA error: out of memory")
            os.abort()
        else:
            os.kill(os.getpid(), int(how.partition(":")[2] or signal.SIGKILL))


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + dumps(data) + b"\n\n"
