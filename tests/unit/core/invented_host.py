"""The invented host that Hypothesis plays with: what Ollama and NVML would do, kept by simple books."""

from __future__ import annotations

from dataclasses import dataclass, field

from drover_proxy.core import CoreConfig, Gpu, Instance, LoadLimits, Profile, QueueLimits, Scheduler
from drover_proxy.core import commands as c
from drover_proxy.core import events as e
from drover_proxy.core.entities import LIVE
from hypothesis.stateful import RuleBasedStateMachine

from tests.unit.core.desk import GIB, model

MODELS = {
    info.name: info
    for info in (
        model("small", 3),
        model("alias", 3, blob="blob-small"),
        model("wide", 3, blob="blob-small", num_ctx=16384),
        model("mid", 9),
        model("big", 15),
        model("other", 15),
        model("huge", 34),
        model("monster", 99),
        model("embed", 2, capabilities=frozenset({"embedding"})),
    )
}
NAMES = sorted(MODELS)
INSTANCES = (
    Instance(name="g0", gpu_uuids=("G0",), slots=2),
    Instance(name="g1", gpu_uuids=("G1",), slots=1),
    Instance(name="both", gpu_uuids=("G0", "G1"), slots=2),
)
TOTAL = {"G0": 24 * GIB, "G1": 20 * GIB}
CONFIG = CoreConfig(
    gpus=tuple(Gpu(uuid, total) for uuid, total in TOTAL.items()),
    instances=INSTANCES,
    profiles={"mid": Profile(slots=1, priority=1), "embed": Profile(pin=True)},
    queue=QueueLimits(max_waiting=6, max_wait_seconds=120, starve_seconds=5, no_instance_seconds=20),
    loads=LoadLimits(
        timeout_seconds=60, memory_timeout_seconds=10, unload_timeout_seconds=8, cooldown_seconds=15
    ),
)


@dataclass
class Process:
    """A runner of the invented Ollama."""

    name: str
    context: int
    slots: int
    taken: dict[str, int] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    """What it saw free at its load less what it takes, as Ollama remembers it; empty: nobody knows."""


