"""The life of the process: start, drain, stop."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import ssl
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from drover_proxy import __version__
from drover_proxy.admin.metrics import Metrics
from drover_proxy.admin.server import Admin
from drover_proxy.app import wireconfig
from drover_proxy.app.catalogue import Catalogue
from drover_proxy.app.coreconfig import core_config, resolve_gpus
from drover_proxy.app.gateway import Gateway
from drover_proxy.app.handover import Handover
from drover_proxy.app.instance import Instance
from drover_proxy.app.memory import Memory
from drover_proxy.app.parts import Parts
from drover_proxy.app.recall import Recall, state_folder
from drover_proxy.app.reloading import Reloaded, Reloader
from drover_proxy.app.runtime import Runtime
from drover_proxy.app.siblings import folder
from drover_proxy.build import BUILD
from drover_proxy.config import ConfigError, load
from drover_proxy.core.events import DrainRequested
from drover_proxy.drivers.ending import end
from drover_proxy.drivers.log import Log
from drover_proxy.drivers.notify import Notifier, watchdog_seconds
from drover_proxy.drivers.ollama import OllamaClient
from drover_proxy.drivers.sockets import BindError, bind, handed_over
from drover_proxy.guard.door import Door
from drover_proxy.guard.lasting import Lasting
from drover_proxy.guard.watch import KeysFile
from drover_proxy.wire import Limits, Server

GPU_PATIENCE_SECONDS = 10.0
"""How long the start waits for NVML before it serves without; the search goes on meanwhile."""
CATALOGUE_PATIENCE_SECONDS = 5.0
TAKE_OVER_SECONDS = 45.0
"""The same while an old process accepts, which knows the models: half of what systemd gives a start."""
BIND_PATIENCE_SECONDS = 5.0
"""How long a restart waits for the admin address; the old process serves clients meanwhile."""
LINGER_SECONDS = 1.0
"""How long a client that was accepted just before the end may still send its request."""

GARBAGE_OBJECTS = 10_000
"""So many more objects than before make Python look for circles. No request leaves one behind."""


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
        keys = KeysFile(config.auth.keys_file) if config.auth.keys_file else None
        door = Door(keys.load() if keys else None, config.auth.signature_seconds)
        self._parts: Parts = Parts(config, self._log, metrics, runtime, catalogue, memory, door)
        self._text: Callable[[], bytes] | None = None
        limits, forwarding = wireconfig.limits(config.limits), wireconfig.forwarding(config.forwarding)
        self._public = Server(Gateway(self._parts, self._page), limits, forwarding)
        self._admin = Server(Admin(self._parts, self._page, self._reload), Limits())
        self._parts.servers += [self._public, self._admin]
        self._public.handshake_failed = self._handshake_failed
        self._reloader = Reloader(path, self._parts, self._public, keys)
        if (shared := folder()) is not None:
            door.signatures.replays.keep_in(shared, partial(self._signatures_unkept, "restart"))
        self._outlive_reboots()
        self._handover = Handover(self._log, runtime, self._public, self._admin)
        self._chores: list[asyncio.Task[None]] = []

    def _signatures_unkept(self, over: str, error: OSError) -> None:
        message = f"a {over} forgets which signed requests came already, and could take one a second time"
        self._log.error("signatures_not_kept", message=message, error=str(error))

    def _outlive_reboots(self) -> None:
        """Find out which signed requests came before a reboot, and keep those that come now."""
        replays = self._parts.door.signatures.replays
        state, failed = state_folder(), partial(self._signatures_unkept, "reboot")
        replays.blank = state is None
        if state is not None:
            try:
                replays.outlive_reboots(Lasting(state, failed))
            except OSError as error:
                replays.blank = True
                failed(error)

    def _handshake_failed(self, client: str, error: ssl.SSLError) -> None:
        reason = (error.reason or "unknown").lower()
        self._parts.metrics.tls_failures[reason] += 1
        why = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else ""
        self._parts.rejections.tell(client, "tls_failed", message=reason, why=why)

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
        try:
            self._reloader.begin()
        except ConfigError as problem:
            raise StartError(str(problem)) from problem
        public, admin = await self._sockets()
        loop.add_signal_handler(signal.SIGTERM, self._stopping.set)
        loop.add_signal_handler(signal.SIGINT, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        wireconfig.raise_file_limit(config.limits.max_connections, self._log)
        self._log.info("starting", version=__version__, build=BUILD, config=str(self._path))
        if parts.door.ring is None:
            self._reloader.say_open()
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
        places = await self._public.listen((one for one in public if one not in near), tls=self._public.tls)
        places += await self._public.listen(near)
        admin_places = await self._admin.listen(admin)
        self._handover.serving()
        works = (
            parts.catalogue.keep_fresh(),
            self._feed_watchdog(),
            self._handover.watch(),
        )
        self._chores = [parts.spawn(work) for work in works]
        for following in self._reloader.following():
            parts.spawn(following)  # no chore: who has to go goes also while this process hands over
        self._log.info("ready", listen=places, admin_listen=admin_places, models=len(parts.catalogue.models))
        gc.freeze()  # what is here by now stays: no collection need look at it, and stop streams meanwhile
        gc.set_threshold(GARBAGE_OBJECTS)
        self._notifier.ready(f"serving on {', '.join(places)}")
        await self._stopping.wait()
        return await (self._leave() if self._handover.prepare() else self._drain())

    async def _sockets(self) -> tuple[list[socket.socket], list[socket.socket]]:
        """Take the sockets that are handed over, bind the others."""
        config = self._parts.config
        public, admin = handed_over()
        until = time.monotonic() + (BIND_PATIENCE_SECONDS if public else 0.0)
        told = False
        while True:
            try:
                return public or bind(config.listen), admin or bind(config.admin_listen)
            except BindError as error:
                if time.monotonic() >= until:
                    raise StartError(str(error)) from error
                if not told:
                    self._log.warning("address_taken", message=str(error))
                told = True
            await asyncio.sleep(0.05)

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
        patience = TAKE_OVER_SECONDS if self._handover.taking_over else CATALOGUE_PATIENCE_SECONDS
        deadline = asyncio.get_running_loop().time() + patience
        while self._parts.catalogue.read_at is None and asyncio.get_running_loop().time() < deadline:
            if self._stopping.is_set():
                return
            await asyncio.sleep(0.02)

    async def _feed_watchdog(self) -> None:
        period = watchdog_seconds()
        while period is not None:
            self._notifier.watchdog()
            await asyncio.sleep(period)

    def _reload(self) -> Reloaded:
        self._notifier.reloading()
        done = self._reloader.reload()
        self._notifier.ready("serving by the last good configuration" if done.problems else "serving")
        return done

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
        cut = await self._public.drain(seconds, linger=min(seconds, LINGER_SECONDS))
        self._log.info("stopped", cut=cut)
        await self._stop()
        return 0

    async def _stop(self) -> None:
        parts = self._parts
        await self._admin.drain(0.5)
        parts.runtime.stop()
        await end(parts.tasks)
        for instance in parts.instances.values():
            await instance.stop()
        parts.memory.stop()
        parts.rejections.sum_up()
        await self._recall.finish()
        await parts.door.signatures.replays.finish()
        self._notifier.close()


async def _until(event: asyncio.Event) -> None:
    await event.wait()


async def serve(path: Path) -> int:
    """Run the proxy; the exit code says how it went."""
    return await Service(path).run()
