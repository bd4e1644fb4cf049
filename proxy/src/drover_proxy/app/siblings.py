"""What processes of the proxy that live side by side during a restart tell one another: one page each.

The pages lie in the folder that systemd keeps for the service. A page names what its process holds; its file
is locked for as long as the process lives, so that a dead one's page is known for what it is. One more lock
makes hearing, deciding and telling one step, so nothing is given away twice (see core/sharing.py). All of it
only lasts as long as the old process does: a proxy on its own neither reads nor writes here.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from drover_proxy.core.events import SiblingsObserved
from drover_proxy.core.scheduler import Scheduler
from drover_proxy.core.sharing import Holdings, combined
from drover_proxy.drivers.log import Log
from drover_proxy.drivers.notify import given_folder

LOCK = "lock"
SUFFIX = ".page"
PATIENCE_SECONDS = 0.25
"""A sibling holds the lock for the time of one event. One that was stopped meanwhile isn't waited for."""
NOTHING = Holdings({}, (), {}, 0, (), memory=False, wishes=False)


class Page(msgspec.Struct, frozen=True):
    """What one process tells."""

    pid: int
    since: float
    """When it began, on the clock that all processes of the host share."""
    leaving: bool
    """It was told to stop."""
    serving: bool = False
    """It accepts connections."""
    requests: int = 0
    waiting: int = 0
    busy: list[tuple[str, str, int]] = []
    """Address of an instance, blob, requests."""
    going: list[tuple[str, str]] = []
    unloads: list[tuple[str, str, int]] = []
    changes: int = 0
    waits: list[str] = []
    memory: bool = False
    wishes: bool = False


def folder() -> Path | None:
    """Return where the pages are: the service's runtime directory, if systemd made one."""
    return given_folder("RUNTIME_DIRECTORY")


class Sharing:
    """This process's page, and those of its siblings."""

    def __init__(self, where: Path, addresses: Mapping[str, str], log: Log) -> None:
        self._folder = where
        self._addresses = dict(addresses)
        """Of the instances, by name: a name may mean another one after a restart."""
        self._names = {address: name for name, address in addresses.items()}
        self._log = log
        self._pid = os.getpid()
        self._since = time.monotonic()
        self._lock = os.open(where / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._page: int | None = None
        self._written = b""
        self._read: dict[str, tuple[bytes, Page]] = {}
        self._heard: list[Page] | None = None
        self._mute = False
        self.leaving = False
        self.serving = False

    @property
    def usable(self) -> bool:
        """Whether a page can be opened."""
        return os.access(self._folder, os.W_OK | os.X_OK)

    @property
    def siblings(self) -> list[Page]:
        """The pages of the others, as last read."""
        return [page for _, page in self._read.values()]

    @property
    def successor_serves(self) -> bool:
        """Whether a process that began after this one accepts connections."""
        return any(page.serving and page.since > self._since for page in self.siblings)

    def look(self) -> bool:
        """Clear away what the dead left; return whether any sibling lives."""
        with self._locked():
            for name in self._others():
                if self._dead(name):
                    with contextlib.suppress(OSError):
                        (self._folder / name).unlink()
            self._listen()
        return bool(self._read)

    def open(self, core: Scheduler | None = None) -> None:
        """Begin to tell what this process holds."""
        if self._page is None:
            with self._locked():
                path = self._folder / f"{self._pid}{SUFFIX}"
                self._page = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                _lock(self._page)
                self._tell(core)

    def close(self) -> None:
        """Stop telling: nothing is held any more, or nobody is left who listens."""
        if self._page is not None:
            with self._locked(), contextlib.suppress(OSError):
                (self._folder / f"{self._pid}{SUFFIX}").unlink()
            os.close(self._page)
            self._page, self._written = None, b""

    def begin(self) -> SiblingsObserved | None:
        """Take the lock and hear the others; None when nothing has changed since."""
        self._acquire()
        self._listen()
        if self._heard == (heard := self.siblings):
            return None
        self._heard = heard
        elders = [self._holdings(page) for page in heard if page.since < self._since]
        return combined(elders, [self._holdings(page) for page in heard if page.since >= self._since])

    def end(self, core: Scheduler | None) -> None:
        """Tell the others, and give the lock back. A full disk must not stop what is to be told."""
        try:
            self._tell(core)
        except OSError as error:
            if not self._mute:
                self._log.error(
                    "handover_page_unwritten", message="siblings don't hear of us", error=str(error)
                )
            self._mute = True
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    # Inner workings.

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._acquire()
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _acquire(self) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not _lock(self._lock):
            if time.monotonic() > deadline:
                self._log.error("handover_lock_stuck", message="another drover-proxy holds the lock")
                return
            time.sleep(0.0002)

    def _others(self) -> list[str]:
        own = f"{self._pid}{SUFFIX}"
        try:
            names = os.listdir(self._folder)  # noqa: PTH208 - on each event
        except OSError:
            return []  # somebody has cleared the folder away
        return [name for name in names if name.endswith(SUFFIX) and name != own]

    def _listen(self) -> None:
        names = self._others()
        for gone in self._read.keys() - set(names):
            del self._read[gone]
        for name in names:
            # One that ends just now, or was killed as it wrote, can't be read: look() clears that away.
            with contextlib.suppress(OSError, msgspec.DecodeError):
                content = (self._folder / name).read_bytes()
                known = self._read.get(name)
                if known is None or known[0] != content:
                    self._read[name] = content, msgspec.json.decode(content, type=Page)

    def _dead(self, name: str) -> bool:
        try:
            found = os.open(self._folder / name, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return True
        try:
            return _lock(found)
        finally:
            os.close(found)

    def _tell(self, core: Scheduler | None) -> None:
        if self._page is None:
            return
        held = core.holdings() if core is not None else NOTHING
        state = core.state if core is not None else None
        named = self._addresses
        page = Page(
            pid=self._pid,
            since=self._since,
            leaving=self.leaving,
            serving=self.serving,
            requests=len(state.requests) if state is not None else 0,
            waiting=state.waiting_count if state is not None else 0,
            busy=[(named[instance], blob, count) for (instance, blob), count in held.busy.items()],
            going=[(named[instance], blob) for instance, blob in held.leaving],
            unloads=[(named[instance], blob, count) for (instance, blob), count in held.unloads.items()],
            changes=held.changes,
            waits=list(held.waits),
            memory=held.memory,
            wishes=held.wishes,
        )
        content = msgspec.json.encode(page)
        if content != self._written:
            os.pwrite(self._page, content, 0)
            os.ftruncate(self._page, len(content))
            self._written = content

    def _holdings(self, page: Page) -> Holdings:
        names = self._names
        return Holdings(
            busy={(names[at], blob): count for at, blob, count in page.busy if at in names},
            leaving=tuple((names[at], blob) for at, blob in page.going if at in names),
            unloads={(names[at], blob): count for at, blob, count in page.unloads if at in names},
            changes=page.changes,
            waits=tuple(page.waits),
            memory=page.memory,
            wishes=page.wishes,
        )


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
