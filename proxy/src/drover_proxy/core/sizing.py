"""How a model runs in an instance, and the room that it needs there.

What was measured after an earlier load counts more than the prediction. A load that spilled to the CPU
teaches a floor: so much at least, the next time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from drover_proxy.core.config import MIB, CoreConfig, Instance, Profile
from drover_proxy.core.learned import SIZES_MOST, LearnedSize
from drover_proxy.core.ledger import RunnerKey
from drover_proxy.vram import (
    Footprint,
    ModelInfo,
    footprint,
    guessed_bytes,
    needed_free_bytes,
    own_engine_bytes,
)

MARGIN_FRACTION = 0.03
MARGIN_BYTES = 256 * MIB
"""Kept in hand for what was never measured: the greater of the two."""
SAME_FRACTION = 0.85
"""A measurement that is lower, but no lower than this, is of the same runner with a smaller batch."""
VISION_CONTEXT = 2048
LEAST_CONTEXT = 4
SINGLE_SLOT = frozenset(
    {
        "mllama",
        "qwen3vl",
        "qwen3vlmoe",
        "qwen35",
        "qwen35moe",
        "qwen3next",
        "lfm2",
        "lfm2moe",
        "nemotron_h",
        "nemotron_h_moe",
        "nemotron_h_omni",
    }
)
"""Architectures that Ollama gives one slot whatever OLLAMA_NUM_PARALLEL says."""
NO_PROFILE = Profile()
LLAMA_SERVER = (0, 30)
"""The first version of Ollama that runs models by `llama-server`, and guesses what they take."""


class Measure(NamedTuple):
    """What a measurement holds for."""

    blob: str
    context: int
    slots: int
    gpus: int
    kv_type: str


@dataclass(frozen=True, slots=True)
class RunSpec:
    """How one model runs in one instance."""

    key: RunnerKey
    model: str
    context: int
    runner_slots: int
    """What the runner allocates its cache for."""
    slots: int
    """What this model may use of them."""
    options: Mapping[str, int]
    gpu_uuids: tuple[str, ...]
    kv_type: str

    @property
    def measure(self) -> Measure:
        """Under which its size is remembered."""
        return Measure(self.key.blob, self.context, self.runner_slots, len(self.gpu_uuids), self.kv_type)


@dataclass(frozen=True, slots=True)
class Need:
    """The room a load needs on its GPUs: a fixed part on each, the rest divided as there is room."""

    gpu_uuids: tuple[str, ...]
    fixed_bytes: int
    divisible_bytes: int
    reserve_bytes: int
    """Must stay free on each GPU besides."""
    beside_bytes: int = 0
    """What Ollama itself must believe free, or it evicts; counts only while other runners stay there."""

    @property
    def total_bytes(self) -> int:
        """What the load takes on all GPUs together."""
        return self.fixed_bytes * len(self.gpu_uuids) + self.divisible_bytes

    def usable(self, free: Mapping[str, int]) -> dict[str, int]:
        """Return what each GPU could take of the divisible part."""
        return {uuid: free[uuid] - self.fixed_bytes - self.reserve_bytes for uuid in self.gpu_uuids}

    def fits(self, free: Mapping[str, int]) -> bool:
        """Whether it fits into what is free; every GPU must bear at least the fixed part."""
        usable = self.usable(free)
        if not usable:
            return True
        return min(usable.values()) >= 0 and sum(usable.values()) >= self.divisible_bytes

    def shares(self, free: Mapping[str, int], total_bytes: int | None = None) -> dict[str, int]:
        """Return what each GPU bears: llama.cpp divides layers as memory is free."""
        usable = {uuid: max(0, room) for uuid, room in self.usable(free).items()}
        whole = sum(usable.values())
        divisible = self.divisible_bytes
        if total_bytes is not None:
            divisible = max(0, total_bytes - self.fixed_bytes * len(self.gpu_uuids))
        return {
            uuid: self.fixed_bytes + (divisible * room // whole if whole else divisible // len(usable))
            for uuid, room in usable.items()
        }


@dataclass(slots=True)
class Sizing:
    """Predicts, and remembers what was measured."""

    config: CoreConfig
    measured: dict[Measure, int] = field(default_factory=dict)
    floors: dict[Measure, int] = field(default_factory=dict)
    _specs: dict[str, dict[str, RunSpec]] = field(default_factory=dict)
    """By model and instance."""
    versions: dict[str, str] = field(default_factory=dict)
    """What each instance answers to /api/version; empty: not known."""
    _predicted: dict[tuple[str, str], Footprint] = field(default_factory=dict)
    _beside: dict[tuple[str, str], int] = field(default_factory=dict)

    def learn_version(self, instance: str, version: str) -> None:
        """Note an instance's version: it decides by which rule its Ollama evicts."""
        if self.versions.get(instance) != version:
            self.versions[instance] = version
            self._beside.clear()

    def forget(self, model: str) -> None:
        """A model has changed: make its specs anew."""
        for instance in self._specs.pop(model, {}):
            self._predicted.pop((model, instance), None)
            self._beside.pop((model, instance), None)

    def spec(self, info: ModelInfo, instance: Instance) -> RunSpec:
        """Return how a model is to run in an instance."""
        of_model = self._specs.get(info.name)
        if of_model is None:
            of_model = self._specs[info.name] = {}
        spec = of_model.get(instance.name)
        if spec is None:
            spec = of_model[instance.name] = self._spec(info, instance)
        return spec

    def _spec(self, info: ModelInfo, instance: Instance) -> RunSpec:
        profile = self.config.profiles.get(info.name, NO_PROFILE)
        own = _cap(info, info.num_ctx or instance.context_default)
        context = own if profile.context is None else _cap(info, profile.context)
        single = info.embedding_only or info.architecture in SINGLE_SLOT
        runner_slots = 1 if single else instance.slots
        return RunSpec(
            key=RunnerKey(instance.name, info.blob),
            model=info.name,
            context=context,
            runner_slots=runner_slots,
            slots=max(1, min(runner_slots, profile.slots or runner_slots)),
            options={} if context == own else {"num_ctx": context},
            gpu_uuids=instance.gpu_uuids,
            kv_type=instance.kv_type,
        )

    def need(self, info: ModelInfo, instance: Instance, spec: RunSpec) -> Need:
        """Return the room that a load takes: measured if it ever was, else predicted with a margin."""
        if not spec.gpu_uuids:
            return Need((), 0, 0, 0)
        cached = (info.name, instance.name)
        predicted = self._predicted.get(cached)
        if predicted is None:
            predicted = self._predicted[cached] = footprint(
                info,
                context=spec.context,
                slots=spec.runner_slots,
                kv_type=instance.kv_type,
                gpu_count=len(spec.gpu_uuids),
                flash_attention=instance.flash_attention,
            )
        fixed = predicted.fixed_bytes
        total = self.measured.get(spec.measure)
        if total is None:
            total = predicted.total_bytes
            total += max(MARGIN_BYTES, int(total * MARGIN_FRACTION))
            total = max(total, self.floors.get(spec.measure, 0))
        reserve = self.config.loads.reserve_bytes + predicted.headroom_bytes
        fixed = min(fixed, total // len(spec.gpu_uuids))
        beside = self._beside.get(cached)
        if beside is None:
            beside = self._beside[cached] = self._beside_bytes(info, instance, spec)
        return Need(spec.gpu_uuids, fixed, total - fixed * len(spec.gpu_uuids), reserve, beside)

    def _beside_bytes(self, info: ModelInfo, instance: Instance, spec: RunSpec) -> int:
        context, slots = spec.context, spec.runner_slots
        if has_own_engine(self.versions.get(instance.name, "")):
            return own_engine_bytes(info, context=context, slots=slots, kv_type=instance.kv_type)
        return needed_free_bytes(guessed_bytes(info, context=context, slots=slots))

    def recall(self, sizes: Iterable[LearnedSize]) -> None:
        """Take over what was learned before a restart."""
        for size in sizes:
            measure = Measure(size.blob, size.context, size.slots, size.gpus, size.kv_type)
            (self.floors if size.floor else self.measured)[measure] = size.total_bytes

    def learned(self) -> tuple[LearnedSize, ...]:
        """Return what a restart should not forget, the latest last."""
        known = [(measure, size, True) for measure, size in self.floors.items()]
        known += [(measure, size, False) for measure, size in self.measured.items()]
        return tuple(LearnedSize(*measure, size, floor) for measure, size, floor in known[-SIZES_MOST:])

    def learn(self, spec: RunSpec, total_bytes: int) -> None:
        """Remember what a runner that is wholly on the GPU takes.

        The same one takes more on another day, when Ollama finds room for a larger batch: a little less than
        before isn't believed. Much less is: then something else had been counted in.
        """
        measured, floor = self.measured.pop(spec.measure, 0), self.floors.pop(spec.measure, 0)
        before = max(measured, floor)
        # To the end: what is oldest is forgotten first.
        self.measured[spec.measure] = (
            before if before * SAME_FRACTION <= total_bytes < before else total_bytes
        )

    def learn_spill(self, spec: RunSpec, need: Need, missing_bytes: int, capacity: Mapping[str, int]) -> None:
        """Remember that so much more is needed, but no more than the empty GPUs have."""
        most = sum(max(0, capacity[uuid] - need.reserve_bytes) for uuid in need.gpu_uuids)
        self.measured.pop(spec.measure, None)
        self.floors[spec.measure] = max(need.total_bytes, min(need.total_bytes + missing_bytes, most))


def has_own_engine(version: str) -> bool:
    """Whether an Ollama of this version is older than `llama-server`; one that nobody knows isn't.

    A build of one's own says 0.0.0, and is taken for new.
    """
    numbers = [int(part) for part in version.split("-", maxsplit=1)[0].split(".")[:2] if part.isdigit()]
    return len(numbers) == 2 and (0, 0) < tuple(numbers) < LLAMA_SERVER


def _cap(info: ModelInfo, context: int) -> int:
    """Return the context that Ollama makes of it: at most the training context, 2048 at least with vision."""
    if "vision" in info.capabilities:
        context = max(context, VISION_CONTEXT)
    limit = info.train_context
    return max(LEAST_CONTEXT, context if limit is None else min(context, limit))
