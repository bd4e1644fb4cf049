"""The wire's handler: who asks, what for, and which part of the proxy answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from drover_proxy.app import inference, listing, management
from drover_proxy.app.call import Call, sent
from drover_proxy.app.record import Recorder
from drover_proxy.core.events import ForwardFailed, HeadersSent, Outcome, RequestCancelled, RequestFinished
from drover_proxy.dialect import encoding
from drover_proxy.dialect.body import BodyProblem
from drover_proxy.dialect.errors import error_body, error_headers
from drover_proxy.dialect.routes import UNKNOWN, Kind, Route, dialect_of, match
from drover_proxy.guard.door import MESSAGE, Door, Refusal
from drover_proxy.guard.keys import NOBODY, Caller, KeyRing
from drover_proxy.wire import BodyPlan, Exchange, Stranger, UpstreamError
from drover_proxy.wire import Kind as End
from drover_proxy.wire import Outcome as WireOutcome

if TYPE_CHECKING:
    from drover_proxy.app.parts import Parts
    from drover_proxy.wire.fields import Fields
    from drover_proxy.wire.parting import Parting

ALIVE = b"Ollama is running"
CORE_OUTCOME: Final = {
    End.COMPLETE: Outcome.OK,
    End.CLIENT_GONE: Outcome.CANCELLED,
    End.UPSTREAM_FAILED: Outcome.ERROR,
    End.UPSTREAM_BROKEN: Outcome.ERROR,
    End.REFUSED: Outcome.ERROR,
    End.IN_BAND_ERROR: Outcome.ERROR,
}
STOP_SECONDS = 15.0
"""How long Ollama is given to stop when a client has left, before its slot is taken for free all the same.

