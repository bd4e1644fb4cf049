"""`ollama serve`: the listener, what every request passes (Origin, Host, path), and the routes."""

from __future__ import annotations

import asyncio
import fnmatch
import ipaddress
import os
import posixpath
import signal
import sys
from collections.abc import Awaitable, Callable
from urllib.parse import quote

from lab.ollama import VERSION, compat, create_api, log, models_api, native, pull_api, stateless
from lab.ollama.body import Refused
from lab.ollama.config import (
    FatalError,
    Knobs,
    Settings,
    default_origins,
    is_loopback,
    local_hostname,
)
from lab.ollama.converse import Context
from lab.ollama.dialects import JSON, openai_error
from lab.ollama.gotext import gibibytes
from lab.ollama.gpus import driver_version
from lab.ollama.http import JSON_UTF8, REASONS, Answer, Connection, Request, dumps
from lab.ollama.stateless import anthropic_error

Route = Callable[[Context, Request, Answer], Awaitable[None]]
PLAIN = "text/plain"
_PREFLIGHT = [
    (
        "Access-Control-Allow-Headers",
        (
            "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,X-Stainless-Arch,"
            "X-Stainless-Async,X-Stainless-Custom-Poll-Interval,X-Stainless-Helper-Method,X-Stainless-Lang,"
            "X-Stainless-Os,X-Stainless-Package-Version,X-Stainless-Poll-Helper,X-Stainless-Retry-Count,"
            "X-Stainless-Runtime,X-Stainless-Runtime-Version,X-Stainless-Timeout"
        ),
    ),
    ("Access-Control-Allow-Methods", "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"),
    ("Access-Control-Max-Age", "43200"),
    ("Vary", "Access-Control-Request-Method"),
    ("Vary", "Access-Control-Request-Headers"),
]


async def _hello(context: Context, request: Request, answer: Answer) -> None:
    del context, request
    answer.whole(200, b"Ollama is running", "text/plain; charset=utf-8")


async def _version(context: Context, request: Request, answer: Answer) -> None:
    del request
    answer.json(200, {"version": context.version})


async def _status(context: Context, request: Request, answer: Answer) -> None:
    del request
    disabled = context.settings.no_cloud
    answer.json(200, {"cloud": {"disabled": disabled, "source": "env" if disabled else "none"}})


async def _account(context: Context, request: Request, answer: Answer) -> None:
    del context, request
    answer.error(503, "account unavailable")


async def _web(context: Context, request: Request, answer: Answer) -> None:
    del context
    what = "web fetch" if request.path.endswith("fetch") else "web search"
    answer.error(403, f"ollama cloud is disabled: {what} is unavailable")


async def _transcriptions(context: Context, request: Request, answer: Answer) -> None:
    del context
    if "multipart/form-data" in request.headers.get("content-type", ""):
        text = "this model does not support audio input"
    else:
        text = "failed to parse multipart form: request Content-Type isn't multipart/form-data"
    answer.json(400, openai_error(400, text))


ROUTES: dict[str, dict[str, Route]] = {
    "/": {"HEAD": _hello, "GET": _hello},
    "/api/version": {"HEAD": _version, "GET": _version},
    "/api/status": {"GET": _status},
    "/api/tags": {"HEAD": models_api.tags, "GET": models_api.tags},
    "/api/ps": {"GET": models_api.ps},
    "/api/show": {"POST": models_api.show},
    "/api/delete": {"DELETE": models_api.delete},
    "/api/copy": {"POST": models_api.copy},
    "/api/blobs/:digest": {"HEAD": models_api.head_blob, "POST": models_api.put_blob},
    "/api/create": {"POST": create_api.create},
    "/api/pull": {"POST": pull_api.pull},
    "/api/push": {"POST": pull_api.push},
    "/api/me": {"POST": _account},
    "/api/signout": {"POST": _account},
    "/api/experimental/web_search": {"POST": _web},
    "/api/experimental/web_fetch": {"POST": _web},
    "/v1/audio/transcriptions": {"POST": _transcriptions},
    "/api/generate": {"POST": native.generate},
    "/api/chat": {"POST": native.chat},
    "/api/embed": {"POST": native.embed},
    "/api/embeddings": {"POST": native.embeddings},
    "/v1/chat/completions": {"POST": compat.chat_completions},
    "/v1/completions": {"POST": compat.completions},
    "/v1/embeddings": {"POST": compat.embeddings},
    "/v1/models": {"GET": compat.models},
    "/v1/models/:model": {"GET": compat.model},
    "/v1/responses": {"POST": stateless.responses},
    "/v1/messages": {"POST": stateless.messages},
}


