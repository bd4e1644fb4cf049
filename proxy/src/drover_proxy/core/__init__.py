"""The scheduler, pure: events with their time go in, commands come out.

    scheduler = Scheduler(CoreConfig(...))
    commands = scheduler.handle(RequestArrived(1, "llama3.2:3b"), now)

See docs/explanation/scheduler.md for what it does and why.
"""

from __future__ import annotations

from drover_proxy.core import commands, events
from drover_proxy.core.config import CoreConfig, Gpu, Instance, LoadLimits, Profile, QueueLimits
from drover_proxy.core.learned import Learned
from drover_proxy.core.scheduler import Scheduler
from drover_proxy.core.transitions import IllegalTransition
from drover_proxy.core.validate import InvariantError

__all__ = [
    "CoreConfig",
    "Gpu",
    "IllegalTransition",
    "Instance",
    "InvariantError",
    "Learned",
    "LoadLimits",
    "Profile",
    "QueueLimits",
    "Scheduler",
    "commands",
    "events",
]
