"""What the scheduler is told once: GPUs, instances, profiles of models, limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU by UUID, with the memory that NVML calls its total."""

    uuid: str
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One `ollama serve`, bound to a set of GPUs; without GPUs it runs on the CPU and memory isn't managed.

    Instances may overlap on a GPU. The settings are those of its environment: they decide what a runner
    takes, and the scheduler can't change them.
    """

    name: str
    gpu_uuids: tuple[str, ...] = ()
    slots: int = 1
    """OLLAMA_NUM_PARALLEL: what a runner allocates its cache for, and the most that it answers at a time."""
    context_default: int = 4096
    """OLLAMA_CONTEXT_LENGTH: the context of a model whose Modelfile sets none."""
    kv_type: str = "f16"
    """OLLAMA_KV_CACHE_TYPE."""
    flash_attention: bool = True
    """OLLAMA_FLASH_ATTENTION."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """How one model is to be run."""

    context: int | None = None
    """Tokens of context a slot; None leaves it to the Modelfile, then to the instance's default.

    Only the native API can carry a context of its own: a client of /v1 always gets the Modelfile's. A
    model that both kinds use should have its context in the Modelfile, else they reload each other.
    """
    slots: int | None = None
    """Requests at a time, at most what the instance has; None: as many as the instance has."""
    pin: bool = False
    """Never evicted for another model."""
    priority: int = 0
    """A model of higher priority is loaded before others that wait, until one of those starves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """Bounds of the queue."""

    max_waiting: int = 512
    max_wait_seconds: float = 600.0
    starve_seconds: float = 30.0
    """A model that waits longer makes the scheduler stop admitting to a busy victim."""
    no_instance_seconds: float = 60.0
    """How long a request waits while no instance that could serve it is up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadLimits:
    """Bounds of loading and unloading."""

    reserve_bytes: int = 1024 * MIB
    """LLAMA_ARG_FIT_TARGET: what llama.cpp leaves free on each GPU; with less it spills to the CPU."""
    timeout_seconds: float = 600.0
    memory_timeout_seconds: float = 30.0
    """How long freed memory may take to show, and how long a request waits for memory that nobody frees."""
    unload_timeout_seconds: float = 30.0
    """How long an unload may take before the runner counts as still there."""
    retries: int = 1
    cooldown_seconds: float = 60.0
    """How long requests for a model that could not be loaded are refused at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreConfig:
    """Everything the scheduler is configured with."""

    gpus: tuple[Gpu, ...] = ()
    instances: tuple[Instance, ...]
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    queue: QueueLimits = field(default_factory=QueueLimits)
    loads: LoadLimits = field(default_factory=LoadLimits)

    def __post_init__(self) -> None:
        """Refuse what can't be meant: no instances, doubled names, GPUs that nobody declared."""
        names = [instance.name for instance in self.instances]
        if not names:
            raise ValueError("instances: at least one is needed to serve models")
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"instances: the name {doubled[0]!r} stands twice; names must differ")
        known = {gpu.uuid for gpu in self.gpus}
        for instance in self.instances:
            unknown = [uuid for uuid in instance.gpu_uuids if uuid not in known]
            if unknown:
                raise ValueError(
                    f"instances.{instance.name}: GPU {unknown[0]!r} is not among the host's GPUs "
                    f"({', '.join(sorted(known)) or 'none'})"
                )
            if instance.slots < 1 or instance.context_default < 1:
                raise ValueError(f"instances.{instance.name}: slots and context_default must be at least 1")
