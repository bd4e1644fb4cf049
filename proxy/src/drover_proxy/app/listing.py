"""Questions about models: lists over all instances, cut down to what the caller's key may use."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from drover_proxy.app.call import Call
from drover_proxy.app.inference import not_found
from drover_proxy.app.variants import is_variant
from drover_proxy.dialect.body import BodyProblem, read
from drover_proxy.dialect.names import NameProblem, canonical
from drover_proxy.dialect.routes import Dialect
from drover_proxy.drivers.ollama import OllamaError


def info(call: Call) -> None:
    """Forward a question that any instance can answer."""
    instance = call.parts.any_up()
    if instance is None:
        call.no_instance()
        return
    call.send(instance)


def models(call: Call) -> None:
    """Answer /api/tags and /v1/models."""
    if call.caller.sees_all and not call.parts.catalogue.hidden:
        info(call)
    else:
        call.later(_filtered(call))


async def _filtered(call: Call) -> None:
    instance = call.parts.any_up()
    if instance is None:
        call.no_instance()
        return
    try:
        status, body, _ = await instance.client.raw("GET", call.ex.path.decode())
        listing: dict[str, Any] = msgspec.json.decode(body)
    except (OllamaError, msgspec.DecodeError):
        call.no_instance()
        return
    key, name = ("data", "id") if call.route.dialect is Dialect.OPENAI else ("models", "name")
    if status == 200:
        listing[key] = [item for item in listing.get(key) or [] if _may_see(call, str(item.get(name)))]
    call.answer(msgspec.json.encode(listing))


def _may_see(call: Call, name: str) -> bool:
    try:
        shown = canonical(name)
        return call.caller.may_use(call.parts.catalogue.shown(shown)) and not is_variant(shown)
    except NameProblem:
        return False


def running(call: Call) -> None:
    """Answer /api/ps for all instances together."""
    call.later(_running(call))


async def _running(call: Call) -> None:
    up = list(call.parts.up())
    if not up:
        call.no_instance()
        return
    # Who is slow (a stuck runner holds /api/ps for 10 s) is answered for with what was seen last.
    await asyncio.gather(*(instance.observe() for instance in up))
    entries = [entry for instance in up for entry in instance.listed]
    entries = [entry for entry in entries if _may_see(call, str(entry.get("name")))]
    entries.sort(key=lambda entry: str(entry.get("expires_at", "")), reverse=True)
    call.answer(msgspec.json.encode({"models": entries}))


def show(call: Call) -> None:
    """Answer /api/show."""
    asked = read(call.route, call.ex.body)
    call.asked = asked
    if not call.caller.may_use(call.parts.catalogue.target(asked.model)):
        call.fail(403, "model_not_allowed", f"this key may not use the model {asked.name!r}")
    elif call.parts.catalogue.dirty or call.parts.catalogue.resolve(asked.model) is None:
        call.later(_show_after_miss(call))
    else:
        _forward_show(call)


async def _show_after_miss(call: Call) -> None:
    assert call.asked is not None
    await call.parts.catalogue.look_again()
    if call.parts.catalogue.resolve(call.asked.model) is None:
        not_found(call, call.asked.name)
    else:
        _forward_show(call)


def _forward_show(call: Call) -> None:
    asked, instance = call.asked, call.parts.any_up()
    assert asked is not None
    if instance is None:
        call.no_instance()
        return
    call.model = call.parts.catalogue.target(asked.model)
    call.send(instance, body=asked.render(call.model))


def one_model(call: Call) -> None:
    """Answer /v1/models/NAME."""
    try:
        name = canonical(call.argument)
    except NameProblem as error:
        raise BodyProblem(404, "model_not_found", str(error)) from error
    target = call.parts.catalogue.resolve(name)
    instance = call.parts.any_up()
    if instance is None:
        call.no_instance()
    elif target is None or not call.caller.may_use(target):
        call.fail(404, "model_not_found", f"model '{call.argument}' not found")
    else:
        call.model = target
        spelt = call.parts.catalogue.models[target].name
        call.send(instance, target=f"/v1/models/{spelt}".encode())
