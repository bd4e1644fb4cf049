"""A generation: a runner's slot, tokens at a set speed, and the faults that a prompt asks for.

A marker in the prompt controls one request: `[[tokens=50 rate=20 crash_after=5 stall_after=3 error=text]]`.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from lab.ollama import log
from lab.ollama.body import Refused
from lab.ollama.config import Knobs
from lab.ollama.http import Gone
from lab.ollama.process import Runner
from lab.ollama.scheduler import Scheduler

_MARK = re.compile(r"\[\[([^\]]*)\]\]")
_WORDS = re.compile(r"\S+")
ENDED = "an error was encountered while running the model: unexpected EOF"
OUT_OF_MEMORY = (
    "an error was encountered while running the model: cudaMalloc failed: out of memory\n"
    "CUDA error: out of memory"
)
HUNG_CHECK_SECONDS = 0.05
_TEXT = [
    "This",
    "is",
    "a",
    "simulated",
    "answer",
    ":",
    "the",
    "weights",
    "are",
    "zeros",
    "and",
    "the",
    "words",
    "come",
    "from",
    "a",
    "list",
    ",",
    "one",
    "after",
    "the",
    "other",
    ",",
    "at",
    "the",
    "speed",
    "that",
    "the",
    "simulation",
    "was",
    "given",
    ".",
]


class RunnerFailedError(Exception):
    """The runner broke while it worked; the text is what a native stream ends with."""


@dataclass
class Ask:
    """What one request wants from the model."""

    model: str
    prompt: str
    options: dict[str, Any]
    stream: bool = True
    keep_alive_seconds: float | None = None
    tools: list[dict[str, Any]] = field(default_factory=list)
    think: bool = False
    empty: bool = False  # nothing to answer: only load
    raw: bool = False
    problem: str = ""  # found out only when the answer begins


@dataclass
class Piece:
    """A token of the answer, or tool calls."""

    text: str = ""
    thinking: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Stats:
    """What the last object of an answer tells."""

    done_reason: str
    total_seconds: float
    load_seconds: float
    prompt_tokens: int
    prompt_seconds: float
    tokens: int
    token_seconds: float


def marks(text: str) -> dict[str, str]:
    """The settings in all markers of a prompt."""
    found: dict[str, str] = {}
    for mark in _MARK.findall(text):
        for pair in mark.split():
            key, _, value = pair.partition("=")
            found[key] = value or "1"
    return found


def count_tokens(text: str) -> int:
    """A simulated tokenizer: one token a word."""
    return max(1, len(_WORDS.findall(text)))


async def pause(seconds: float, gone: asyncio.Event) -> None:
    """Wait, but not longer than the client does."""
    if seconds <= 0:
        return
    if seconds < 0.01:
        await asyncio.sleep(seconds)
    else:
        try:
            await asyncio.wait_for(gone.wait(), seconds)
        except asyncio.TimeoutError:
            return
    if gone.is_set():
        raise Gone


async def take_slot(runner: Runner, gone: asyncio.Event) -> None:
    """Wait for one of the runner's slots; who leaves meanwhile never reaches the runner."""
    if not runner.slots.locked():
        await runner.slots.acquire()
        return
    loop = asyncio.get_running_loop()
    slot, left = loop.create_task(runner.slots.acquire()), loop.create_task(gone.wait())
    await asyncio.wait({slot, left}, return_when=asyncio.FIRST_COMPLETED)
    left.cancel()
    if gone.is_set():
        if slot.done():
            runner.slots.release()
        slot.cancel()
        log.info(
            "aborting completion request due to client closing the connection", source="llama_server.go:1890"
        )
        raise Gone


