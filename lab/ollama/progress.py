"""Routes that report progress line by line: pull, push, create."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from lab.ollama.dialects import JSON, NDJSON
from lab.ollama.http import Answer, Gone, Request, dumps

Say = Callable[[dict[str, Any]], None]


class ProgressError(Exception):
    """The work failed; without a status it is told as the last line of a 200."""

    def __init__(self, text: str, status: int = 500) -> None:
        super().__init__(text)
        self.status = status


async def report(
    request: Request, answer: Answer, stream: bool, work: Callable[[Say], Awaitable[None]]
) -> None:
    """Run the work and tell of it as it goes, or with `stream: false` only how it ended."""
    lines: asyncio.Queue[dict[str, Any] | ProgressError | None] = asyncio.Queue()

    async def run() -> None:
        try:
            await work(lines.put_nowait)
        except ProgressError as error:
            lines.put_nowait(error)
        else:
            lines.put_nowait(None)

    loop = asyncio.get_running_loop()
    task, left = loop.create_task(run()), loop.create_task(request.gone.wait())
    latest: dict[str, Any] = {}
    started = False
    try:
        while True:
            line = await _next(lines, left)
            if line is None:
                break
            if isinstance(line, ProgressError):
                if stream and started:
                    await answer.chunk(dumps({"error": str(line)}) + b"\n")
                else:
                    answer.json(line.status, {"error": str(line)}, JSON)
                break
            latest = line
            if stream:
                if not started:
                    answer.start(200, NDJSON)
                    started = True
                await answer.chunk(dumps(line) + b"\n")
        if not stream and not answer.ended:
            answer.json(200, latest, JSON)
        elif started:
            answer.end()
    finally:
        left.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _next(lines: asyncio.Queue[Any], left: asyncio.Task[Any]) -> Any:
    if lines.empty():
        line = asyncio.get_running_loop().create_task(lines.get())
        await asyncio.wait({line, left}, return_when=asyncio.FIRST_COMPLETED)
        if line.done():
            return line.result()
        line.cancel()
        raise Gone
    return lines.get_nowait()
