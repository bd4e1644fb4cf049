"""What happens to the scheduler: every event is one of these, handed over with its time.

Times are monotonic seconds of one clock, the same that `now` of `Scheduler.handle` is read from. `sampled_at`
is when an observation was *begun* (before NVML or /api/ps was asked); None means now. An observation older
than what it contradicts is ignored, so late answers do no harm.

Requests are named by any hashable id that the shell chooses (the wire's integer); an id may be used again
once its request has ended. Each RequestArrived is answered by exactly one Forward or Reject, unless
RequestCancelled comes first; ForwardFailed opens the question again.

All are to be treated as frozen. Those of every request aren't declared so, and write out what a dataclass
would make at run time: that takes a fifth of the time where it is compiled.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from drover_proxy.vram.model import ModelInfo

RequestId = Hashable


class Needs(str, Enum):
    """What a request asks of a model."""

    GENERATE = "generate"
    EMBED = "embed"


class Outcome(str, Enum):
    """How a forwarded request ended."""

    OK = "ok"
    ERROR = "error"
    CANCELLED = "cancelled"


@dataclass(slots=True, init=False)
class RequestArrived:
    """A client asks for a model; answered by Forward, by Reject, or by Wait and later one of the two."""

    request: RequestId
    model: str
    needs: Needs = Needs.GENERATE
    key: str = ""
    """Name of the caller's key, for the story; no policy hangs on it yet."""

    def __init__(self, request: RequestId, model: str, needs: Needs = Needs.GENERATE, key: str = "") -> None:
        self.request = request
        self.model = model
        self.needs = needs
        self.key = key


@dataclass(slots=True, init=False)
class RequestCancelled:
    """The client left. Ends the request in every state; a RequestFinished after it is ignored."""

    request: RequestId

    def __init__(self, request: RequestId) -> None:
        self.request = request


@dataclass(slots=True, init=False)
class HeadersSent:
    """The head of the upstream's answer was passed on: the request can't be sent elsewhere any more."""

    request: RequestId

    def __init__(self, request: RequestId) -> None:
        self.request = request


@dataclass(frozen=True, slots=True)
class ForwardFailed:
    """A forwarded request never reached its instance (dial error, connection closed before any byte).

    Before HeadersSent only. It goes back to its old place in the queue, once; the second time it is rejected.
    """

    request: RequestId
    reason: str


@dataclass(slots=True, init=False)
class RequestFinished:
    """A forwarded request has ended; its slot is free."""

    request: RequestId
    outcome: Outcome = Outcome.OK

    def __init__(self, request: RequestId, outcome: Outcome = Outcome.OK) -> None:
        self.request = request
        self.outcome = outcome


@dataclass(frozen=True, slots=True)
class RunnerSeen:
    """One entry of /api/ps, with what NVML says its process takes when that is known."""

    model: str
    size_bytes: int
    size_vram_bytes: int
    context: int
    measured_bytes: int | None = None
    """Memory of the runner's process on all GPUs together; None: not measured."""


@dataclass(frozen=True, slots=True)
class LoadFinished:
    """A Load was answered, and /api/ps lists the runner."""

    instance: str
    model: str
    runner: RunnerSeen


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """A Load failed. `message` is shown to the clients who waited for it."""

    instance: str
    model: str
    reason: str
    """Short and stable: timeout, out_of_memory, terminated, unreachable, refused ..."""
    message: str
    retryable: bool = True


@dataclass(frozen=True, slots=True)
class UnloadObserved:
    """A runner that was to be unloaded is gone from /api/ps (not merely: Ollama answered the call)."""

    instance: str
    model: str


@dataclass(frozen=True, slots=True)
class UnloadFailed:
    """An Unload was refused or the runner is still listed after a long time."""

    instance: str
    model: str
    message: str


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """One GPU's memory as NVML shows it."""

    total_bytes: int
    free_bytes: int
    foreign_bytes: int = 0
    """What processes that are none of our runners take (for messages; `free_bytes` decides)."""


@dataclass(frozen=True, slots=True)
class MemoryObserved:
    """A sample of the memory of GPUs, by UUID. Send one every second, or faster while loads are under way."""

    gpus: Mapping[str, GpuMemory]
    sampled_at: float | None = None


@dataclass(frozen=True, slots=True)
class RunnersObserved:
    """What /api/ps of an instance listed. The models named in it should be known before (ModelKnown)."""

    instance: str
    runners: tuple[RunnerSeen, ...]
    sampled_at: float | None = None


@dataclass(frozen=True, slots=True)
class InstanceUp:
    """An instance answers over HTTP. All are down at first; follow it by RunnersObserved to adopt runners."""

    instance: str
    version: str = ""
    """What it answers to /api/version; empty: not known."""


@dataclass(frozen=True, slots=True)
class InstanceDown:
    """An instance is gone, and its runners with it. Requests in flight there are left to the wire."""

    instance: str
    reason: str


@dataclass(frozen=True, slots=True)
class ModelKnown:
    """A model exists, or has changed. Ends a withdrawal of the same name."""

    model: str
    info: ModelInfo


@dataclass(frozen=True, slots=True)
class ModelGone:
    """A model was deleted. Who waits for it is rejected. Ends a withdrawal of the same name."""

    model: str


@dataclass(frozen=True, slots=True)
class WithdrawModel:
    """A model is about to be deleted or made anew: unload it everywhere, then say Withdrawn.

    Until the withdrawal ends (ModelKnown or ModelGone of that name, or WithdrawalEnded), nothing is loaded
    from its blob and requests for it wait.
    """

    ticket: Hashable
    model: str


@dataclass(frozen=True, slots=True)
class WithdrawalEnded:
    """The management call is over, whatever became of it, or was given up."""

    ticket: Hashable


@dataclass(frozen=True, slots=True)
class SiblingsObserved:
    """What other processes of this proxy hold during a handover, all together. Send one before each event."""

    busy: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Requests with a runner, by instance and blob."""
    leaving: frozenset[tuple[str, str]] = frozenset()
    """Runners that one of them unloads."""
    unloads: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """How often they have unloaded each runner: what happened since the last event shows too."""
    changes: int = 0
    """How often they have changed what is loaded."""
    waits: frozenset[str] = frozenset()
    """Blobs that requests of elder processes wait for."""
    owns_memory: bool = False
    """One of them makes room or loads, or an elder wants to."""


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """The proxy stops: no new requests, no new loads; what runs, or waits for a ready runner, is served."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed. Send one every 0.25 to 1 s."""


Event = (
    RequestArrived
    | RequestCancelled
    | HeadersSent
    | ForwardFailed
    | RequestFinished
    | LoadFinished
    | LoadFailed
    | UnloadObserved
    | UnloadFailed
    | MemoryObserved
    | RunnersObserved
    | InstanceUp
    | InstanceDown
    | ModelKnown
    | ModelGone
    | WithdrawModel
    | WithdrawalEnded
    | SiblingsObserved
    | DrainRequested
    | Tick
)
