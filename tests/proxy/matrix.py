"""The moments at which a client leaves, the ways it does so, and what each dialect says on the wire.

Each moment is a coroutine that brings a case to that moment and returns what the upstream sees of it, if
anything; the case then leaves, and the moment's own `after` looks at what must follow.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from tests.proxy.desk import Desk, post
from tests.proxy.scripted import Asked
from tests.support import eventually_async, until_still
from tests.unit.wire.rig import Peer, chunk

PATIENCE = 20.0
FLOOD = 2 << 20
"""Sent again and again, until all the buffers between the two ends are full."""
WAYS: dict[str, Callable[[Peer], object]] = {
    "close": lambda peer: peer.close(),
    "reset": lambda peer: peer.reset(),
    "half-close": lambda peer: peer.transport.write_eof(),
}


@dataclass(frozen=True)
class Dialect:
    """A path, streaming or not, and how an answer there begins and ends."""

    path: str
    field: str
    stream: bool | None
    first: bytes = b""
    last: bytes = b""

    def __str__(self) -> str:
        """Name it."""
        return self.path + {None: "", True: " stream", False: " whole"}[self.stream]

    @property
    def whole(self) -> bytes:
        """What is seen of an answer only at its end."""
        return self.last if self.stream else b"x" * 40

    def body(self, model: str, tag: str) -> bytes:
        """Write a request's body."""
        text = f"<<{tag}>>"
        asked: dict[str, Any] = {"model": model, self.field: text}
        if self.field == "messages":
            asked["messages"] = [{"role": "user", "content": text}]
            asked["max_tokens"] = 9
        if self.stream is not None:
            asked["stream"] = self.stream
        return json.dumps(asked, separators=(",", ":")).encode()

    def begin(self) -> bytes:
        """Write an answer's head and its first piece."""
        if self.stream:
            return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(self.first)
        return b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\n" + b"x" * 20

    def end(self) -> bytes:
        """Write the rest."""
        return chunk(self.last) + b"0\r\n\r\n" if self.stream else b"x" * 20


NATIVE = (b'{"response":"x","done":false}\n', b'{"done":true}\n')
SSE = (b'data: {"x":1}\n\n', b"data: [DONE]\n\n")
RESPONSES = (
    b"event: response.output_text.delta\ndata: {}\n\n",
    b"event: response.completed\ndata: {}\n\n",
)
MESSAGES = (b"event: content_block_delta\ndata: {}\n\n", b"event: message_stop\ndata: {}\n\n")
BLOBS = Dialect("/api/blobs", "", None)
DIALECTS = [
    *(
        Dialect(path, key, stream, *pieces)
        for path, key, pieces in (
            ("/api/generate", "prompt", NATIVE),
            ("/api/chat", "messages", NATIVE),
            ("/v1/chat/completions", "messages", SSE),
            ("/v1/completions", "prompt", SSE),
            ("/v1/responses", "input", RESPONSES),
            ("/v1/messages", "messages", MESSAGES),
        )
        for stream in (True, False)
    ),
    Dialect("/api/embed", "input", None),
    Dialect("/v1/embeddings", "input", None),
]


@dataclass
class Case:
    """One client, one request, one leaving."""

    desk: Desk
    number: int
    moment: Moment
    dialect: Dialect
    way: str
    lane: str

    def __post_init__(self) -> None:
        self.tag = f"c{self.number}"
        self.model = self.lane
        self.helpers: list[tuple[Peer, Asked]] = []

    def __str__(self) -> str:
        """Name it."""
        return f"{self.moment.__name__}, {self.way}, {self.dialect}"

    def text(self, tag: str | None = None) -> bytes:
        """Write its request."""
        return post(self.dialect.path, self.dialect.body(self.model, tag or self.tag))

    async def run(self) -> None:
        """Come to the moment, leave, and see what follows."""
        self.client = await self.desk.connect(small=self.moment is reading_slowly)
        asked = await self.moment(self)
        left_at = time.monotonic()
        WAYS[self.way](self.client)
        self.desk.left += 1
        if asked is not None and self.moment is not at_the_last_chunk:
            await asyncio.wait_for(asked.closed.wait(), PATIENCE)
            assert asked.closed_at is not None
            self.desk.latencies.setdefault(self.moment.__name__, []).append(asked.closed_at - left_at)
        if self.way == "half-close":
            if self.moment is not reading_slowly:  # megabytes are still on their way to it
                await self.client.until_closed()
            self.client.close()
        await AFTER.get(self.moment, nothing)(self)

    async def served(self, tag: str, model: str | None = None) -> None:
        """Have another request served whole: the slot is free."""
        self.model = model or self.model
        peer, asked = await self.another(tag)
        asked.finish(self.dialect.begin() + self.dialect.end())
        await peer.until(self.dialect.whole)
        peer.close()

    async def another(self, tag: str) -> tuple[Peer, Asked]:
        """Send another request, as far as the upstream."""
        peer = await self.desk.connect()
        self.desk.requests += 1
        peer.send(self.text(tag))
        return peer, await self.desk.ollama.request(tag)


Moment = Callable[[Case], Awaitable["Asked | None"]]


async def nothing(case: Case) -> None:
    """Nothing more is to be seen."""


async def queued(case: Case) -> None:
    """Both slots are taken."""
    case.helpers = [await case.another(f"{case.tag}-{n}") for n in range(2)]
    case.desk.requests += 1
    case.client.send(case.text())
    await case.desk.fence()


