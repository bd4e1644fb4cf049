"""Requests that need a runner: read, checked, queued by the core, forwarded when the runner is ready."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from drover_proxy.app.call import Call
from drover_proxy.core.commands import Forward, Reject
from drover_proxy.core.events import Needs, RequestArrived
from drover_proxy.dialect import encoding, form
from drover_proxy.dialect.body import Asked, read
from drover_proxy.dialect.watches import StreamWatch
from drover_proxy.drivers.ollama import OllamaError

if TYPE_CHECKING:
    from drover_proxy.app.catalogue import Model
    from drover_proxy.app.instance import Instance


def infer(call: Call) -> None:
    """Take an inference request whose body is here."""
    if call.packed:
        call.later(_unpack(call))
    else:
        _take(call, _read(call, call.ex.body))


def _read(call: Call, body: bytes) -> Asked:
    if call.route.form:
        return form.read(body, call.ex.header(b"content-type"))
    return read(call.route, body)


async def _unpack(call: Call) -> None:
    """Read a compressed body, whose unpacking mustn't hold up the streams of others."""
    plain = await asyncio.to_thread(encoding.decode, call.ex.body)
    if not call.ex.over:
        _take(call, _read(call, plain))


def _take(call: Call, asked: Asked) -> None:
    call.asked = asked
    catalogue = call.parts.catalogue
    target = catalogue.target(asked.model)
    if not call.caller.may_use(target):
        call.fail(403, "model_not_allowed", f"this key may not use the model {asked.name!r}")
    elif target not in catalogue.models or catalogue.dirty:
        call.later(_after_miss(call, asked))
    else:
        _admit(call, asked, target)


async def _after_miss(call: Call, asked: Asked) -> None:
    catalogue = call.parts.catalogue
    await catalogue.look_again()
    target = catalogue.resolve(asked.model)
    if target is not None:
        _admit(call, asked, target)
    else:
        not_found(call, asked.name)


def not_found(call: Call, name: str) -> None:
    """Answer for a model that isn't there, in Ollama's words; or that nobody could say whether it is."""
    if call.parts.catalogue.read_at is None:
        call.no_instance()
        return
    asked = call.asked
    if asked is not None and call.parts.catalogue.target(asked.model) in call.parts.catalogue.remote:
        call.fail(403, "cloud_refused", "ollama cloud is disabled: remote model is unavailable")
        return
    call.fail(404, "model_not_found", f"model '{name}' not found")


def _admit(call: Call, asked: Asked, target: str) -> None:
    route = call.route
    call.model = target
    info = call.parts.catalogue.models[target].info
    needs = route.needs or Needs.GENERATE
    if asked.unload:
        _answer_unload(call, asked)
        return
    if needs is Needs.GENERATE and not info.generates:
        call.fail(400, "model_cannot_generate", f'"{asked.name}" does not support generate')
        return
    if needs is Needs.EMBED and info.capabilities and "embedding" not in info.capabilities:
        # Ollama would load it first and then answer 501.
        call.fail(400, "model_cannot_embed", f'"{asked.name}" does not support embeddings')
        return
    call.queued = True
    arrived = RequestArrived(call.ex.id, target, needs, call.caller.name)
    call.parts.runtime.arrive(arrived, Queued(call))


class Queued:
    """What the runtime tells a waiting call."""

    __slots__ = ("_call",)

    def __init__(self, call: Call) -> None:
        self._call = call

    def forward(self, command: Forward) -> None:
        """Send the request to its runner."""
        call = self._call
        parts = call.parts
        instance = call.instance = parts.instances[command.instance]
        call.forwarded = call.ex.follows = True
        call.queue_seconds = command.waited_seconds
        call.load_seconds = command.load_seconds
        parts.metrics.queue_wait.observe(command.waited_seconds)
        options = command.options
        if not options or call.route.native:
            self._send(call.model, options if call.route.native else None)
            return
        context = options["num_ctx"]
        entry = parts.catalogue.models.get(call.model)
        if entry is None:
            call.fail(404, "model_not_found", f"model '{call.model}' not found")
            return
        variant = parts.catalogue.variants.ready(call.model, entry.digest, context)
        if variant is not None:
            self._send(variant, None)
        else:
            call.later(self._send_as_variant(instance, entry, context))

    async def _send_as_variant(self, instance: Instance, entry: Model, context: int) -> None:
        call = self._call
        try:
            variant = await call.parts.catalogue.variants.make(instance.client, call.model, entry, context)
        except OllamaError as error:
            message = (
                f"{call.model} could not be given its context of {context} for {call.route.name}: {error}"
            )
            call.fail(502, "variant_failed", message, retry_after=5)
            return
        call.parts.log.info("variant_made", model=call.model, variant=variant, context=context)
        call.parts.catalogue.hidden.append(variant)
        self._send(variant, None)

    def _send(self, model: str, options: Mapping[str, int] | None) -> None:
        call = self._call
        asked, instance = call.asked, call.instance
        assert asked is not None
        assert instance is not None
        body, fields = asked.render(model, options), None
        if call.packed:
            changed = body is not asked.source
            body, fields = encoding.outgoing(call.ex.headers, call.ex.body, body, changed=changed)
        shape = call.route.shape
        call.watch = StreamWatch(shape) if asked.stream and shape else None
        call.send(instance, body=body, fields=fields)

    def reject(self, command: Reject) -> None:
        """Answer with the core's error."""
        call = self._call
        call.queued = False
        call.fail(command.status, command.code, command.message, retry_after=command.retry_after_seconds)


def _answer_unload(call: Call, asked: Asked) -> None:
    """Answer an unload as Ollama does, without unloading: what is in memory is not one client's to decide."""
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e9):09d}Z"
    answer: dict[str, object] = {"model": asked.name, "created_at": stamp}
    if call.route.prompt_key == "messages":
        answer["message"] = {"role": "assistant", "content": ""}
    else:
        answer["response"] = ""
    answer |= {"done": True, "done_reason": "unload"}
    call.answer(msgspec.json.encode(answer))
