"""Two and more schedulers over one invented host: an old process finishes while the new one serves.

The world of test_world, but a restart leaves the old scheduler what it has under way. The host's own checks
are what is proved here: never more requests than slots in a runner, never two loads on a GPU, no busy runner
unloaded, whichever process a command comes from.
"""

from __future__ import annotations

from drover_proxy.core import Scheduler
from drover_proxy.core import commands as c
from drover_proxy.core import events as e
from drover_proxy.core.sharing import combined
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from tests.unit.core.invented_host import CONFIG, MODELS, NAMES
from tests.unit.core.test_world import World

OF_REQUEST = (e.RequestCancelled, e.HeadersSent, e.ForwardFailed, e.RequestFinished)
OF_LOAD = (e.LoadFinished, e.LoadFailed)
OF_UNLOAD = (e.UnloadObserved, e.UnloadFailed)
OF_WITHDRAWAL = (e.WithdrawModel, e.WithdrawalEnded)


class HandoverWorld(World):
    """A host whose proxy is restarted while it works; `core` is the newest scheduler."""

    knows_books = False

    def __init__(self) -> None:
        super().__init__()
        self.cores = [self.core]
        self.owners: dict[object, Scheduler] = {}
        """Who has a request, a load or an unload."""
        self.speaks_to: Scheduler | None = None
        self.acting = self.core

    def send(self, event: e.Event) -> None:
        """Hand an event to those it concerns, each of whom first hears of the others."""
        for core in self.concerned(event):
            if core not in self.cores:
                continue
            at = self.cores.index(core)
            elders, younger = self.cores[:at], self.cores[at + 1 :]
            self.acting = core
            told = combined([one.holdings() for one in elders], [one.holdings() for one in younger])
            for heard in (told, event):
                for command in core.handle(heard, self.now):
                    if isinstance(command, c.Load):
                        self.owners["load", command.instance] = core
                    elif isinstance(command, c.Unload):
                        self.owners["unload", command.instance, MODELS[command.model].blob] = core
                    if heard is event or getattr(command, "instance", None) in {None, *self.up}:
                        self.obey(command)
                    elif isinstance(command, c.Forward):  # its instance is gone, as the event says
                        self.forwarded[command.request] = (
                            "gone",
                            MODELS[self.open.pop(command.request)].blob,
                        )
                core.validate()

    def concerned(self, event: e.Event) -> list[Scheduler]:
        if isinstance(event, e.RequestArrived):
            self.owners["request", event.request] = core = self.speaks_to or self.core
            return [core]
        if isinstance(event, OF_REQUEST):
            return [self.owners["request", event.request]]
        if isinstance(event, OF_LOAD):
            return [self.owners["load", event.instance]]
        if isinstance(event, OF_UNLOAD):
            return [self.owners["unload", event.instance, MODELS[event.model].blob]]
        if isinstance(event, OF_WITHDRAWAL):
            return [self.core]
        return list(self.cores)

    def check_forward(self, command: c.Forward) -> None:
        if command.request not in self.open:
            return  # its client leaves at this very moment, as the next event tells
        blob = MODELS[self.open[command.request]].blob
        others = [core for core in self.cores if core is not self.acting]
        leaving = {key for core in others for key in core.holdings().leaving}
        assert (command.instance, blob) not in leaving, "it is being unloaded"
        super().check_forward(command)

    @rule()
    def restart_proxy(self) -> None:
        """A new process begins; the old one goes on with what it has."""
        if len(self.cores) > 2 or self.withdrawals:
            return
        self.core = core = Scheduler(CONFIG)
        self.cores.append(core)
        for name in sorted(self.known):
            self.send(e.ModelKnown(name, MODELS[name]))
        for instance in sorted(self.up):
            self.send(e.InstanceUp(instance))
            self.list_runners(instance)
        self.sample()

    @rule(name=st.sampled_from(NAMES))
    def arrive_late(self, name: str) -> None:
        """A request comes on a connection that an old process still has."""
        self.speaks_to = self.cores[0]
        self.arrive(name)
        self.speaks_to = None

    @rule()
    def elder_ends(self) -> None:
        """An old process has nothing left, and goes."""
        for core in self.cores[:-1]:
            held = core.holdings()
            if not core.state.requests and not held.memory and not held.leaving:
                self.cores.remove(core)

    @rule(cut=st.booleans())
    def elder_is_cut(self, cut: bool) -> None:
        """Its time is over: clients and loads are cut. What it unloads, Ollama unloads all the same."""
        if not cut or len(self.cores) < 2:
            return
        core = self.cores[0]
        for request in tuple(core.state.requests):
            self.open.pop(request, None)
            self.forwarded.pop(request, None)
        for instance in tuple(self.loading):
            if self.owners["load", instance] is core:
                del self.loading[instance]
        self.cores.remove(core)

    @rule()
    def withdraw(self) -> None:
        """Withdrawals are tried in the world of one process."""

    @rule()
    def end_withdrawal(self) -> None:
        """As above."""

    @rule(data=st.data())
    def forward_fails(self, data: st.DataObject) -> None:
        fresh = [
            request
            for request in sorted(self.forwarded)
            if self.owners["request", request].state.requests[request].state.value == "forwarded"
        ]
        if not fresh:
            return
        request = data.draw(st.sampled_from(fresh))
        del self.forwarded[request]
        self.open[request] = self.owners["request", request].state.requests[request].model
        self.send(e.ForwardFailed(request, "connection refused"))

    @invariant()
    def everybody_is_somewhere(self) -> None:
        inside = {request for core in self.cores for request in core.state.requests}
        assert set(self.open) | set(self.forwarded) == inside

    @invariant()
    def one_makes_room(self) -> None:
        """Between any two events at most one process makes room or loads."""
        assert sum(core.holdings().memory for core in self.cores) <= 1

    def teardown(self) -> None:
        """Let the old ones end, then look at the new one as at any other."""
        if hasattr(self, "dead"):
            for instance in CONFIG.instances:
                self.come_up(instance.name)
            for _ in range(200):
                self.settle_world()
                self.elder_ends()
                if len(self.cores) == 1:
                    break
            assert len(self.cores) == 1, [core.snapshot() for core in self.cores]
        super().teardown()


HandoverWorld.TestCase.settings = World.TestCase.settings
TestHandoverWorld = HandoverWorld.TestCase
