"""Between the pure core and the world: hands events over with their time, and carries the commands out."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Final, Protocol

from drover_proxy.admin.metrics import Metrics
from drover_proxy.core.commands import (
    Alert,
    Command,
    Drained,
    Forward,
    Load,
    Reject,
    Remember,
    Unload,
    Withdrawn,
)
from drover_proxy.core.config import CoreConfig
from drover_proxy.core.events import (
    Event,
    Outcome,
    RequestArrived,
    RequestFinished,
    Tick,
    WithdrawalEnded,
    WithdrawModel,
)
from drover_proxy.core.learned import Learned
from drover_proxy.core.scheduler import Scheduler
from drover_proxy.drivers.log import Log

TICK_SECONDS = 0.25
MONOTONIC: Final = time.monotonic


class Waiter(Protocol):
    """A request as the runtime sees it: told once that it may go, or why it may not."""

    def forward(self, command: Forward) -> None:
        """Go: the runner is ready and the slot is yours."""

    def reject(self, command: Reject) -> None:
        """Don't."""


class Loader(Protocol):
    """An instance as the runtime sees it."""

    def load(self, command: Load) -> None:
        """Begin a load; an event reports its end."""

    def unload(self, command: Unload) -> None:
        """Begin an unload; an event reports its end."""


class Shared(Protocol):
    """What other processes hold during a handover, as the runtime sees it."""

    def begin(self) -> Event | None:
        """Take the lock; return what has changed with the others."""

    def end(self, core: Scheduler | None) -> None:
        """Tell the others what is held now, and give the lock back."""


