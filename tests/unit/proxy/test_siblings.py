"""The pages by which processes tell each other what they hold: read, written, left behind, unreadable."""

from __future__ import annotations

import fcntl
import io
import json
import os
import time

import pytest
from drover_proxy.app import siblings
from drover_proxy.app.siblings import Page, Sharing, folder
from drover_proxy.core import events as e
from drover_proxy.drivers.log import Log

from tests.unit.core.desk import Desk, model

ADDRESSES = {"g0": "127.0.0.1:11434"}


@pytest.fixture
def log():
    """What is logged."""
    return io.StringIO()


@pytest.fixture
def sharing(tmp_path, log):
    """This process's page, after that of its elder."""
    return Sharing(tmp_path, ADDRESSES, Log(stream=log))


class Other:
    """The page of another process, which this test writes and locks."""

    def __init__(self, path, **page):
        self.path = path / f"{page.get('pid', 1)}.page"
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT)
        fcntl.flock(self.file, fcntl.LOCK_EX)
        self.write({"pid": 1, "since": 0.0, "leaving": True} | page)

    def write(self, page):
        """Lay the page anew."""
        self.path.write_text(page if isinstance(page, str) else json.dumps(page))

    def die(self):
        """Give the lock back, as the kernel does for a process that has ended."""
        os.close(self.file)


def test_an_elders_page_is_heard_once(tmp_path, sharing):
    """What it says comes as one event, and again only when something has changed; names follow addresses."""
    other = Other(
        tmp_path,
        busy=[["127.0.0.1:11434", "blob", 2], ["gone:1", "blob", 1]],
        waits=["blob"],
        wishes=True,
        changes=3,
    )
    assert sharing.look()
    heard = sharing.begin()
    sharing.end(None)
    assert heard == e.SiblingsObserved(
        busy={("g0", "blob"): 2}, waits=frozenset({"blob"}), changes=3, owns_memory=True
    )
    assert sharing.begin() is None
    sharing.end(None)

    other.write({"pid": 1, "since": time.monotonic() + 60, "leaving": False, "serving": True, "wishes": True})
    assert sharing.begin() == e.SiblingsObserved()  # a younger one's wishes don't bind us
    sharing.end(None)
    assert sharing.successor_serves
    other.die()


def test_a_dead_ones_page_is_cleared_away(tmp_path, sharing):
    """A page that nobody locks is removed; what it said doesn't count any more."""
    other = Other(tmp_path, busy=[["127.0.0.1:11434", "blob", 2]])
    assert sharing.look()
    other.die()

    assert not sharing.look()
    assert not other.path.exists()
    assert sharing.begin() == e.SiblingsObserved()
    sharing.end(None)


def test_what_we_hold_is_told(tmp_path, sharing):
    """The own page has the requests by the instance's address, follows each event, and goes at the end."""
    desk = Desk()
    desk.know(model("small", 8))
    desk.listed("g0", desk.seen("small"))
    desk.memory(G0=16)
    sharing.open(desk.core)
    page = tmp_path / f"{os.getpid()}.page"
    assert json.loads(page.read_bytes())["busy"] == []
    desk.arrive(1, "small")
    sharing.begin()
    sharing.end(desk.core)
    assert ["127.0.0.1:11434", "blob-small", 1] in json.loads(page.read_bytes())["busy"]
    desk.send(e.RequestFinished(1))
    sharing.begin()
    sharing.end(desk.core)
    assert json.loads(page.read_bytes())["busy"] == []
    assert not sharing._dead(page.name)
    sharing.close()
    assert not page.exists()


def test_pages_of_other_releases_are_read(tmp_path, sharing):
    """Fields that we don't know are passed over, missing ones have their defaults; rubbish is left alone."""
    other = Other(tmp_path, news=[1, 2])
    assert sharing.look()
    assert sharing.siblings == [Page(pid=1, since=0.0, leaving=True)]
    other.write("{")
    assert sharing.look()  # it lives, and may be writing
    assert sharing.siblings == [Page(pid=1, since=0.0, leaving=True)]
    other.die()


def test_a_lock_that_is_never_given_back(tmp_path, sharing, log, monkeypatch):
    """A sibling that was stopped while it held the lock isn't waited for, and the log says so."""
    monkeypatch.setattr(siblings, "PATIENCE_SECONDS", 0.01)
    held = os.open(tmp_path / siblings.LOCK, os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    sharing.begin()
    sharing.end(None)
    os.close(held)

    assert "handover_lock_stuck" in log.getvalue()


def test_a_folder_that_was_cleared_away(tmp_path, sharing, log):
    """Without its folder nothing is shared and nothing raises; a page that can't be written is said once."""
    sharing.open()
    os.close(sharing._page)
    sharing._page = os.open(os.devnull, os.O_RDONLY)  # stands for a full disk
    for leaving in (True, False):
        sharing.leaving = leaving
        sharing.begin()
        sharing.end(None)
    assert log.getvalue().count("handover_page_unwritten") == 1

    sharing.close()
    for file in tmp_path.iterdir():
        file.unlink()
    tmp_path.rmdir()
    assert not sharing.usable
    assert not sharing.look()


def test_the_folder_is_systemds(monkeypatch):
    """The first of the runtime directories; none without systemd."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/drover-proxy:/run/other")
    assert str(folder()) == "/run/drover-proxy"
    monkeypatch.delenv("RUNTIME_DIRECTORY")
    assert folder() is None