It pings a runner that hangs for 10 s before it kills it; a batch of a long prompt takes seconds."""

BUFFER: Final = BodyPlan.BUFFER
INFER: Final = Kind.INFER
COMPLETE: Final = End.COMPLETE


class Admission:
    """What the head of a request came to. It holds for the next one with the same head."""

    __slots__ = ("caller", "id", "ring", "route")

    def __init__(self, ring: KeyRing | None, route: Route, caller: Caller, sent_id: bytes | None) -> None:
        self.ring = ring
        self.route = route
        self.caller = caller
        self.id = sent_id

    def holds(self, door: Door) -> bool:
        """Whether the same keys are in force, and the caller's hasn't expired."""
        return self.ring is door.ring and door.in_time(self.caller)


class Gateway:
    """Serves the public listeners."""

    def __init__(self, parts: Parts, metrics_page: Callable[[], bytes]) -> None:
        self._parts = parts
        self._recorder = Recorder(parts)
        self._ready: dict[Kind, Callable[[Call], None]] = {
            Kind.INFO: listing.info,
            Kind.LIST: listing.models,
            Kind.RUNNING: listing.running,
            Kind.SHOW: listing.show,
            Kind.MODEL: listing.one_model,
            Kind.MANAGE: management.manage,
            Kind.BLOB: management.blob,
            Kind.ROOT: lambda call: call.answer(ALIVE, b"text/plain; charset=utf-8"),
            Kind.METRICS: lambda call: call.answer(metrics_page(), b"text/plain; charset=utf-8"),
        }

    def head(self, ex: Exchange) -> BodyPlan:
        """Decide by the head alone whether the request is let in, and what its body is for."""
        admission: Admission | None = ex.memo.handler
        if admission is not None and admission.holds(self._parts.door):
            ex.context = Call(self._parts, ex, admission.route, admission.caller, admission.id)
            return BUFFER
        return self._decide(ex)

    def _decide(self, ex: Exchange) -> BodyPlan:
        found = match(ex.method, ex.path)
        sent_id = sent(ex)
        call = ex.context = Call(self._parts, ex, found.route or UNKNOWN[found.dialect], NOBODY, sent_id)
        call.argument = found.argument
        route = found.route
        # An unknown path needs a key too, so that nobody learns the routes without one.
        if (route is None or route.kind is not Kind.ROOT) and not self._let_in(call):
            return BodyPlan.NONE
        if route is None:
            if found.status == 405:
                call.fail(405, "method_not_allowed", "405 method not allowed", allow=found.allow)
            else:
                call.fail(404, "unknown_path", "404 page not found")
            return BodyPlan.NONE
        if route.kind is Kind.REFUSED:
            message = f"{route.name} acts for this host's account at ollama.com: the proxy never forwards it"
            call.fail(403, "not_offered", message)
        elif route.kind is not Kind.ROOT and not call.caller.may(route.scope):
            message = f"this key has no scope {route.scope!r}, which {route.name} needs"
            call.fail(403, "scope_missing", message)
        elif route.has_body and not route.streams and (named := _coding(ex)):
            return _packed(call, named)
        elif route.streams:
            return BodyPlan.STREAM
        elif route.has_body:
            if self._parts.door.knows(ex):
                ex.memo.handler = Admission(self._parts.door.ring, route, call.caller, sent_id)
            return BUFFER
        return BodyPlan.NONE

    def _let_in(self, call: Call) -> bool:
        door = self._parts.door
        entered = door.enter(call.ex)
        if not isinstance(entered, Refusal):
            call.caller = entered
            return True
        why = entered.reason

        def answer() -> None:
            call.fail(401, "unauthorized", MESSAGE, why=why)

        call.on_finished = door.later(call.ex.client, entered.delay_seconds, answer)
        return False

    def ready(self, ex: Exchange) -> None:
        """Work on a request whose body is here."""
        call: Call = ex.context
        if call.on_finished is not None:
            return  # kept out, and told so later
        try:
            kind = call.route.kind
            if kind is INFER:  # as good as always
                inference.infer(call)
            else:
                self._ready[kind](call)
        except BodyProblem as problem:
            call.fail_body(problem)

    def answered(self, ex: Exchange, _status: int) -> None:
        """Note when the answer began."""
        call: Call = ex.context
        seconds = call.first_byte_seconds = call.elapsed()
        if call.queued:
            parts = self._parts
            parts.metrics.first_byte.observe(seconds)
            if call.watch is not None:  # the head of any other answer comes with its end
                parts.runtime.post(HeadersSent(ex.id))

    def upstream_failed(self, ex: Exchange, error: UpstreamError) -> bool:
        """Let the core send it elsewhere if it never reached its instance; else say what happened."""
        call: Call = ex.context
        instance = call.instance
        self._parts.log.warning(
            "upstream_failed",
            instance=instance.name if instance else "",
            route=call.route.name,
            fault=error.fault.value,
            error=str(error),
        )
        if instance is not None:
            instance.suspect()
        if call.queued and error.retryable:
            call.forwarded = False
            self._parts.runtime.post(ForwardFailed(ex.id, str(error)))
            return True
        message = "the Ollama instance broke off before it answered; ask again"
        call.fail(error.status, error.code, message, retry_after=1)
        return True

    def error_answer(
        self, asked: Exchange | Stranger, status: int, code: str, message: str
    ) -> tuple[Fields, bytes]:
        """Say what the wire itself refused in the words of the path's clients."""
        self._parts.metrics.errors[code] += 1
        headers = error_headers(status, code, retry_after_seconds=1 if status == 503 else None)
        if isinstance(asked, Stranger):  # nothing else will tell of it
            self._parts.rejections.tell(asked.client, code, status=status, message=message)
        elif asked.context is not None:
            asked.context.code = code
            headers.append((b"x-request-id", asked.context.id))
        return headers, error_body(dialect_of(asked.target), status, code, message)

    def gone(self, ex: Exchange) -> None:
        """Give up what was begun for a client that has left."""
        call: Call = ex.context
        if call.task is not None:
            call.task.cancel()
        if call.queued:
            self._leave(call, RequestCancelled(ex.id))

    def _leave(self, call: Call, event: RequestCancelled | RequestFinished) -> None:
        """Tell the core that a request has ended, once Ollama has stopped."""
        call.queued = False
        self._parts.runtime.forget(call.ex.id)
        if call.ex.parting is None:
            self._parts.runtime.post(event)
        else:
            self._parts.spawn(self._freed(event, call.ex.parting))

    async def _freed(self, event: RequestCancelled | RequestFinished, parting: Parting) -> None:
        """Free a slot when Ollama has stopped: who came earlier would queue inside Ollama."""
        try:
            if not await parting.wait(STOP_SECONDS):
                self._parts.log.warning("slow_to_stop", request=event.request, seconds=STOP_SECONDS)
        finally:
            self._parts.runtime.post(event)

    def finished(self, ex: Exchange, outcome: WireOutcome) -> None:
        """Account for a request that is over."""
        call: Call = ex.context
        if call.queued:
            kind = outcome.kind
            ended = RequestFinished(ex.id, Outcome.OK if kind is COMPLETE else CORE_OUTCOME[kind])
            self._leave(call, ended if call.forwarded else RequestCancelled(ex.id))
        if call.on_finished is not None:
            call.on_finished()
        self._recorder.ended(call, outcome)


def _coding(ex: Exchange) -> bytes:
    """Name the coding of a body; as good as always there is none."""
    return encoding.coding(ex.headers) if ex.header(b"content-encoding") is not None else b""


def _packed(call: Call, named: bytes) -> BodyPlan:
    """Take a compressed body where the route's server takes it too."""
    try:
        encoding.check(call.route, named)
    except BodyProblem as problem:
        call.fail_body(problem)
        return BodyPlan.NONE
    call.packed = True
    return BodyPlan.BUFFER