def match(path: str) -> tuple[dict[str, Route], dict[str, str]]:
    """The handlers of a path, and what its variable part says."""
    if (exact := ROUTES.get(path)) is not None:
        return exact, {}
    folder, _, last = path.rpartition("/")
    for name in ("digest", "model"):
        if last and (found := ROUTES.get(f"{folder}/:{name}")) is not None:
            return found, {name: last}
    return {}, {}


def _redirect(request: Request, answer: Answer, status: int, target: str) -> None:
    answer.extra.append(("Location", target))
    if request.method == "GET":
        text = f'<a href="{target}">{REASONS[status]}</a>.\n\n'
        answer.whole(status, text.encode(), "text/html; charset=utf-8")
    else:
        answer.whole(status)


class Server:
    """One `ollama serve`."""

    def __init__(self, settings: Settings, knobs: Knobs, version: str = VERSION) -> None:
        self.settings = settings
        self.context = Context(settings, knobs, version)
        self.connections: set[Connection] = set()
        self.ready = asyncio.Event()
        self._origins = (*settings.origins, *default_origins())
        self._checks_host = is_loopback(settings.host)

    @staticmethod
    def _is_foreign(request: Request) -> bool:
        """Whether the page that asks came from elsewhere."""
        origin, host = request.headers.get("origin", ""), request.headers.get("host", "")
        return bool(origin) and origin not in {f"http://{host}", f"https://{host}"}

    def _origin_allowed(self, request: Request) -> bool:
        origin = request.headers.get("origin", "")
        return not self._is_foreign(request) or any(
            fnmatch.fnmatchcase(origin, pattern) for pattern in self._origins
        )

    def _host_allowed(self, request: Request) -> tuple[bool, bool]:
        """Whether the Host header is let in, and whether it is a name (which OPTIONS is answered to)."""
        if not self._checks_host:
            return True, False
        host = request.headers.get("host", "").lower()
        if host.startswith("["):
            host = host[1:].partition("]")[0]
        elif host.count(":") == 1:
            host = host.partition(":")[0]
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            known = {"", "localhost", local_hostname().lower()}
            return host in known or host.endswith((".localhost", ".local", ".internal")), bool(host)
        return address.is_loopback or address.is_private or address.is_unspecified, False

    async def handle(self, request: Request, answer: Answer) -> None:
        """Answer one request."""
        await self.ready.wait()
        if not self._path_clean(request, answer):
            return
        handlers, request.parameters = match(request.path)
        wrong_method = bool(handlers) and request.method not in handlers
        if wrong_method:
            answer.extra.append(("Allow", ", ".join(handlers)))
        if not self._origin_allowed(request):
            answer.whole(403)
            return
        if (origin := request.headers.get("origin")) and self._is_foreign(request):
            answer.extra += [("Access-Control-Allow-Origin", origin), ("Vary", "Origin")]
            if request.method == "OPTIONS":
                answer.extra += _PREFLIGHT
                answer.whole(204)
                return
        allowed, named = self._host_allowed(request)
        if not allowed:
            answer.whole(403)
        elif request.method == "OPTIONS" and named:
            answer.whole(204)
        elif not handlers:
            answer.whole(404, b"404 page not found", PLAIN)
        elif wrong_method:
            answer.whole(405, b"405 method not allowed", PLAIN)
        else:
            await self._run(handlers[request.method], request, answer)

    @staticmethod
    def _path_clean(request: Request, answer: Answer) -> bool:
        path = request.path or "/"
        clean = posixpath.normpath("/" + path.lstrip("/"))
        wanted = clean + "/" if path.endswith("/") and clean != "/" else clean
        query = f"?{request.query}" if request.query else ""
        if wanted != path:
            _redirect(request, answer, 307, quote(wanted) + query)
            return False
        if path != "/" and path.endswith("/") and match(clean)[0]:
            _redirect(request, answer, 301 if request.method == "GET" else 307, quote(clean) + query)
            return False
        return True

    async def _run(self, route: Route, request: Request, answer: Answer) -> None:
        try:
            await route(self.context, request, answer)
        except Refused as refusal:
            if answer.status:
                raise
            message = str(refusal)
            if request.path == "/v1/messages":
                kind = JSON if request.in_handler else JSON_UTF8
                answer.json(refusal.status, anthropic_error(refusal.status, message), kind)
            elif request.path.startswith("/v1/") and not message.startswith("ollama cloud is disabled"):
                kind = JSON if request.in_handler else JSON_UTF8
                end = b"\n" if request.in_handler else b""
                answer.whole(refusal.status, dumps(openai_error(refusal.status, message)) + end, kind)
            else:
                answer.error(refusal.status, message)

    async def serve(self) -> None:
        """Listen, look at the GPUs, answer, and stop at once when told to."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        self._prepare_store()
        try:
            listener = await loop.create_server(
                lambda: Connection(self.handle, self.connections),
                self.settings.host or None,
                self.settings.port,
                backlog=1024,
                reuse_address=True,
            )
        except OSError as error:
            shown = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
            text = (os.strerror(error.errno) if error.errno else str(error)).lower()
            raise FatalError(f"listen tcp {shown}:{self.settings.port}: bind: {text}") from error
        address = listener.sockets[0].getsockname()
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        log.info(
            f"Listening on {shown}:{address[1]} (version {self.context.version})", source="routes.go:2003"
        )
        looking = loop.create_task(self._discover())
        await stop.wait()
        looking.cancel()
        listener.close()
        for connection in list(self.connections):
            connection.cut()
        await self.context.scheduler.stop()

    def _prepare_store(self) -> None:
        try:
            self.context.store.prepare()
        except OSError as error:
            text = (os.strerror(error.errno) if error.errno else str(error)).lower()
            raise FatalError(
                f"mkdir {self.settings.models}: {text}: ensure path elements are traversable"
            ) from error
        if not self.settings.noprune:
            removed = self.context.store.prune()
            log.info(
                f"total blobs: {sum(1 for _ in self.context.store.blobs.iterdir())}", source="images.go:522"
            )
            log.info(f"total unused blobs removed: {removed}", source="images.go:529")

    async def _discover(self) -> None:
        log.info("discovering available GPUs...", source="runner.go:67")
        await asyncio.sleep(self.context.knobs.discovery_seconds)
        gpus = self.context.scheduler.visible()
        if self.settings.cuda_visible_devices is not None:
            log.warn(
                "user overrode visible devices",
                source="runner.go:485",
                CUDA_VISIBLE_DEVICES=self.settings.cuda_visible_devices,
            )
        for position, gpu in enumerate(gpus):
            log.info(
                "inference compute",
                source="types.go:60",
                id=position,
                filter_id=gpu.filter_id,
                library="CUDA",
                compute=gpu.compute_capability,
                name=f"CUDA{position}",
                description=gpu.name,
                libdirs="ollama,cuda_v13",
                driver=driver_version(),
                pci_id="",
                type="discrete",
                total=gibibytes(gpu.total_bytes),
                available=gibibytes(gpu.free_bytes),
            )
        if not gpus:
            total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
            log.info(
                "inference compute",
                source="types.go:60",
                id="cpu",
                library="cpu",
                compute="",
                name="cpu",
                description="cpu",
                libdirs="ollama",
                driver="",
                pci_id="",
                type="",
                total=gibibytes(total),
                available=gibibytes(free),
            )
        self.context.scheduler.start()
        self.ready.set()


def main() -> int:
    """Run the server with this process's environment."""
    environ = dict(os.environ)
    settings = Settings.from_env(environ)
    knobs = Knobs.load(environ)
    log.set_debug(settings.debug)
    log.info("server config", source="routes.go:1931", env=settings.as_map(environ))
    log.info(f"Ollama cloud disabled: {str(settings.no_cloud).lower()}", source="routes.go:1933")
    asyncio.run(_until_stopped(Server(settings, knobs)))
    return 0


async def _until_stopped(server: Server) -> None:
    await server.serve()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # at once: a download's thread would hold it up for as long as its connection is silent
