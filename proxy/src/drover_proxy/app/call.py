"""One request as the proxy sees it, from its head to its end."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from drover_proxy.dialect.body import Asked, BodyProblem
from drover_proxy.dialect.errors import Headers, error_body, error_headers
from drover_proxy.dialect.routes import Route
from drover_proxy.dialect.watches import StreamWatch
from drover_proxy.guard.keys import Caller
from drover_proxy.wire import Exchange

if TYPE_CHECKING:
    from drover_proxy.app.instance import Instance
    from drover_proxy.app.parts import Parts


MONOTONIC: Final = time.monotonic
BOOT: Final = os.urandom(4).hex().encode()
"""Begins the ids of this process' requests, so that those of another run are others."""
ID = re.compile(rb"[A-Za-z0-9._:+/=-]{1,128}")
"""What is taken for an id when a client sends one; anything else is replaced, lest it forge a line."""

LOGGED = frozenset({401, 403, 409, 500, 502, 503, 504})
"""Rejections that an operator looks for: who was kept out, and what could not be served."""


def sent(ex: Exchange) -> bytes | None:
    """Give the id that the client sent in X-Request-Id, if it is one."""
    value = ex.header(b"x-request-id")
    return value if value is not None and ID.fullmatch(value) is not None else None


class Call:
    """The proxy's side of an exchange; it is the exchange's `context`."""

    __slots__ = (
        "argument",
        "asked",
        "caller",
        "code",
        "ex",
        "first_byte_seconds",
        "forwarded",
        "hushed",
        "id",
        "instance",
        "load_seconds",
        "model",
        "on_finished",
        "packed",
        "parts",
        "queue_seconds",
        "queued",
        "route",
        "task",
        "watch",
    )

    def __init__(
        self, parts: Parts, ex: Exchange, route: Route, caller: Caller, sent_id: bytes | None
    ) -> None:
        self.parts = parts
        self.ex = ex
        self.id = sent_id or b"%b-%d" % (BOOT, ex.id)
        """What the client, or else the proxy, calls this request: X-Request-Id."""
        self.route = route
        self.caller = caller
        self.argument = ""
        self.asked: Asked | None = None
        self.model = ""
        self.instance: Instance | None = None
        self.queued = False
        """The core knows the request and hasn't heard of its end."""
        self.forwarded = False
        self.queue_seconds = 0.0
        self.load_seconds = 0.0
        self.first_byte_seconds = 0.0
        self.code = ""
        self.hushed = False
        """It was kept out like many before it: no line tells of it alone."""
        self.packed = False
        """The body came compressed."""
        self.on_finished: Callable[[], None] | None = None
        self.task: asyncio.Task[None] | None = None
        self.watch: StreamWatch | None = None

    def fail(
        self,
        status: int,
        code: str,
        message: str,
        *,
        retry_after: int | None = None,
        allow: str = "",
        why: str = "",
    ) -> None:
        """Answer with an error in the caller's dialect; `why` is for the log alone."""
        if self.ex.over:
            return
        self.code = code
        self.parts.metrics.errors[code] += 1
        if status in LOGGED:
            told = self.parts.rejections.tell(
                self.ex.client,
                code,
                status=status,
                id=self.id.decode("ascii"),
                route=self.route.name,
                model=self.model,
                key=self.caller.name,
                message=message,
                why=why,
            )
            self.hushed = status == 401 and not told
        headers = error_headers(status, code, retry_after_seconds=retry_after, allow=allow)
        headers.append((b"x-request-id", self.id))
        if self.instance is not None:
            headers.append((b"x-drover-instance", self.instance.name.encode()))
        self.ex.respond(status, headers, error_body(self.route.dialect, status, code, message))

    def fail_body(self, problem: BodyProblem) -> None:
        """Answer for a body that can't be served."""
        self.fail(problem.status, problem.code, problem.message)

    def no_instance(self) -> None:
        """Answer that nobody is there to serve it."""
        self.fail(503, "no_instance", "no Ollama instance of this host answers at the moment", retry_after=5)

    def send(
        self,
        instance: Instance,
        *,
        target: bytes | None = None,
        body: bytes | None = None,
        fields: Headers | None = None,
    ) -> None:
        """Forward to an instance; the answer says which one it was."""
        self.instance = instance
        if self.queued:
            lines = (
                b"x-request-id: %b\r\nx-drover-instance: %b\r\n"
                b"x-drover-queue-ms: %d\r\nx-drover-load-ms: %d\r\n"
                % (self.id, instance.label, int(self.queue_seconds * 1000), int(self.load_seconds * 1000))
            )
        else:
            lines = b"x-request-id: %b\r\nx-drover-instance: %b\r\n" % (self.id, instance.label)
        self.ex.forward(
            instance.upstream,
            target=target or self.ex.path,
            body=body,
            headers=fields,
            extra=lines,
            watch=self.watch,
        )

    def answer(self, body: bytes, content_type: bytes = b"application/json; charset=utf-8") -> None:
        """Answer 200 with a body of the proxy's own."""
        self.ex.respond(200, [(b"content-type", content_type), (b"x-request-id", self.id)], body)

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Go on in the background; a failure there is answered 500, and the client's leaving cancels it."""
        self.task = self.parts.spawn(self._guarded(work))

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except BodyProblem as problem:
            self.fail_body(problem)
        except Exception as error:  # noqa: BLE001 - a bug costs one request, never the proxy
            self.parts.log.write("error", "internal_error", route=self.route.name, error=repr(error))
            self.fail(500, "internal", "the proxy failed on this request; see its log")

    def elapsed(self) -> float:
        """Seconds since the request arrived."""
        return MONOTONIC() - self.ex.arrived_at
