"""Following files: what counts as a change, and a reload that comes in between."""

from __future__ import annotations

import asyncio
import threading

import pytest
from drover_proxy.drivers import follow as following
from drover_proxy.drivers.follow import Followed, follow

from tests.support import eventually_async


class Pair(Followed[str]):
    """Two files; reading them can be held up."""

    def __init__(self, folder) -> None:
        super().__init__()
        self.files = (folder / "one", folder / "two")
        self.go_on = threading.Event()
        self.go_on.set()
        self.begun = threading.Event()
        for file in self.files:
            file.write_text("1")

    def paths(self):
        return self.files

    def read(self) -> str:
        found = "".join(file.read_text() for file in self.files)
        self.begun.set()
        self.go_on.wait(10)
        return found


class Patient(Pair):
    """Files that change one after the other."""

    settles = True


def test_files_that_settle_count_once_they_do(tmp_path):
    """A change counts at the second look that finds the same; each further one puts it off."""
    pair = Patient(tmp_path)
    assert pair.load() == "11"
    assert not pair.changed()
    pair.files[0].write_text("22")
    assert not pair.changed()
    pair.files[1].write_text("33")
    assert not pair.changed()
    assert pair.changed()
    assert pair.load() == "2233"
    assert not pair.changed()
    assert not pair.changed()


@pytest.fixture
async def applied(tmp_path, monkeypatch):
    """A pair that is followed, and what came of it."""
    monkeypatch.setattr(following, "LOOK_SECONDS", 0.01)
    pair, values = Pair(tmp_path), []
    pair.load()
    task = asyncio.create_task(follow(lambda: pair, values.append, values.append))
    yield pair, values
    pair.go_on.set()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_reload_while_it_is_read_isnt_undone(applied):
    """What the reload read stays: the older reading is thrown away, and the files are looked at once more."""
    pair, values = applied
    pair.begun.clear()
    pair.go_on.clear()
    pair.files[0].write_text("old")
    await asyncio.to_thread(pair.begun.wait, 10)  # the follower has read, and is held up
    pair.files[0].write_text("new!")
    pair.begun.clear()
    reload = asyncio.create_task(asyncio.to_thread(pair.load))
    await asyncio.to_thread(pair.begun.wait, 10)
    pair.go_on.set()
    assert await reload == "new!1"
    await eventually_async(lambda: bool(values))
    assert values == ["new!1"]
