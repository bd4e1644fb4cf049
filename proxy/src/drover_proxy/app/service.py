"""The life of the process: start, reload, drain, stop."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from drover_proxy import __version__
from drover_proxy.admin.metrics import Metrics
from drover_proxy.admin.server import Admin
from drover_proxy.app.catalogue import Catalogue
from drover_proxy.app.coreconfig import core_config, resolve_gpus
from drover_proxy.app.gateway import Gateway
from drover_proxy.app.handover import Handover
from drover_proxy.app.instance import Instance
from drover_proxy.app.memory import Memory
from drover_proxy.app.parts import Parts
from drover_proxy.app.recall import Recall
from drover_proxy.app.runtime import Runtime
from drover_proxy.build import BUILD
from drover_proxy.config import ConfigError, ForwardingConfig, ProxyConfig, TlsConfig, load
from drover_proxy.core.events import DrainRequested
from drover_proxy.drivers.log import Log
from drover_proxy.drivers.notify import Notifier, watchdog_seconds
from drover_proxy.drivers.ollama import OllamaClient
from drover_proxy.drivers.sockets import BindError, bind, handed_over
from drover_proxy.guard.door import Door
from drover_proxy.guard.keys import KeyRing
from drover_proxy.guard.watch import KeysFile, follow
from drover_proxy.wire import Forwarding, Limits, Server
from drover_proxy.wire.forwarding import Mode as ForwardedMode
from drover_proxy.wire.forwarding import network

GPU_PATIENCE_SECONDS = 10.0
"""How long the start waits for NVML before it serves without; the search goes on meanwhile."""
CATALOGUE_PATIENCE_SECONDS = 5.0
SPARE_FILES = 256
"""Open files besides connections."""
FIXED = ("listen", "admin_listen", "tls", "instances", "gpus", "limits", "forwarding")
"""What a reload can't change."""


class StartError(Exception):
    """The proxy can't start; the message says why."""


