"""Warming up: models are asked for through the scheduler like any request, and let go when ready."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import TYPE_CHECKING

import msgspec

from drover_proxy.core.commands import Forward, Reject
from drover_proxy.core.events import Needs, RequestArrived, RequestCancelled, RequestFinished
from drover_proxy.dialect.names import NameProblem, canonical

if TYPE_CHECKING:
    from drover_proxy.app.parts import Parts

_numbers = itertools.count(1)


class Wanted(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a warm-up."""

    models: list[str]


class Warmed(msgspec.Struct, omit_defaults=True):
    """What became of one model."""

    model: str
    ok: bool
    seconds: float
    instance: str = ""
    code: str = ""
    message: str = ""


class _Waiter:
    """Waits for one model's runner."""

    def __init__(self) -> None:
        self.done: asyncio.Future[Forward | Reject] = asyncio.get_running_loop().create_future()

    def forward(self, command: Forward) -> None:
        """Note that the runner is ready."""
        if not self.done.done():
            self.done.set_result(command)

    def reject(self, command: Reject) -> None:
        """Note why it won't be."""
        if not self.done.done():
            self.done.set_result(command)


async def warm(parts: Parts, models: list[str]) -> list[Warmed]:
    """Load models one after the other, so that they don't push one another out half-way."""
    return [await _warm_one(parts, model) for model in models]


async def _warm_one(parts: Parts, model: str) -> Warmed:
    began_at = time.monotonic()

    def failed(code: str, message: str) -> Warmed:
        return Warmed(model, ok=False, seconds=_since(began_at), code=code, message=message)

    try:
        name = canonical(model)
    except NameProblem as error:
        return failed("invalid_model_name", str(error))
    if parts.catalogue.resolve(name) is None:
        await parts.catalogue.look_again()
    target = parts.catalogue.resolve(name)
    if target is None:
        if parts.catalogue.read_at is None:
            return failed("no_instance", "no Ollama instance of this host answers yet")
        return failed("model_not_found", f"model '{model}' not found")
    needs = Needs.EMBED if parts.catalogue.models[target].info.embedding_only else Needs.GENERATE
    request = f"warm-{next(_numbers)}"
    waiter = _Waiter()
    parts.runtime.arrive(RequestArrived(request, target, needs, "warm-up"), waiter)
    try:
        command = await waiter.done
    except asyncio.CancelledError:
        parts.runtime.forget(request)
        parts.runtime.post(RequestCancelled(request))
        raise
    parts.runtime.forget(request)
    if isinstance(command, Reject):
        return failed(command.code, command.message)
    parts.runtime.post(RequestFinished(request))
    return Warmed(model, ok=True, seconds=_since(began_at), instance=command.instance)


def _since(began_at: float) -> float:
    return round(time.monotonic() - began_at, 3)
