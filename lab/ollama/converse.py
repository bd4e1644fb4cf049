"""From a request to its answer: find the model, get a runner, stream in the caller's dialect."""

from __future__ import annotations

import time
from typing import Any

from lab.ollama import names
from lab.ollama.body import Refused, check_options
from lab.ollama.config import Knobs, Settings
from lab.ollama.dialects import Dialect
from lab.ollama.gotext import quoted
from lab.ollama.http import Answer, Gone, Request
from lab.ollama.inference import Ask, Generation, Piece, RunnerFailedError
from lab.ollama.process import LoadError, Runner, Wanted
from lab.ollama.scheduler import Scheduler
from lab.ollama.store import MissingError, Store, Stored


class Context:
    """What every handler needs."""

    def __init__(self, settings: Settings, knobs: Knobs, version: str) -> None:
        self.settings = settings
        self.knobs = knobs
        self.version = version
        self.store = Store(settings.models)
        self.scheduler = Scheduler(settings, knobs)

    def find(self, text: str, missing: tuple[int, str], cloud: str = "remote model is unavailable") -> Stored:
        """A model by the name in a request; `missing` is what to answer when there is none."""
        name = names.parse(text)
        if name is None:
            raise Refused(400, "invalid model name") if text else Refused(*missing)
        if name.is_cloud:
            raise Refused(403, f"ollama cloud is disabled: {cloud}")
        try:
            return self.store.load(name)
        except MissingError:
            raise Refused(*missing) from None


def wanted_of(options: dict[str, Any], shift: object) -> Wanted:
    """The part of the options that the runner is started with."""
    return Wanted(
        num_ctx=options.get("num_ctx"),
        num_batch=options.get("num_batch"),
        num_gpu=options.get("num_gpu", -1),
        main_gpu=options.get("main_gpu"),
        use_mmap=options.get("use_mmap"),
        num_thread=options.get("num_thread", 0),
        shift=shift is not False,
    )


async def acquire(
    context: Context, request: Request, model: Stored, ask: Ask, shift: object = None
) -> Runner:
    """A runner for a request, with the model's parameters under the request's own."""
    ask.options = check_options({**model.parameters, **ask.options})
    wanted = wanted_of(ask.options, shift)
    try:
        return await context.scheduler.acquire(model, wanted, ask.keep_alive_seconds, request.gone)
    except LoadError as error:
        raise Refused(error.status, str(error)) from error


def check_capabilities(model: Stored, ask: Ask, verb: str, needed: list[str], think: object) -> None:
    """Refuse what the model can't do, with the original's words."""
    can = model.capabilities
    if "thinking" in can:
        ask.think = think is not False
    elif think:
        raise Refused(400, f"{quoted(ask.model)} does not support thinking")
    if "completion" not in can:
        raise Refused(400, f"{quoted(ask.model)} does not support {verb}")
    if lacking := [capability for capability in needed if capability not in can]:
        raise Refused(400, f"{model.name.full} does not support {', '.join(lacking)}")


async def converse(
    context: Context,
    request: Request,
    answer: Answer,
    model: Stored,
    ask: Ask,
    dialect: Dialect,
    shift: object = None,
) -> None:
    """Answer a request; the runner is given back however it ends."""
    began = time.monotonic()
    runner = await acquire(context, request, model, ask, shift)
    try:
        if ask.empty:
            answer.json(200, dialect.loaded("load"), dialect.whole_type, dialect.whole_end)
            return
        generation = Generation(context.scheduler, context.knobs, runner, ask, began)
        if ask.stream:
            await _stream(request, answer, generation, dialect)
        else:
            await _whole(request, answer, generation, dialect)
    finally:
        context.scheduler.done(runner)


async def _stream(request: Request, answer: Answer, generation: Generation, dialect: Dialect) -> None:
    started = False
    try:
        async for piece in generation.pieces(request.gone):
            opening = b"" if started else dialect.opening()
            if not started:
                _start(answer, dialect)
                started = True
            await answer.chunk(opening + dialect.piece(piece))
    except (RunnerFailedError, Refused) as error:
        if started:
            if tail := dialect.broken(str(error)):
                await answer.chunk(tail)
            answer.end()
            return
        status = error.status if isinstance(error, Refused) else 500
        body, kind = dialect.error(status, str(error))
        answer.start(status, kind.partition(";")[0])
        await answer.chunk(body)
        answer.end()
        return
    if not started:
        _start(answer, dialect)
        if opening := dialect.opening():
            await answer.chunk(opening)
    assert generation.stats is not None
    await answer.chunk(dialect.last(generation.stats))
    answer.end()


def _start(answer: Answer, dialect: Dialect) -> None:
    answer.extra += dialect.stream_headers
    answer.start(200, dialect.stream_type)


async def _whole(request: Request, answer: Answer, generation: Generation, dialect: Dialect) -> None:
    pieces: list[Piece] = []
    try:
        async for piece in generation.pieces(request.gone):
            pieces.append(piece)  # noqa: PERF401 - an async comprehension would lose the pieces on an error
    except RunnerFailedError as error:
        raise Refused(500, str(error)) from error
    except Gone:
        answer.status = 500  # what the original's access log says
        raise
    assert generation.stats is not None
    answer.json(200, dialect.whole(pieces, generation.stats), dialect.whole_type, dialect.whole_end)
