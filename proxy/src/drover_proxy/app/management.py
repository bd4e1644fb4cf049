"""What changes the models on disk: only for keys with the admin scope, and never under a loaded runner.

Ollama deletes a model under its runner, which then holds its memory as a ghost that no name can unload. So
what is deleted, made anew or overwritten is first unloaded everywhere by the core, and kept so until the call
is over.
"""

from __future__ import annotations

from collections.abc import Hashable

from drover_proxy.app.call import Call
from drover_proxy.dialect.body import Asked, BodyProblem, read
from drover_proxy.dialect.names import CloudName, NameProblem, canonical
from drover_proxy.dialect.watches import StreamWatch

WITHDRAW_SECONDS = 120.0
REPLACING = {"/api/delete", "/api/create"}


def manage(call: Call) -> None:
    """Take a management call whose body is here."""
    asked = read(call.route, call.ex.body)
    call.asked = asked
    source = _source(asked)
    destination = _canonical(asked.other) if call.route.name == "/api/copy" and asked.other else ""
    for name in (asked.model, source, destination or None):
        if name is not None and not call.caller.may_use(call.parts.catalogue.target(name)):
            call.fail(403, "model_not_allowed", f"this key may not manage the model {name!r}")
            return
    call.parts.log.info("management", route=call.route.name, model=asked.model, key=call.caller.name)
    victim = ""
    if call.route.name in REPLACING:
        victim = asked.model
    elif destination:
        victim = destination
    if victim in call.parts.catalogue.models:
        call.later(_withdraw_first(call, asked, victim))
    else:
        _forward(call, asked, None)


def _source(asked: Asked) -> str | None:
    """Return what a model is made from, if that is another one; what runs in the cloud is refused."""
    if asked.text("remote_host"):  # a model of that host under a name of this one
        raise BodyProblem(403, "cloud_refused", "ollama cloud is disabled: remote model is unavailable")
    text = asked.text("from")
    try:
        return canonical(text) if text else None
    except CloudName as error:
        raise BodyProblem(403, "cloud_refused", str(error)) from error
    except NameProblem:
        return text  # Ollama knows more forms (a path, a repository), and says itself what is wrong


def _canonical(name: str) -> str:
    try:
        return canonical(name)
    except NameProblem as error:
        raise BodyProblem(400, "invalid_model_name", str(error)) from error


async def _withdraw_first(call: Call, asked: Asked, victim: str) -> None:
    runtime = call.parts.runtime
    if runtime.core is None:
        _forward(call, asked, None)
        return
    ticket, withdrawn = await runtime.withdraw(victim, WITHDRAW_SECONDS)
    if not withdrawn.ok:
        runtime.end_withdrawal(ticket)
        message = f"{victim} can't be unloaded, and nothing was changed: {withdrawn.message}"
        call.fail(409, "model_in_use", message)
    elif call.ex.over:
        runtime.end_withdrawal(ticket)
    else:
        _forward(call, asked, ticket)


def _forward(call: Call, asked: Asked, ticket: Hashable | None) -> None:
    instance = call.parts.any_up()
    if instance is None:
        if ticket is not None:
            call.parts.runtime.end_withdrawal(ticket)
        call.no_instance()
        return
    call.model = asked.model

    def look_again() -> None:
        call.parts.catalogue.doubt()
        call.parts.spawn(_after(call, ticket))

    call.on_finished = look_again
    shape = call.route.shape
    call.watch = StreamWatch(shape) if shape and asked.stream else None
    call.send(instance, body=asked.render(asked.model))


async def _after(call: Call, ticket: Hashable | None) -> None:
    await call.parts.catalogue.look_again()
    if ticket is not None:
        call.parts.runtime.end_withdrawal(ticket)


def blob(call: Call) -> None:
    """Pass a blob's upload, or the question whether it is there, to an instance."""
    instance = call.parts.any_up()
    if instance is None:
        call.no_instance()
        return
    call.send(instance)
