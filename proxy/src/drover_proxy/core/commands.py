"""What the scheduler wants done. The shell carries a command out and reports with an event; it never waits.

| command | answered by |
|---|---|
| Forward | HeadersSent, then RequestFinished; ForwardFailed; RequestCancelled |
| Load | LoadFinished or LoadFailed (also after `timeout_seconds`) |
| Unload | UnloadObserved or UnloadFailed |
| Reject, Wait, Withdrawn, Drained, Alert, Remember | nothing |
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

from drover_proxy.core.events import RequestId
from drover_proxy.core.learned import Learned


@dataclass(slots=True, init=False)
class Forward:  # as good as frozen: see events.py
    """Send a waiting request to an instance: its runner is ready and has a free slot."""

    request: RequestId
    instance: str
    model: str
    options: Mapping[str, int] = field(default_factory=dict)
    """Runner options that a native request must carry instead of any that the client sent."""
    waited_seconds: float = 0.0
    """From arrival to now, the load included."""
    load_seconds: float = 0.0
    """The part of it that a load of this model was under way."""

    def __init__(
        self,
        request: RequestId,
        instance: str,
        model: str,
        options: Mapping[str, int] | None = None,
        waited_seconds: float = 0.0,
        load_seconds: float = 0.0,
    ) -> None:
        self.request = request
        self.instance = instance
        self.model = model
        self.options = {} if options is None else options
        self.waited_seconds = waited_seconds
        self.load_seconds = load_seconds


@dataclass(frozen=True, slots=True)
class Load:
    """Load a model with a detached call, keep_alive -1, and these options; room has been made for it."""

    instance: str
    model: str
    context: int
    """Tokens a slot that the runner is expected to have."""
    options: Mapping[str, int] = field(default_factory=dict)
    """To be sent with the call; empty when the model's own defaults give `context`."""
    embedding_only: bool = False
    """Load through /api/embed: /api/generate refuses such a model."""
    predicted_bytes: int = 0
    timeout_seconds: float = 600.0


@dataclass(frozen=True, slots=True)
class Unload:
    """Unload a model (keep_alive 0 through /api/generate), then watch /api/ps until it is gone."""

    instance: str
    model: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Reject:
    """Answer a request with an error."""

    request: RequestId
    status: int
    code: str
    """Stable, for X-Drover-Error: queue_full, queue_timeout, model_too_large, load_failed ..."""
    message: str
    retry_after_seconds: int | None = None
    """For the Retry-After header; None: asking again is of no use (`x-should-retry: false`)."""


@dataclass(frozen=True, slots=True)
class Wait:
    """A request has been queued; sent once. `position` counts from 1 among those who wait for its model."""

    request: RequestId
    position: int


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """No runner of the withdrawn model is left (`ok`), or one could not be unloaded."""

    ticket: Hashable
    ok: bool = True
    message: str = ""


@dataclass(frozen=True, slots=True)
class Drained:
    """After DrainRequested: no request is left."""


@dataclass(frozen=True, slots=True)
class Alert:
    """Something an operator should know of; log it and count it by code."""

    code: str
    """load_failed, load_spilled, runner_spilled, runner_vanished, unload_failed, memory_late ..."""
    message: str
    instance: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class Remember:
    """A load has taught something: keep this for the next start, instead of what was kept before."""

    learned: Learned


Command = Forward | Load | Unload | Reject | Wait | Withdrawn | Drained | Alert | Remember
