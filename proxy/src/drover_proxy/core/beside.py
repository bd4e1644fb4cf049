"""What Ollama asks of a load beside other runners: kept here, so that it never evicts by itself.

Ollama compares its own rough guess of a model (see vram/guess.py) with the memory that it believes free. When
that isn't enough it evicts by rules of its own: by keep-alive instead of use, waiting without end for a busy
victim while nothing else is loaded. So a plan makes room by Ollama's books too, before its load is sent.

Those books are known well enough. On a GPU that carries a runner of the same server, Ollama (0.30 and later)
takes the lesser of two: the GPU's total less what all its runners report; and, of *one of them, chosen by
chance*, what that one saw free when it was loaded, less what it reports itself. The second goes stale: a
runner loaded beside another still counts that one after it has gone. So the least of all is taken here,
whichever may be chosen. What NVML shows now counts as well: it stands in for runners whose load nobody saw
(adopted ones), and for servers that ask the driver anew.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from drover_proxy.core.entities import Runner
from drover_proxy.core.sizing import Need
from drover_proxy.core.state import State
from drover_proxy.vram.footprint import CUDA_CONTEXT_BYTES


@dataclass(frozen=True, slots=True)
class Room:
    """What a load would find: free memory on its GPUs, and the runners that stay in its instance."""

    state: State
    need: Need
    free: Mapping[str, int]
    staying: tuple[Runner, ...]
    fresh: bool = False
    """Judge as if Ollama's books weren't stale: as if all had been loaded in a better order."""

    def suffices(self, victims: Collection[Runner] = ()) -> bool:
        """Whether the load can be sent once the victims are gone: by true sizes, and by Ollama's rule."""
        free = self.freed(victims)
        if not self.need.fits(free):
            return False
        staying = [runner for runner in self.staying if runner not in victims]
        if not staying:
            return True  # alone, whatever fits is loaded
        totals = {uuid: self.state.ledger.books[uuid].total_bytes for uuid in self.need.gpu_uuids}
        return self.need.beside_bytes <= believed_free_bytes(totals, free, staying, fresh=self.fresh)

    def freed(self, victims: Collection[Runner]) -> dict[str, int]:
        """Return what is free once the victims are gone."""
        total = dict(self.free)
        for runner in victims:
            for uuid, size in self.state.ledger.shares_of(runner.key).items():
                if uuid in total:
                    total[uuid] += size
        return total


def believed_free_bytes(
    totals: Mapping[str, int],
    free: Mapping[str, int],
    staying: Collection[Runner],
    *,
    fresh: bool = False,
) -> int:
    """Return the least that Ollama may believe free on these GPUs, while these runners stay loaded.

    `fresh`: if no runner's own memory of its load counted.
    """
    believed = 0
    for uuid, total in totals.items():
        least = min(free[uuid], total - sum(runner.reported_bytes.get(uuid, 0) for runner in staying))
        if not fresh:
            least = min([least, *(r.left_bytes[uuid] for r in staying if uuid in r.left_bytes)])
        believed += max(0, least)
    return believed


def left_bytes(free_at_load: Mapping[str, int], reported: Mapping[str, int]) -> dict[str, int]:
    """Return what a runner left free by Ollama's books: what it saw at its load less what it reports.

    It looks after its CUDA context has been made, which nobody reports.
    """
    return {
        uuid: max(0, free - CUDA_CONTEXT_BYTES - reported.get(uuid, 0)) for uuid, free in free_at_load.items()
    }