class Service:
    """One run of the proxy."""

    def __init__(self, path: Path) -> None:
        self._path = path
        config = load(path)
        self._log = Log(config.log.level)
        self._notifier = Notifier()
        self._stopping = asyncio.Event()
        metrics = Metrics(__version__)
        runtime = Runtime(self._log, metrics)
        catalogue = Catalogue(self._log, runtime.post, self._control_client)
        catalogue.configure(config.models)
        memory = Memory(self._log, runtime.post, self._taken)
        runtime.hurry = memory.hurry
        self._recall = Recall(self._log)
        runtime.remember = self._recall.keep
        self._keys = _keys_file(config)
        door = Door(self._keys.load() if self._keys else None, config.signature_seconds)
        self._parts: Parts = Parts(config, self._log, metrics, runtime, catalogue, memory, door)
        self._text: Callable[[], bytes] | None = None
        limits = _limits(config)
        self._public = Server(Gateway(self._parts, self._page), limits, _forwarding(config.forwarding))
        self._admin = Server(Admin(self._parts, self._page), Limits())
        self._parts.servers += [self._public, self._admin]
        self._tls: ssl.SSLContext | None = None
        self._handover = Handover(self._log, runtime, self._public, self._admin)
        self._chores: list[asyncio.Task[None]] = []

    def _page(self) -> bytes:
        """Make Prometheus' text; what that takes is imported with the first scrape."""
        if self._text is None:
            from drover_proxy.admin.exposition import Exposition  # noqa: PLC0415
            from drover_proxy.admin.gauges import gauges  # noqa: PLC0415

            self._text = Exposition(self._parts.metrics, lambda: gauges(self._parts)).text
        return self._text()

    def _control_client(self) -> OllamaClient | None:
        instance = self._parts.any_up()
        return instance.client if instance else None

    def _taken(self, uuid: str) -> int:
        return self._parts.taken(uuid)

    async def run(self) -> int:
        """Serve until told to stop; returns the exit code."""
        parts, loop = self._parts, asyncio.get_running_loop()
        config = parts.config
        self._tls = _tls(config.tls) if config.tls else None
        public, admin = _sockets(config)
        loop.add_signal_handler(signal.SIGTERM, self._stopping.set)
        loop.add_signal_handler(signal.SIGINT, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        _raise_file_limit(config, self._log)
        self._log.info("starting", version=__version__, build=BUILD, config=str(self._path))
        if parts.door.ring is None:
            self._log.warning(
                "open_door",
                message="NO KEYS ARE CONFIGURED: everybody who reaches this address may use and manage all "
                "models; set auth.keys_file",
                listen=[str(address) for address in config.listen],
            )
        for item in config.instances:
            instance = Instance(item, parts.runtime, parts.catalogue, parts.memory.processes)
            parts.instances[item.name] = parts.runtime.loaders[item.name] = instance
            instance.start()
        self._handover.begin({item.name: f"{item.host}:{item.port}" for item in config.instances}, self._look)
        schedule, told = parts.spawn(self._schedule()), parts.spawn(_until(self._stopping))
        await asyncio.wait(
            {schedule, told}, timeout=GPU_PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        if not schedule.done():
            self._log.warning("starting_without_gpus", reason=parts.memory.state)
        elif (error := schedule.exception()) is not None:
            await self._stop()
            raise StartError(str(error)) from error
        await self._first_catalogue()
        near = [one for one in public if one.family == socket.AF_UNIX]  # never leaves the host: no TLS
        places = await self._public.listen((one for one in public if one not in near), tls=self._tls)
        places += await self._public.listen(near)
        admin_places = await self._admin.listen(admin)
        self._handover.serving()
        works = (
            parts.catalogue.keep_fresh(),
            self._feed_watchdog(),
            follow(lambda: self._keys, self._new_keys, self._bad_keys),
            self._handover.watch(),
        )
        self._chores = [parts.spawn(work) for work in works]
        self._log.info("ready", listen=places, admin_listen=admin_places, models=len(parts.catalogue.models))
        gc.freeze()  # what is here by now stays: no collection need look at it, and stop streams meanwhile
        self._notifier.ready(f"serving on {', '.join(places)}")
        await self._stopping.wait()
        return await (self._leave() if self._handover.possible else self._drain())

    async def _schedule(self) -> None:
        """Find the GPUs, then begin to schedule; the wait may be long, and the proxy serves meanwhile."""
        parts = self._parts
        config = parts.config
        wants_gpus = any(item.gpus for item in config.instances)
        configured = (() if not wants_gpus else None) if config.gpus == "nvml" else config.gpus
        found = await parts.memory.find(configured)
        uuids = resolve_gpus(parts.config, found)
        for name, instance in parts.instances.items():
            instance.gpu_uuids = uuids[name]
        parts.runtime.start(core_config(parts.config, found, uuids), self._recall.read())
        parts.catalogue.tell_all()
        parts.memory.start()
        for instance in parts.instances.values():
            instance.announce()

    async def _first_catalogue(self) -> None:
        """Wait a moment for the first list of models, so that early requests aren't told 503."""
        deadline = asyncio.get_running_loop().time() + CATALOGUE_PATIENCE_SECONDS
        while self._parts.catalogue.read_at is None and asyncio.get_running_loop().time() < deadline:
            if self._stopping.is_set():
                return
            await asyncio.sleep(0.02)

    async def _feed_watchdog(self) -> None:
        period = watchdog_seconds()
        while period is not None:
            self._notifier.watchdog()
            await asyncio.sleep(period)

    def _reload(self) -> None:
        """Read configuration and keys again; with a mistake in either, keep all that is in force."""
        parts = self._parts
        self._notifier.reloading()
        try:
            fresh = load(self._path)
            keys = self._keys if fresh.keys_file == parts.config.keys_file else _keys_file(fresh)
            ring = keys.load() if keys else None
            if self._tls is not None and fresh.tls is not None and fresh.tls == parts.config.tls:
                _renew(self._tls, fresh.tls)
        except (ConfigError, OSError, ssl.SSLError) as error:
            parts.metrics.reload_ok = False
            problems = [str(p) for p in error.problems] if isinstance(error, ConfigError) else [str(error)]
            self._log.error("reload_failed", message="the last good configuration stays", problems=problems)
            if self._keys is not None:
                self._keys.look_again()  # the keys are followed whatever the configuration is like
        else:
            for key in FIXED:
                if getattr(fresh, key) != getattr(parts.config, key):
                    self._log.warning(
                        "reload_needs_restart", key=key, message=f"{key} changes at a restart only"
                    )
                    fresh = replace(fresh, **{key: getattr(parts.config, key)})
            self._keys = keys
            self._apply(fresh, ring)
        self._notifier.ready("serving")

    def _new_keys(self, ring: KeyRing) -> None:
        """Put the keys of a changed file in force."""
        self._parts.door.change(ring)
        self._parts.metrics.keys_ok = True
        self._log.info("keys_reloaded", keys=len(ring.callers))

    def _bad_keys(self, error: ConfigError) -> None:
        """Keep the keys in force, and say what is wrong with the file."""
        self._parts.metrics.keys_ok = False
        problems = [str(problem) for problem in error.problems]
        self._log.error("keys_reload_failed", message="the last good keys stay in force", problems=problems)

    def _apply(self, fresh: ProxyConfig, ring: KeyRing | None) -> None:
        parts = self._parts
        parts.config = fresh
        parts.door.change(ring)
        parts.door.signatures.window_seconds = fresh.signature_seconds
        parts.catalogue.configure(fresh.models)
        self._log.level = fresh.log.level
        if parts.runtime.core is not None:
            uuids = {name: instance.gpu_uuids for name, instance in parts.instances.items()}
            parts.runtime.reconfigure(core_config(fresh, parts.memory.gpus, uuids))
        parts.metrics.reload_ok = parts.metrics.keys_ok = True
        parts.metrics.reloaded_at = time.time()
        self._log.info("reloaded", models=len(fresh.models), keys=len(ring.callers) if ring else None)

    async def _look(self) -> None:
        """Look at all instances anew."""
        await asyncio.gather(*(instance.observe() for instance in self._parts.up()))

    async def _leave(self) -> int:
        """Let the next process come, and finish what is under way beside it."""
        again = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, again.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: None)
        for chore in self._chores:
            chore.cancel()
        cut = await self._handover.leave(self._notifier, self._parts.config.drain_seconds, again)
        self._log.info("stopped", pid=os.getpid(), cut=cut)
        await self._stop()
        return 0

    async def _drain(self) -> int:
        parts = self._parts
        seconds = parts.config.drain_seconds
        self._log.info("draining", seconds=seconds, connections=len(self._public.connections))
        self._notifier.stopping("draining")
        parts.runtime.post(DrainRequested())
        cut = await self._public.drain(seconds)
        self._log.info("stopped", cut=cut)
        await self._stop()
        return 0

    async def _stop(self) -> None:
        parts = self._parts
        await self._admin.drain(0.5)
        parts.runtime.stop()
        for task in list(parts.tasks):
            task.cancel()
        await asyncio.gather(*parts.tasks, return_exceptions=True)
        for instance in parts.instances.values():
            await instance.stop()
        parts.memory.stop()
        parts.rejections.sum_up()
        await self._recall.finish()
        self._notifier.close()


def _keys_file(config: ProxyConfig) -> KeysFile | None:
    return KeysFile(config.keys_file) if config.keys_file else None


def _limits(config: ProxyConfig) -> Limits:
    limits = config.limits
    return Limits(
        header_bytes=limits.header_bytes,
        header_count=limits.header_count,
        body_bytes=limits.body_bytes,
        head_timeout=limits.head_seconds,
        body_timeout=limits.body_seconds,
        idle_timeout=limits.idle_seconds,
        connect_timeout=limits.connect_seconds,
        first_byte_timeout=limits.first_byte_seconds,
        stall_timeout=limits.stall_seconds,
        max_connections=limits.max_connections,
        max_connections_per_client=limits.max_connections_per_client,
    )


def _forwarding(config: ForwardingConfig) -> Forwarding:
    networks = tuple(network(text) for text in config.trusted_proxies if text != "unix")
    mode = ForwardedMode(config.x_forwarded)
    return Forwarding(mode, config.via or "", networks, trust_unix="unix" in config.trusted_proxies)


def _sockets(config: ProxyConfig) -> tuple[list[socket.socket], list[socket.socket]]:
    public, admin = handed_over()
    try:
        return public or bind(config.listen), admin or bind(config.admin_listen)
    except BindError as error:
        raise StartError(str(error)) from error


def _renew(context: ssl.SSLContext, config: TlsConfig) -> None:
    """Take a new certificate into use; what doesn't fit together leaves the old one as it was."""
    # A context that fails to load a key is left with the new certificate and no key for it: try on another.
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(config.cert, config.key)
    context.load_cert_chain(config.cert, config.key)
    if config.client_ca:
        context.load_verify_locations(config.client_ca)  # adds; who was trusted stays so until a restart


def _tls(config: TlsConfig) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(config.cert, config.key)
        if config.client_ca:
            context.load_verify_locations(config.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise StartError(f"tls: the certificate, key or client_ca can't be used: {error}") from error
    return context


async def _until(event: asyncio.Event) -> None:
    await event.wait()


def _raise_file_limit(config: ProxyConfig, log: Log) -> None:
    """Let the process open as many files as it may: a client's connection needs one, its upstream another."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * config.limits.max_connections + SPARE_FILES
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    if hard < wanted:
        message = f"limits.max_connections needs {wanted} open files, {hard} are allowed: raise LimitNOFILE="
        log.warning("few_files", message=message)


async def serve(path: Path) -> int:
    """Run the proxy; the exit code says how it went."""
    return await Service(path).run()
