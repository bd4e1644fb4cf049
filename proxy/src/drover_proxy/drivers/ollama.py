"""Ollama's control API, one client per instance: health, models, what is loaded, load, unload.

Nothing here is in the way of a client's request. Loads are detached: nobody's leaving aborts them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from drover_proxy.drivers.calls import Answer, CallError, address_of, call

PROBE_SECONDS = 2.0
PS_SECONDS = 3.0
"""/api/ps may hang 10 s behind a stuck runner; then the last list stays in force."""
SHOW_SECONDS = 20.0
CALL_SECONDS = 30.0


class OllamaError(Exception):
    """A control call failed; `status` is 0 when no answer came at all."""

    def __init__(self, message: str, *, status: int = 0, timed_out: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.timed_out = timed_out

    @property
    def refused(self) -> bool:
        """Whether nobody listens there."""
        return self.status == 0 and not self.timed_out


@dataclass(frozen=True, slots=True)
class LoadFault:
    """Why a load failed, in the core's words."""

    reason: str
    message: str
    retryable: bool


class OllamaClient:
    """The control side of one instance."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self._address = address_of(url)

    async def version(self) -> str:
        """Ask for the version: the proof that the instance answers, not merely that its port is bound."""
        return str((await self._json("GET", "/api/version", PROBE_SECONDS)).get("version", ""))

    async def tags(self) -> list[dict[str, Any]]:
        """List the models on disk."""
        return list((await self._json("GET", "/api/tags", CALL_SECONDS)).get("models") or [])

    async def show(self, model: str) -> dict[str, Any]:
        """Ask for everything about a model; verbose, since arrays are left out otherwise."""
        return await self._json("POST", "/api/show", SHOW_SECONDS, {"model": model, "verbose": True})

    async def ps(self) -> list[dict[str, Any]]:
        """List the runners that are ready."""
        return list((await self._json("GET", "/api/ps", PS_SECONDS)).get("models") or [])

    async def load(
        self, model: str, options: Mapping[str, int], *, embedding_only: bool, timeout_seconds: float
    ) -> None:
        """Load a model and keep it for ever; returns when its runner is ready."""
        body: dict[str, Any] = {"model": model, "keep_alive": -1}
        if options:
            body["options"] = dict(options)
        if embedding_only:
            await self._json("POST", "/api/embed", timeout_seconds, body)
            return
        await self._json("POST", "/api/generate", timeout_seconds, {**body, "stream": False})

    async def unload(self, model: str) -> None:
        """Ask for an unload; it answers at once, and the runner leaves later."""
        await self._json(
            "POST", "/api/generate", CALL_SECONDS, {"model": model, "keep_alive": 0, "stream": False}
        )

    async def create(self, body: Mapping[str, Any]) -> None:
        """Make a model from another."""
        await self._json("POST", "/api/create", CALL_SECONDS, {**body, "stream": False})

    async def delete(self, model: str) -> None:
        """Delete a model."""
        await self._json("DELETE", "/api/delete", CALL_SECONDS, {"model": model})

    async def raw(self, method: str, path: str) -> tuple[int, bytes, str]:
        """Return status, body and content type of a plain question."""
        answer = await self._send(method, path, CALL_SECONDS, None)
        return answer.status, answer.content, answer.content_type

    async def _json(
        self, method: str, path: str, timeout_seconds: float, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        answer = await self._send(method, path, timeout_seconds, body)
        try:
            value = msgspec.json.decode(answer.content) if answer.content else {}
        except msgspec.DecodeError as error:
            raise OllamaError(f"{self.name}: {path} answered no JSON", status=answer.status) from error
        if answer.status >= 400 or not isinstance(value, dict) or "error" in value:
            message = value.get("error") if isinstance(value, dict) else None
            text = str(message or f"status {answer.status}")
            raise OllamaError(text, status=max(answer.status, 400))
        return value

    async def _send(
        self, method: str, path: str, timeout_seconds: float, body: Mapping[str, Any] | None
    ) -> Answer:
        content = msgspec.json.encode(body) if body is not None else None
        limits = {"connect_seconds": PROBE_SECONDS, "answer_seconds": timeout_seconds}
        try:
            return await call(self._address, method, path, content, **limits)
        except asyncio.TimeoutError as error:
            message = f"{self.name} did not answer {path} within {timeout_seconds:g} s"
            raise OllamaError(message, timed_out=True) from error
        except CallError as error:
            raise OllamaError(f"{self.name} does not answer {path}: {error}") from error


MARKS = (
    ("out of memory", "out_of_memory", True),
    ("requires more system memory", "out_of_memory", True),
    ("unknown model architecture", "refused", False),
    ("must be of type", "refused", False),
)


def load_fault(error: OllamaError) -> LoadFault:
    """Sort a failed load: what it was, and whether trying again can help."""
    text = error.message.lower()
    if error.timed_out:
        return LoadFault("timeout", error.message, retryable=False)
    if error.status in {0, 503}:
        return LoadFault("unreachable" if error.status == 0 else "busy", error.message, retryable=True)
    if error.status in {400, 404}:
        return LoadFault("refused", error.message, retryable=False)
    for mark, reason, retryable in MARKS:
        if mark in text:
            return LoadFault(reason, error.message, retryable)
    return LoadFault("terminated", error.message, retryable=True)
