"""Runners, requests, plans and what else the scheduler keeps account of.

They are changed only by the methods of State.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from drover_proxy.core.events import RequestArrived, RequestId
from drover_proxy.core.ledger import NEVER, RunnerKey
from drover_proxy.core.sizing import Need, RunSpec
from drover_proxy.core.transitions import RequestState, RunnerState

STRAY = "name:"
"""Blob of a runner whose model nobody has told us of, followed by its name."""
ALL_SLOTS = 1 << 16
CHANGING = frozenset({RunnerState.LOADING, RunnerState.UNLOADING})
LIVE = frozenset({RunnerState.READY, RunnerState.DRAINING, RunnerState.UNLOADING})
"""States in which a runner holds memory that the ledger books as its own."""


@dataclass(slots=True, eq=False)
class Runner:
    """A model in an instance."""

    key: RunnerKey
    model: str
    """The name it is unloaded by: the one it was loaded by, or another of the blob once that is deleted."""
    context: int
    """What it was asked to have; for an adopted one, what it has."""
    slots: int
    state: RunnerState = RunnerState.ABSENT
    active: set[RequestId] = field(default_factory=set)
    changed_at: float = NEVER
    ready_at: float = NEVER
    load_began_at: float = NEVER
    last_used_at: float = NEVER
    deadline: float | None = None
    """When a load, an unload or the memory of a failure ends by itself."""
    spec: RunSpec | None = None
    need: Need | None = None
    seen_context: int = 0
    free_at_load: dict[str, int] = field(default_factory=dict)
    """What its GPUs had free when its load was sent."""
    reported_bytes: dict[str, int] = field(default_factory=dict)
    """What Ollama says that it takes of each GPU."""
    left_bytes: dict[str, int] = field(default_factory=dict)
    """What it left free by Ollama's books, see beside.py; empty where nobody saw its load."""
    unload_failures: int = 0
    unload_not_before: float = NEVER
    spilled: bool = False
    """Partly on the CPU: it must go."""
    ghost: bool = False
    """Its model was deleted: Ollama answers 404 to an unload, and nobody can use it."""
    suspect_since: float | None = None
    """A request didn't get through: nothing more is sent until it is seen again or a moment has passed."""
    names: set[str] = field(default_factory=set)
    """Names that loads and unloads of it were sent under: their answers come under the same."""
    drained_for: RunnerKey | None = None
    """The plan that it drains for."""
    elsewhere: int = 0
    """Slots that siblings have taken, or are about to."""
    taken_away: bool = False
    """A sibling was about to unload it: that it vanishes is no surprise."""

    @property
    def idle(self) -> bool:
        """Whether no request is with it, ours or a sibling's."""
        return not self.active and not self.elsewhere


class Request:
    """A request between arrival and end."""

    __slots__ = (
        "arrived_at",
        "bounced",
        "forwarded_at",
        "id",
        "key",
        "model",
        "needs",
        "runner",
        "sequence",
        "state",
    )

    def __init__(self, event: RequestArrived, arrived_at: float) -> None:
        self.id = event.request
        self.model = event.model
        self.needs = event.needs
        self.key = event.key
        self.arrived_at = arrived_at
        self.sequence = 0
        self.state: RequestState = RequestState.WAITING
        self.runner: Runner | None = None
        self.forwarded_at: float = NEVER
        self.bounced = 0


@dataclass(slots=True, eq=False)
class Plan:
    """Room being made for a load: its GPUs are claimed until the load is sent or the plan is dropped."""

    spec: RunSpec
    since: float


@dataclass(slots=True)
class Failure:
    """Loads of a blob that failed in a row."""

    count: int = 0
    forget_at: float = NEVER


@dataclass(slots=True)
class Cooldown:
    """A blob that could not be loaded: requests for it are refused at once."""

    until: float
    status: int
    code: str
    message: str
    retryable: bool


@dataclass(slots=True)
class Withdrawal:
    """A model being taken out of all instances."""

    ticket: Hashable
    model: str
    blob: str
    told: bool = False


@dataclass(slots=True)
class Timing:
    """Seconds that something takes, as a moving average."""

    seconds: float

    def add(self, seconds: float) -> None:
        """Take one more into account."""
        self.seconds += 0.2 * (seconds - self.seconds)
