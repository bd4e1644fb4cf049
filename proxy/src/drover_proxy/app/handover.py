"""From the old process to the new one: `systemctl restart` loses no request and cuts no stream.

1. Told to stop, the old process opens its page (siblings.py), gives up the admin address, and lets its
   supervisor go. For systemd it has ended, so the new process is started at once.
2. Until the new one accepts connections the old one still does, and tells each client to close after its
   answer. They share the listening sockets, so no connection waits for either.
3. Then the old one accepts no more. What is under way, and what comes on connections that it still has, it
   finishes; idle connections are closed after a moment, the rest is cut after `drain_seconds`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping

from drover_proxy.app.runtime import Runtime
from drover_proxy.app.siblings import Sharing, folder
from drover_proxy.core.events import Tick
from drover_proxy.drivers.log import Log
from drover_proxy.drivers.notify import Notifier
from drover_proxy.supervisor import Supervisor
from drover_proxy.wire import Server

OVERLAP_SECONDS = 15.0
"""How long the old process goes on accepting when no new one comes: after `systemctl stop`."""
LINGER_SECONDS = 5.0
"""How long connections that are idle, or still shake hands, may bring one more request."""
LOOK_SECONDS = 0.25
WAIT_SECONDS = 0.02
TELL_SECONDS = 10.0


class Handover:
    """What one process does when it begins, and when it is told to stop."""

    def __init__(self, log: Log, runtime: Runtime, public: Server, admin: Server) -> None:
        self.supervisor = Supervisor()
        self._log = log
        self._runtime = runtime
        self._public = public
        self._admin = admin
        self._sharing: Sharing | None = None
        self._observe: Callable[[], Awaitable[object]] | None = None

    def begin(self, addresses: Mapping[str, str], observe: Callable[[], Awaitable[object]]) -> None:
        """Look for an old process before anything is forwarded; `observe` looks at all instances anew."""
        self._observe = observe
        where = folder()
        if where is None:
            return
        try:
            sharing = Sharing(where, addresses, self._log)
            if sharing.look():
                sharing.open()
        except OSError as error:  # a full disk: better to serve than to count well
            message = "an old process isn't heard, nor hears of us: both may use the same slots until it ends"
            self._log.error("handover_page_unwritten", message=message, error=str(error))
            return
        self._sharing = sharing
        if sharing.siblings:
            self._runtime.sharing = sharing
            old = [{"pid": page.pid, "requests": page.requests} for page in sharing.siblings]
            self._log.info("taking_over", processes=old)

    def serving(self) -> None:
        """Say that connections are accepted."""
        if self._sharing is not None:
            self._sharing.serving = True
            self._runtime.post(Tick())

    async def watch(self) -> None:
        """Follow the old process until it has ended."""
        sharing, seen = self._sharing, 0
        while sharing is not None and self._runtime.sharing is not None:
            alive = sharing.look()
            self._runtime.post(Tick())
            changes = sum(page.changes for page in sharing.siblings)
            if changes != seen and self._observe is not None:
                seen = changes
                await self._observe()
            if not alive and not sharing.leaving:
                self._runtime.sharing = None
                sharing.close()
                self._log.info("taken_over")
            await asyncio.sleep(LOOK_SECONDS)

    @property
    def taking_over(self) -> bool:
        """Whether an old process goes on accepting until this one serves."""
        return self._runtime.sharing is not None

    def prepare(self) -> bool:
        """Open the page that a new process will read; False: none can come while this one goes on."""
        sharing = self._sharing
        if not self.supervisor.present or sharing is None or not sharing.usable:
            return False
        sharing.leaving, sharing.serving = True, False
        try:
            sharing.open(self._runtime.core)
        except OSError as error:
            message = "what is under way is finished first, and the next process waits for that"
            self._log.error("handover_page_unwritten", message=message, error=str(error))
            return False
        return True

    async def leave(self, notifier: Notifier, seconds: float, again: asyncio.Event) -> int:
        """Hand over, as was prepared, and finish what is under way; returns how many exchanges were cut.

        Args:
            notifier: Closed here: to systemd, this process has ended.
            seconds: What is left after them is cut.
            again: Set when told to stop once more: then it is cut at once.
        """
        sharing, public = self._sharing, self._public
        if sharing is None:
            raise RuntimeError("there is nobody to hand over to")
        ends_at = time.monotonic() + seconds
        self._runtime.sharing = sharing
        public.draining = True
        self._admin.stop_accepting()
        await asyncio.sleep(0)  # the admin address is free when the loop has come round
        notifier.stopping("handing over")
        notifier.close()
        self._tell("handing_over", seconds=seconds)
        self.supervisor.release()
        watching = asyncio.get_running_loop().create_task(self.watch())
        await self._successor(again, min(ends_at, time.monotonic() + OVERLAP_SECONDS))
        self._tell("handed_over", to=[page.pid for page in sharing.siblings if page.serving])
        cut = await self._finish(ends_at, again)
        watching.cancel()
        sharing.close()
        self._runtime.sharing = None
        return cut

    async def _successor(self, again: asyncio.Event, until: float) -> None:
        sharing = self._sharing
        while sharing is not None and not again.is_set() and time.monotonic() < until:
            sharing.look()
            if sharing.successor_serves:
                return
            await asyncio.sleep(WAIT_SECONDS)

    async def _finish(self, ends_at: float, again: asyncio.Event) -> int:
        loop = asyncio.get_running_loop()
        left = max(0.0, ends_at - time.monotonic())
        drain = loop.create_task(self._public.drain(left, linger=min(left, LINGER_SECONDS)))
        told = loop.create_task(again.wait())
        while not drain.done():
            await asyncio.wait({drain, told}, timeout=TELL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if told.done() and not drain.done():
                drain.cancel()
                await asyncio.wait({drain})
                return await self._public.drain(0.0)
            if not drain.done():
                self._tell("draining")
        told.cancel()
        return drain.result()

    def _tell(self, event: str, **more: object) -> None:
        core = self._runtime.core
        waiting = core.state.waiting_count if core is not None else 0
        requests = len(core.state.requests) if core is not None else 0
        connections = len(self._public.connections)
        self._log.info(
            event, pid=os.getpid(), connections=connections, requests=requests, waiting=waiting, **more
        )