class Runtime:
    """Owns the scheduler. Everything runs on the event loop's thread."""

    def __init__(self, log: Log, metrics: Metrics) -> None:
        self.log = log
        self.metrics = metrics
        self.core: Scheduler | None = None
        self.config: CoreConfig | None = None
        self.waiters: dict[Hashable, Waiter] = {}
        self.loaders: dict[str, Loader] = {}
        self.drained = asyncio.Event()
        self.hurry: Callable[[bool], None] = lambda _fast: None
        """Told on each tick whether memory should be looked at often."""
        self.sharing: Shared | None = None
        """During a handover only."""
        self.remember: Callable[[Learned], None] = lambda _learned: None
        """Told what the core wants kept for the next start."""
        self.busy_loaders = 0
        """Loads and unloads under way."""
        self._events: deque[Event] = deque()
        self._handling = False
        self._withdrawals: dict[Hashable, asyncio.Future[Withdrawn]] = {}
        self._tickets = itertools.count(1)
        self._timer: asyncio.TimerHandle | None = None

    def start(self, config: CoreConfig, learned: Learned | None = None) -> None:
        """Begin to schedule; before that, requests are told to come again."""
        self.config = config
        self.core = Scheduler(config, learned)
        self._tick()

    def reconfigure(self, config: CoreConfig) -> None:
        """Let a reload take effect; what is loaded and who waits stays."""
        self.config = config
        if self.core is not None:
            self.core.reconfigure(config)

    def stop(self) -> None:
        """Stop the clock."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def post(self, event: Event) -> None:
        """Hand an event to the core and carry out what it wants; events posted meanwhile follow in order."""
        if self._handling:
            self._events.append(event)
            return
        self._handling = True
        sharing = self.sharing if self.core is not None else None
        try:
            if sharing is not None and (heard := sharing.begin()) is not None:
                self._handle(heard)
            self._handle(event)
            while self._events:
                self._handle(self._events.popleft())
        finally:
            if sharing is not None:
                sharing.end(self.core)
            self._handling = False

    def arrive(self, event: RequestArrived, waiter: Waiter) -> None:
        """Let a request queue; the waiter hears what becomes of it."""
        if self.core is None:
            waiter.reject(starting(event.request))
            return
        self.waiters[event.request] = waiter
        self.post(event)

    def forget(self, request: Hashable) -> None:
        """Stop telling about a request that is over."""
        if request in self.waiters:
            del self.waiters[request]

    async def withdraw(self, model: str, timeout_seconds: float) -> tuple[Hashable, Withdrawn]:
        """Have a model unloaded everywhere, and kept so until `end_withdrawal`."""
        ticket = f"withdrawal-{next(self._tickets)}"
        future: asyncio.Future[Withdrawn] = asyncio.get_running_loop().create_future()
        self._withdrawals[ticket] = future
        try:
            self.post(WithdrawModel(ticket, model))
            return ticket, await asyncio.wait_for(future, timeout_seconds)
        except asyncio.TimeoutError:
            return ticket, Withdrawn(ticket, ok=False, message=f"not unloaded within {timeout_seconds:g} s")
        except asyncio.CancelledError:
            self.end_withdrawal(ticket)
            raise
        finally:
            self._withdrawals.pop(ticket, None)

    def end_withdrawal(self, ticket: Hashable) -> None:
        """Let the model be loaded again."""
        self.post(WithdrawalEnded(ticket))

    def _tick(self) -> None:
        self.post(Tick())
        self.hurry(self.busy_loaders > 0 or bool(self.waiting()))
        self._timer = asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick)

    def waiting(self) -> int:
        """How many requests wait."""
        return self.core.state.waiting_count if self.core is not None else 0

    def _handle(self, event: Event) -> None:
        if self.core is None:
            return
        try:
            commands = self.core.handle(event, MONOTONIC())
        except Exception as error:  # noqa: BLE001 - a bug of the core costs one request, never the proxy
            self.metrics.alerts["core_error"] += 1
            self.log.write("error", "core_error", during=type(event).__name__, error=repr(error))
            request = getattr(event, "request", None)
            if request is not None and isinstance(event, RequestArrived):
                self._reject(Reject(request, 500, "internal", "the scheduler failed; see the proxy's log"))
            return
        for command in commands:
            if isinstance(command, Forward):
                self._forward(command)
            else:
                self._try(command)

    def _forward(self, command: Forward) -> None:
        waiter = self.waiters.get(command.request)
        if waiter is None:
            return
        try:
            waiter.forward(command)
        except Exception as error:  # noqa: BLE001 - a bug costs one request, never the proxy
            self._failed(command, error)
            self._reject(Reject(command.request, 500, "internal", "the proxy failed; see its log"))
            self.post(RequestFinished(command.request, Outcome.ERROR))

    def _try(self, command: Command) -> None:
        try:
            self._carry_out(command)
        except Exception as error:  # noqa: BLE001 - the commands after it, and the clock, must go on
            self._failed(command, error)

    def _failed(self, command: Command, error: Exception) -> None:
        self.metrics.alerts["command_error"] += 1
        self.log.write("error", "command_error", command=type(command).__name__, error=repr(error))

    def _carry_out(self, command: Command) -> None:
        if isinstance(command, Reject):
            self._reject(command)
        elif isinstance(command, Load):
            self.log.info(
                "load_started",
                instance=command.instance,
                model=command.model,
                context=command.context,
                predicted_bytes=command.predicted_bytes,
            )
            self.loaders[command.instance].load(command)
        elif isinstance(command, Unload):
            self.log.info(
                "unload_started", instance=command.instance, model=command.model, reason=command.reason
            )
            self.loaders[command.instance].unload(command)
        elif isinstance(command, Withdrawn):
            future = self._withdrawals.get(command.ticket)
            if future is not None and not future.done():
                future.set_result(command)
        elif isinstance(command, Drained):
            self.drained.set()
        elif isinstance(command, Remember):
            self.remember(command.learned)
        elif isinstance(command, Alert):
            self.metrics.alerts[command.code] += 1
            self.log.warning(
                command.code, message=command.message, instance=command.instance, model=command.model
            )

    def _reject(self, command: Reject) -> None:
        waiter = self.waiters.pop(command.request, None)
        if waiter is not None:
            waiter.reject(command)


def starting(request: Hashable) -> Reject:
    """What a request hears that comes before the GPUs are known."""
    message = "the proxy is waiting for the GPUs; see /readyz on its admin address"
    return Reject(request, 503, "starting", message, retry_after_seconds=2)
