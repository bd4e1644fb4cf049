"""A scheduler on a desk: events are spoken to it in a word, its answer comes back, invariants are checked."""

from __future__ import annotations

from typing import Any

from drover_proxy.core import CoreConfig, Gpu, Instance, LoadLimits, Profile, QueueLimits, Scheduler
from drover_proxy.core import commands as c
from drover_proxy.core import events as e
from drover_proxy.vram import ModelInfo

GIB = 1024**3
MIB = 1024**2


def model(name: str, gib: float, blob: str = "", **fields: Any) -> ModelInfo:
    """Return a model that takes about so many GiB: no cache, no compute to speak of, 0.75 GiB of overhead."""
    return ModelInfo(
        name=name,
        blob=blob or f"blob-{name}",
        size_bytes=int((gib - 0.75) * GIB),
        architecture="bert",
        hyperparameters={"bert.embedding_length": 1, "bert.feed_forward_length": 1},
        **fields,
    )


class Desk:
    """One host: by default one GPU of 24 GiB with one instance of two slots."""

    def __init__(
        self,
        gpus: dict[str, float] | None = None,
        instances: tuple[Instance, ...] | None = None,
        profiles: dict[str, Profile] | None = None,
        queue: QueueLimits | None = None,
        loads: LoadLimits | None = None,
    ) -> None:
        self.gpus = {"G0": 24.0} if gpus is None else gpus
        instances = instances or tuple(
            Instance(name=uuid.lower(), gpu_uuids=(uuid,), slots=2) for uuid in self.gpus
        )
        self.core = Scheduler(
            CoreConfig(
                gpus=tuple(Gpu(uuid, int(gib * GIB)) for uuid, gib in self.gpus.items()),
                instances=instances,
                profiles=profiles or {},
                queue=queue or QueueLimits(),
                loads=loads or LoadLimits(),
            )
        )
        self.now = 100.0
        for instance in instances:
            self.send(e.InstanceUp(instance.name))
        self.later(1)
        self.memory()

    def send(self, event: e.Event) -> list[c.Command]:
        """Hand an event over and return the commands."""
        answer = self.core.handle(event, self.now)
        self.core.validate()
        return answer

    def later(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    def tick(self, seconds: float = 1.0) -> list[c.Command]:
        """Let time pass, and say so."""
        self.later(seconds)
        return self.send(e.Tick())

    def know(self, *models: ModelInfo) -> None:
        """Tell of models."""
        for info in models:
            self.send(e.ModelKnown(info.name, info))

    def memory(
        self, *, after: float = 0.1, sampled_at: float | None = None, **free: float
    ) -> list[c.Command]:
        """Sample all GPUs; those not named are empty. Foreign memory is what is said by `foreign`."""
        foreign = free.pop("foreign", 0.0)
        self.later(after)
        return self.send(
            e.MemoryObserved(
                {
                    uuid: e.GpuMemory(
                        int(gib * GIB), int(free.get(uuid, gib - foreign) * GIB), int(foreign * GIB)
                    )
                    for uuid, gib in self.gpus.items()
                },
                sampled_at,
            )
        )

    def arrive(self, request: object, name: str, **fields: Any) -> list[c.Command]:
        """A client asks."""
        return self.send(e.RequestArrived(request, name, **fields))

    def loaded(
        self,
        name: str,
        instance: str = "g0",
        *,
        gib: float = 8.0,
        vram_gib: float | None = None,
        context: int = 4096,
        measured: float | None = None,
    ) -> list[c.Command]:
        """A load was answered."""
        self.later(2)
        return self.send(e.LoadFinished(instance, name, self.seen(name, gib, vram_gib, context, measured)))

    def seen(
        self,
        name: str,
        gib: float = 8.0,
        vram_gib: float | None = None,
        context: int = 4096,
        measured: float | None = None,
    ) -> e.RunnerSeen:
        """Return an entry of /api/ps."""
        vram = gib if vram_gib is None else vram_gib
        measured_bytes = None if measured is None else int(measured * GIB)
        return e.RunnerSeen(name, int(gib * GIB), int(vram * GIB), context, measured_bytes)

    def listed(
        self, instance: str, *runners: e.RunnerSeen, sampled_at: float | None = None
    ) -> list[c.Command]:
        """/api/ps was read."""
        self.later(0.1)
        return self.send(e.RunnersObserved(instance, runners, sampled_at))

    def ready(self, name: str, instance: str = "g0", *, gib: float = 8.0, **free: float) -> None:
        """Bring a model in, idle; `free` is what NVML shows afterwards."""
        self.arrive(f"bring {name}", name, needs=e.Needs.EMBED)
        self.loaded(name, instance, gib=gib)
        self.send(e.RequestFinished(f"bring {name}"))
        assert self.state_of(name, instance) == "ready"
        self.memory(**free)

    def unloaded(self, name: str, instance: str = "g0") -> list[c.Command]:
        """A runner has gone from /api/ps."""
        self.later(0.1)
        return self.send(e.UnloadObserved(instance, name))

    def state_of(self, name: str, instance: str = "g0") -> str:
        """Return the state of a runner by its model's name."""
        runner = self.core.state.find(instance, name)
        return "absent" if runner is None else runner.state.value


def kinds(answer: list[c.Command]) -> list[str]:
    """Return what kinds of commands an answer holds, alerts and notes for the next start left out."""
    return [type(command).__name__ for command in answer if not isinstance(command, c.Alert | c.Remember)]


def only(answer: list[c.Command], kind: type[Any]) -> Any:
    """Return the one command of a kind."""
    found = [command for command in answer if isinstance(command, kind)]
    assert len(found) == 1, answer
    return found[0]


def alerts(answer: list[c.Command]) -> list[str]:
    """Return the codes of the alerts."""
    return [command.code for command in answer if isinstance(command, c.Alert)]