class InventedHost(RuleBasedStateMachine):
    """Three overlapping instances over two GPUs, obeying the scheduler's commands and checking each."""

    knows_books = True
    """Whether the scheduler has seen every load since it was made, but those of strangers."""

    def __init__(self) -> None:
        super().__init__()
        self.core = Scheduler(CONFIG)
        self.saw_free: dict[str, dict[str, int]] = {}
        self.now = 50.0
        self.counter = 0
        self.up: set[str] = set()
        self.loading: dict[str, c.Load] = {}
        self.load_began: dict[str, float] = {}
        self.running: dict[tuple[str, str], Process] = {}
        self.unloading: list[tuple[str, str]] = []
        self.late: dict[str, int] = dict.fromkeys(TOTAL, 0)
        self.foreign: dict[str, int] = dict.fromkeys(TOTAL, 0)
        self.open: dict[int, str] = {}
        self.forwarded: dict[int, tuple[str, str]] = {}
        self.withdrawals: dict[int, str] = {}
        self.sampled_at = self.disturbed_at = 0.0
        """When NVML was last asked, and when somebody else last changed the memory."""
        self.known: set[str] = set()
        self.drained = False

    def free(self, uuid: str) -> int:
        taken = sum(process.taken.get(uuid, 0) for process in self.running.values())
        return max(0, TOTAL[uuid] - taken - self.late[uuid] - self.foreign[uuid])

    def send(self, event: e.Event) -> None:
        for command in self.core.handle(event, self.now):
            self.obey(command)
        self.core.validate()

    def obey(self, command: c.Command) -> None:
        match command:
            case c.Forward():
                self.check_forward(command)
            case c.Reject():
                assert self.open.pop(command.request) is not None
                assert command.retry_after_seconds is None or command.retry_after_seconds >= 1
            case c.Load():
                self.check_load(command)
            case c.Unload():
                blob = MODELS[command.model].blob
                busy = [r for r, (i, b) in self.forwarded.items() if (i, b) == (command.instance, blob)]
                assert not busy, "a busy runner was unloaded"
                self.unloading.append((command.instance, blob))
            case c.Withdrawn():
                name = self.withdrawals[command.ticket]
                holders = [i for (i, b) in self.running if b == MODELS[name].blob and i in self.up]
                if command.ok and holders:
                    assert all((i, MODELS[name].blob) in self.unseen for i in holders)
            case c.Drained():
                assert self.drained
                assert not self.open

    def check_forward(self, command: c.Forward) -> None:
        name = self.open.pop(command.request)
        blob = MODELS[name].blob
        self.forwarded[command.request] = (command.instance, blob)
        assert command.instance in self.up
        process = self.running.get((command.instance, blob))
        if process is None:
            assert (command.instance, blob) in self.dead, "forwarded to a runner that never was"
            self.forwarded[command.request] = ("gone", blob)
            return
        mates = [r for r, where in self.forwarded.items() if where == (command.instance, blob)]
        assert len(mates) <= process.slots, "more requests than slots"
        wanted = MODELS[name].num_ctx or 4096
        assert process.context == wanted, "forwarded to a runner of another context"

    def check_load(self, command: c.Load) -> None:
        gpus = next(i.gpu_uuids for i in INSTANCES if i.name == command.instance)
        for other in self.loading:
            taken = next(i.gpu_uuids for i in INSTANCES if i.name == other)
            assert not set(gpus) & set(taken), "two loads on a GPU at once"
        assert command.instance in self.up
        if self.sampled_at > self.disturbed_at and self.now - self.sampled_at < 10:
            room = sum(max(0, self.free(uuid) - GIB) for uuid in gpus)
            assert room >= command.predicted_bytes - 2, "loaded into memory that isn't there"
        self.check_books(command, gpus)
        if self.sampled_at > self.disturbed_at:  # else nobody but Ollama knows what it sees
            self.saw_free[command.instance] = {uuid: self.free(uuid) for uuid in gpus}
        self.loading[command.instance] = command
        self.load_began[command.instance] = self.now

    def check_books(self, command: c.Load, gpus: tuple[str, ...]) -> None:
        """Whichever of the others Ollama asks what is free, it must not come to evict somebody."""
        others = {key: process for key, process in self.running.items() if key[0] == command.instance}
        known = {tuple(key) for key, runner in self.core.state.runners.items() if runner.state in LIVE}
        if not others or not self.knows_books or not set(others) <= known:
            return
        believed = 0
        for uuid in gpus:
            reported = [max(0, process.taken.get(uuid, 0) - GIB // 2) for process in others.values()]
            remembered = [process.left[uuid] for process in others.values() if uuid in process.left]
            believed += max(0, min([TOTAL[uuid] - sum(reported), *remembered]))
        assert MODELS[command.model].size_bytes <= believed * 80 // 100, "Ollama would evict"

    def end_load(self, instance: str) -> None:
        command = self.loading.pop(instance)
        info = MODELS[command.model]
        gpus = next(i for i in INSTANCES if i.name == instance)
        size = info.size_bytes
        overhead = GIB // 2
        free = {uuid: self.free(uuid) for uuid in gpus.gpu_uuids}
        usable = {uuid: max(0, room - overhead - GIB) for uuid, room in free.items()}
        on_gpu = min(size, sum(usable.values()))
        whole = sum(usable.values()) or 1
        taken = {uuid: overhead + on_gpu * room // whole for uuid, room in usable.items()}
        taken = {uuid: min(amount, free[uuid]) for uuid, amount in taken.items()}
        slots = 1 if info.embedding_only else gpus.slots
        key = (instance, info.blob)
        saw = self.saw_free.pop(instance, {})
        left = {uuid: max(0, free - taken[uuid]) for uuid, free in saw.items() if uuid in taken}
        self.running[key] = Process(command.model, command.context, slots, taken, left)
        self.dead.discard(key)
        seen = e.RunnerSeen(command.model, size, on_gpu, command.context, sum(taken.values()))
        self.send(e.LoadFinished(instance, command.model, seen))

    def end_unload(self, instance: str, blob: str, *, late: bool, tell: bool) -> None:
        if (instance, blob) in self.forwarded.values():
            return  # Ollama waits for requests that came after the unload
        self.unloading.remove((instance, blob))
        process = self.running.pop((instance, blob), None)
        if process is None:
            return
        for uuid, amount in process.taken.items():
            self.late[uuid] += amount if late else 0
        self.now += 0.1
        if tell:
            self.send(e.UnloadObserved(instance, process.name))
        else:
            self.list_runners(instance)

    def orphan(self, key: tuple[str, str]) -> None:
        """The runner of these requests is gone: they hold no slot of a later one."""
        for request, where in self.forwarded.items():
            if where == key:
                self.forwarded[request] = ("gone", key[1])
