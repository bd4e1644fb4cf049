"""Tasks end, also those that miss a cancellation."""

from __future__ import annotations

import asyncio
import contextlib

from drover_proxy.drivers.ending import end


async def misses(cancellations: int) -> None:
    """Take so many cancellations for something else, as asyncio.wait_for did before Python 3.12."""
    for _ in range(cancellations):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
    await asyncio.sleep(60)


async def test_each_task_is_cancelled_until_it_has_ended():
    """One that has ended, one that ends at once, one that needs to be told three times; and none at all."""
    tasks = {asyncio.create_task(misses(number)) for number in (0, 2)}
    tasks.add(ended := asyncio.create_task(asyncio.sleep(0)))
    await ended  # by then the others have begun
    await asyncio.wait_for(end(tasks), 10)
    assert all(task.done() for task in tasks)
    await end(set())
