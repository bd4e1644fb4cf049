"""The admin address: metrics, health, state, warm-up. It asks for no key, so it belongs on loopback.

GET  /metrics              Prometheus' text
GET  /healthz              200 while the event loop turns
GET  /readyz               200 when requests can be served, else 503; JSON that says why
GET  /drover/v1/state      what the proxy knows and does, as JSON
GET  /drover/v1/explain    ?model=NAME: what happened to it lately, and what it waits for
POST /drover/v1/warm       {"models": [...]}: load them; from this host only
POST /drover/v1/reload     as SIGHUP does; says what came of it (422: nothing changed); from this host only
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import msgspec

from drover_proxy.admin import state, warm
from drover_proxy.dialect.errors import Headers, error_body, error_headers
from drover_proxy.dialect.routes import Dialect
from drover_proxy.wire import BodyPlan, Exchange, Outcome, Stranger, UpstreamError

if TYPE_CHECKING:
    from drover_proxy.app.parts import Parts
    from drover_proxy.app.reloading import Reloaded

JSON = b"application/json; charset=utf-8"
CONTENT_TYPE = b"text/plain; version=1.0.0; charset=utf-8; escaping=underscores"
"""Of the metrics."""


class Admin:
    """The wire's handler of the admin listeners."""

    def __init__(
        self, parts: Parts, metrics_page: Callable[[], bytes], reload: Callable[[], Reloaded]
    ) -> None:
        self._parts = parts
        self._metrics_page = metrics_page
        self._reload_all = reload
        self._routes: dict[bytes, tuple[bytes, Callable[[Exchange], None]]] = {
            b"/metrics": (b"GET", self._metrics),
            b"/healthz": (b"GET", lambda ex: ex.respond(200, [(b"content-type", b"text/plain")], b"ok\n")),
            b"/readyz": (b"GET", self._readyz),
            b"/drover/v1/state": (b"GET", self._state),
            b"/drover/v1/explain": (b"GET", self._explain),
            b"/drover/v1/warm": (b"POST", self._warm),
            b"/drover/v1/reload": (b"POST", self._reload),
        }

    def head(self, ex: Exchange) -> BodyPlan:
        """Refuse what isn't there."""
        found = self._routes.get(ex.path)
        if found is None:
            paths = ", ".join(path.decode() for path in self._routes)
            respond(ex, 404, {"error": f"not here; the admin address has {paths}"})
        elif ex.method != found[0] and not (ex.method == b"HEAD" and found[0] == b"GET"):
            ex.respond(405, [(b"allow", found[0]), (b"content-type", b"text/plain")], b"405\n")
        elif found[0] == b"POST" and not local(ex.client):
            respond(ex, 403, {"error": f"{ex.path.decode()} is for this host itself only"})
        else:
            return BodyPlan.BUFFER if found[0] == b"POST" else BodyPlan.NONE
        return BodyPlan.NONE

    def ready(self, ex: Exchange) -> None:
        """Answer."""
        self._routes[ex.path][1](ex)

    def _metrics(self, ex: Exchange) -> None:
        ex.respond(200, [(b"content-type", CONTENT_TYPE)], self._metrics_page())

    def _readyz(self, ex: Exchange) -> None:
        ready, report = state.readiness(self._parts)
        respond(ex, 200 if ready else 503, report)

    def _state(self, ex: Exchange) -> None:
        respond(ex, 200, state.snapshot(self._parts))

    def _explain(self, ex: Exchange) -> None:
        model = parse_qs(ex.query.decode("latin-1")).get("model", [""])[0]
        told = state.explain(self._parts, model)
        if told is None:
            respond(ex, 404, {"error": f"model {model!r} isn't on this host; ask with ?model=NAME"})
        else:
            respond(ex, 200, told)

    def _reload(self, ex: Exchange) -> None:
        done = self._reload_all()
        respond(ex, 422 if done.problems else 200, done._asdict())

    def _warm(self, ex: Exchange) -> None:
        ex.context = self._parts.spawn(self._warm_up(ex))

    async def _warm_up(self, ex: Exchange) -> None:
        try:
            wanted = msgspec.json.decode(ex.body, type=warm.Wanted)
        except msgspec.MsgspecError as error:
            respond(ex, 400, {"error": f'expected {{"models": ["name", ...]}}: {error}'})
            return
        results = await warm.warm(self._parts, wanted.models)
        respond(ex, 200 if all(result.ok for result in results) else 503, {"models": results})

    def answered(self, ex: Exchange, status: int) -> None:
        """Nothing is forwarded from here."""

    def error_answer(
        self, _asked: Exchange | Stranger, status: int, code: str, message: str
    ) -> tuple[Headers, bytes]:
        """Say what the wire itself refused, as Ollama would."""
        return error_headers(status, code), error_body(Dialect.OLLAMA, status, code, message)

    def upstream_failed(self, _ex: Exchange, _error: UpstreamError) -> bool:
        """Nothing is forwarded from here."""
        return False

    def gone(self, ex: Exchange) -> None:
        """Stop warming for someone who has left; the load under way goes on."""
        if ex.context is not None:
            ex.context.cancel()

    def finished(self, ex: Exchange, outcome: Outcome) -> None:
        """Nothing is kept."""


def respond(ex: Exchange, status: int, value: Any) -> None:
    """Answer with JSON."""
    ex.respond(status, [(b"content-type", JSON)], msgspec.json.encode(value, enc_hook=str) + b"\n")


def local(client: str) -> bool:
    """Whether a client is on this host."""
    if client == "unix":
        return True
    try:
        return ipaddress.ip_address(client).is_loopback
    except ValueError:
        return False