class Generation:
    """One answer being made."""

    def __init__(self, scheduler: Scheduler, knobs: Knobs, runner: Runner, ask: Ask, began: float) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.ask = ask
        self.began = began
        self.load_seconds = time.monotonic() - began
        self.marks = marks(ask.prompt)
        self.rate = float(self.marks.get("rate", knobs.tokens_per_second))
        self.prompt_rate = float(self.marks.get("prompt_rate", knobs.prompt_tokens_per_second))
        drag = 1 + runner.cpu_part * (knobs.cpu_slowdown - 1)
        self.rate /= drag
        self.prompt_rate /= drag
        self.answer_tokens = int(self.marks.get("tokens", knobs.answer_tokens))
        self.prompt_tokens = count_tokens(ask.prompt)
        if self.prompt_tokens > runner.options.num_ctx:
            self.prompt_tokens = runner.options.num_ctx // 2  # the middle is dropped, silently
        self.stats: Stats | None = None

    def _tool_call(self) -> list[dict[str, Any]]:
        wanted = self.marks.get("tool")
        if not self.ask.tools or not wanted:
            return []
        functions = [tool.get("function", {}) for tool in self.ask.tools]
        chosen = next((f for f in functions if f.get("name") == wanted), functions[0])
        properties = (chosen.get("parameters") or {}).get("properties") or {}
        arguments = {
            name: {"integer": 1, "number": 1.5, "boolean": True, "array": [], "object": {}}.get(
                about.get("type") if isinstance(about.get("type"), str) else "", f"a {name}"
            )
            for name, about in properties.items()
        }
        call = {"index": 0, "name": chosen.get("name", ""), "arguments": arguments}
        return [{"id": f"call_{int(time.time() * 1e6) % 10**8:08d}", "function": call}]

    async def _fail_here(self, index: int, gone: asyncio.Event) -> None:
        """The faults that the prompt asked for at this token, and those that befell the runner."""
        if index == int(self.marks.get("crash_after", -1)):
            how = self.marks.get("crash_how", "signal:9")
            if how == "close":
                raise RunnerFailedError(
                    "error reading llama-server response: read tcp 127.0.0.1:45408->127.0.0.1:34615: "
                    "read: connection reset by peer"
                )
            self.runner.process.kill()
            await self.runner.process.wait()
            if how == "oom":
                self.scheduler.expire_all()
                raise RunnerFailedError(OUT_OF_MEMORY)
        if index == int(self.marks.get("stall_after", -1)):
            await pause(float(self.marks.get("stall_s", 1e6)), gone)
        if self.runner.process.returncode is not None:
            raise RunnerFailedError(ENDED)

    async def _not_hung(self, gone: asyncio.Event) -> None:
        while (state := self.runner.state()) == "T":
            await pause(HUNG_CHECK_SECONDS, gone)
        if not state:
            raise RunnerFailedError(ENDED)

    async def pieces(self, gone: asyncio.Event) -> AsyncIterator[Piece]:
        """The answer, token by token; `stats` is set when it is whole."""
        await take_slot(self.runner, gone)
        try:
            async for piece in self._inside(gone):
                yield piece
        finally:
            self.runner.slots.release()

    async def _inside(self, gone: asyncio.Event) -> AsyncIterator[Piece]:
        if self.ask.problem:
            raise Refused(500, self.ask.problem)
        if status := int(self.marks.get("error_status", 500 if "error" in self.marks else 0)):
            text = self.marks.get("error_text", self.marks.get("error", "made-up failure")).replace("_", " ")
            error = {"error": {"code": status, "message": text, "type": "server_error"}}
            raise Refused(status, json.dumps(error, separators=(",", ":")))
        started = time.monotonic()
        seconds = self.prompt_tokens / self.prompt_rate + float(self.marks.get("prompt_s", 0))
        await pause(seconds, gone)
        await self._not_hung(gone)
        limit = int(self.ask.options.get("num_predict", -1))
        limit = 10 * self.runner.options.num_ctx if limit < 0 else limit
        calls = self._tool_call()
        wanted = 1 if calls else min(self.answer_tokens, limit)
        first = time.monotonic()
        checked = first
        thoughts = 3 if self.ask.think and not calls else 0
        for index in range(wanted):
            await self._fail_here(index, gone)
            due = first + (index + 1) / self.rate
            await pause(due - time.monotonic(), gone)
            if time.monotonic() - checked > HUNG_CHECK_SECONDS:
                await self._not_hung(gone)
                checked = time.monotonic()
            if calls:
                yield Piece(tool_calls=calls)
            elif index < thoughts:
                yield Piece(thinking="Hmm. ")
            else:
                yield Piece(text=self.marks.get("text", _TEXT[(index - thoughts) % len(_TEXT)]) + " ")
        await self._fail_here(wanted, gone)
        ended = time.monotonic()
        self.stats = Stats(
            done_reason="length" if not calls and wanted < self.answer_tokens else "stop",
            total_seconds=ended - self.began,
            load_seconds=self.load_seconds,
            prompt_tokens=self.prompt_tokens,
            prompt_seconds=first - started,
            tokens=wanted,
            token_seconds=ended - first,
        )