async def after_queued(case: Case) -> None:
    """The slots go to others, and the request that was left never reaches Ollama."""
    await case.desk.fence()
    for peer, asked in case.helpers:
        asked.finish(case.dialect.begin() + case.dialect.end())
        await peer.until(case.dialect.whole)
        peer.close()
    await case.served(f"{case.tag}-after")
    assert case.tag not in case.desk.ollama.seen


async def while_its_model_loads(case: Case) -> None:
    """Its model is being loaded for it alone."""
    ollama = case.desk.ollama
    await case.desk.loading.acquire()
    case.model = await case.desk.absent()
    ollama.gates[case.model], ollama.loading[case.model] = asyncio.Event(), asyncio.Event()
    case.desk.requests += 1
    case.client.send(case.text())
    await asyncio.wait_for(ollama.loading[case.model].wait(), PATIENCE)


async def after_loading(case: Case) -> None:
    """The load goes on, and serves whoever comes next."""
    ollama = case.desk.ollama
    await case.desk.fence()
    aborted, loads = ollama.aborted_loads, ollama.loads[case.model]
    ollama.gates.pop(case.model).set()
    await case.served(f"{case.tag}-after")
    assert ollama.aborted_loads == aborted, "the load was aborted"
    assert ollama.loads[case.model] == loads + 1
    assert case.tag not in ollama.seen
    del ollama.loaded[case.model]  # as if it had crashed: the proxy sees that by itself
    case.desk.unloaded_at[case.model] = time.monotonic()
    case.desk.loading.release()


async def within_its_body(case: Case) -> None:
    """Half of the JSON body has come: nobody upstream knows of it."""
    case.desk.requests += 1
    case.client.send(case.text()[:-20])
    await case.desk.fence()


async def after_body(case: Case) -> None:
    """Nobody upstream ever does."""
    await case.desk.fence()
    assert case.tag not in case.desk.ollama.seen


async def before_the_first_byte(case: Case) -> Asked:
    """Ollama works on it and has said nothing."""
    case.desk.requests += 1
    case.client.send(case.text())
    return await case.desk.ollama.request(case.tag)


async def in_the_answer(case: Case) -> Asked:
    """The first piece of the answer has come."""
    asked = await before_the_first_byte(case)
    asked.send(case.dialect.begin())
    await case.client.until(case.dialect.first if case.dialect.stream else b"x" * 20)
    return asked


async def reading_slowly(case: Case) -> Asked:
    """The client has stopped reading, and so has the proxy."""
    asked = await in_the_answer(case)
    case.client.transport.pause_reading()

    def pour() -> int:
        if not asked.unsent:
            asked.send(chunk(b"y" * FLOOD))
        return asked.unsent

    await until_still(pour, looks=3)
    return asked


async def at_the_last_chunk(case: Case) -> Asked:
    """The end of the answer and the client's leaving cross."""
    asked = await in_the_answer(case)
    asked.finish(case.dialect.end())
    return asked


async def with_another_behind(case: Case) -> Asked:
    """A second request waits in the connection."""
    case.desk.requests += 1
    case.client.send(case.text() + case.text(f"{case.tag}-second"))
    asked = await case.desk.ollama.request(case.tag)
    asked.send(case.dialect.begin())
    return asked


async def after_another(case: Case) -> None:
    """It isn't looked at any more."""
    await case.desk.fence()
    assert f"{case.tag}-second" not in case.desk.ollama.seen


async def within_an_upload(case: Case) -> Asked:
    """A blob is half through."""
    digest = f"{int.from_bytes(case.tag.encode()):064x}"
    case.desk.requests += 1
    case.client.send(post(f"/api/blobs/sha256:{digest}", b"z" * 300_000)[:-100_000])
    asked = await case.desk.ollama.request(digest.lstrip("0"))
    await eventually_async(lambda: asked.body_bytes >= 200_000, timeout=PATIENCE)
    return asked


AFTER: dict[Moment, Callable[[Case], Awaitable[None]]] = {
    queued: after_queued,
    while_its_model_loads: after_loading,
    within_its_body: after_body,
    with_another_behind: after_another,
}
MOMENTS: list[Moment] = [
    queued,
    while_its_model_loads,
    within_its_body,
    before_the_first_byte,
    in_the_answer,
    reading_slowly,
    at_the_last_chunk,
    with_another_behind,
]


def combinations() -> list[tuple[Moment, Dialect, str]]:
    """List every moment, dialect and way to leave."""
    found = [
        (moment, dialect, way)
        for moment, dialect, way in itertools.product(MOMENTS, DIALECTS, WAYS)
        if moment is not reading_slowly or dialect.stream
    ]
    return [*found, *((within_an_upload, BLOBS, way) for way in WAYS)]


async def run_all(desk: Desk, total: int, seed: int) -> None:
    """Run so many cases in a random order, as many at once as there are lanes."""
    dice = random.Random(seed)
    every = combinations()
    cases = [every[n % len(every)] for n in range(total)]
    dice.shuffle(cases)
    waiting = iter(enumerate(cases))

    async def work(lane: str) -> None:
        for number, (moment, dialect, way) in waiting:
            case = Case(desk, number, moment, dialect, way, lane)
            try:
                await case.run()
            except Exception as error:
                told = await asyncio.to_thread(desk.rig.admin, "/drover/v1/state")
                raise AssertionError(
                    f"case {number} of seed {seed}: {case}: {error!r} {told.text}"
                ) from error

    async with asyncio.TaskGroup() as group:
        for lane in desk.lanes:
            group.create_task(work(lane))
