"""The memory of signed requests: kept over a restart, and shared by processes that run side by side."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
from drover_proxy.guard.lasting import PREFIX, Lasting
from drover_proxy.guard.replay import (
    RECORD,
    REMEMBERED,
    REPEAT_SECONDS,
    SPAN_SECONDS,
    Replays,
)
from drover_proxy.guard.signature import Signatures, read_signed

from tests.proxy.signer import Signer
from tests.support import eventually_async

STAMP = 1_767_225_600
KEY, OTHER_KEY = b"k" * 32, b"o" * 32
TAGS = b"GET,/api/tags?ts=1767225600"


class Process:
    """One process of the proxy, as far as signed requests go."""

    def __init__(self, folder=None) -> None:
        self.replays = Replays()
        self.errors: list[OSError] = []
        if folder is not None:
            self.replays.keep_in(folder, self.errors.append)

    @classmethod
    def on(cls, run, state) -> Process:
        """Begin on a host."""
        process = cls(run)
        process.replays.outlive_reboots(Lasting(state, process.errors.append))
        return process

    def fault(self, message=TAGS, client="10.0.0.1", *, key=KEY, now=1000.0, stamp=STAMP):
        """Judge a request."""
        return self.replays.fault(key, message, stamp, client, now=now, oldest=stamp - 60.0)


def test_processes_know_what_the_others_took(tmp_path):
    """One that runs beside, and one that is started later, refuse what was used from another address."""
    old, new = Process(tmp_path), Process(tmp_path)
    assert old.fault() == ""
    assert new.fault(client="10.0.0.2") == "signature_replayed"
    assert new.fault(now=1000.0 + REPEAT_SECONDS) == "", "the command repeats itself, also to another process"
    assert new.fault(now=1000.1 + REPEAT_SECONDS) == "signature_replayed"
    assert new.fault(b"GET,/api/ps?ts=1767225600") == ""
    assert old.fault(b"GET,/api/ps?ts=1767225600", client="10.0.0.2") == "signature_replayed"
    late = Process(tmp_path)
    assert late.fault(client="10.0.0.2") == "signature_replayed"
    assert late.fault(key=OTHER_KEY, client="10.0.0.2") == "", "somebody else's own request"
    assert [process.errors for process in (old, new, late)] == [[], [], []]


def test_nothing_but_digests_is_written(tmp_path):
    """Neither who asked nor what for can be read in the file, and only its owner may."""
    process = Process(tmp_path)
    for number in range(300):
        process.fault(b"GET,/api/%d?ts=1767225600" % number)
        process.fault(b"GET,/api/%d?ts=1767225600" % number)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    assert len(content) == 300 * RECORD.size
    assert 4096 % RECORD.size == 0
    assert not any(word in content for word in (b"api", KEY[:8], b"10.0.0"))
    assert file.stat().st_mode & 0o777 == 0o600


RACE = """
import sys
from pathlib import Path
from drover_proxy.guard.replay import Replays
replays = Replays()
replays.keep_in(Path(sys.argv[1]), lambda error: sys.exit(repr(error)))
sys.stdin.readline()
for number in range(int(sys.argv[3])):
    if not replays.fault(b"k" * 32, b"%d" % number, 1767225600, sys.argv[2], now=1.0, oldest=1767225500.0):
        print(number)
"""


def test_of_a_race_one_process_is_the_winner(tmp_path):
    """Each signature is taken once, however many processes are asked for it in the same moment."""
    count = 2000
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(tmp_path), f"10.0.0.{number}", str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PYTHONPATH": ":".join(sys.path)},
        )
        for number in range(4)
    ]
    for racer in racers:
        racer.stdin.write(b"go\n")
        racer.stdin.flush()
    taken = Counter(int(line) for racer in racers for line in racer.communicate(timeout=50)[0].split())
    assert [racer.returncode for racer in racers] == [0] * len(racers)
    assert taken == Counter(dict.fromkeys(range(count), 1))


def test_what_is_too_long_ago_is_deleted(tmp_path):
    """Files of half minutes whose stamps nobody takes any more go, here and those of earlier processes."""
    (tmp_path / f"{PREFIX}x").touch()
    (tmp_path / "lock").touch()
    Process(tmp_path).fault(stamp=STAMP - 1000)
    process = Process(tmp_path)
    for later in range(0, 600, 10):
        assert process.fault(b"%d" % later, stamp=STAMP + later) == ""
    left = {file.name for file in tmp_path.iterdir()}
    assert len(left) <= 2 + 60 // SPAN_SECONDS + 2
    assert len(process.replays) <= (SPAN_SECONDS // 10) * (60 // SPAN_SECONDS + 2)
    assert {"lock", f"{PREFIX}x"} <= left
    assert process.fault(b"590", client="10.0.0.2", stamp=STAMP + 590) == "signature_replayed"


def test_a_key_that_signs_too_much_is_bounded_over_all_processes(tmp_path):
    """What another process took counts too, and another key isn't concerned."""
    old, new = Process(tmp_path), Process(tmp_path)
    for number in range(REMEMBERED):
        assert old.fault(b"%d" % number) == ""
    assert new.fault(b"0", client="10.0.0.2") == "signature_replayed"
    assert new.fault(b"more") == "signature_too_many"
    assert new.fault(b"more", key=OTHER_KEY) == ""


@pytest.mark.parametrize("gone", [True, False], ids=["gone", "a file"])
def test_without_its_folder_it_remembers_all_the_same(tmp_path, gone):
    """It is said once; this process still refuses replays, and shares again when the folder is back."""
    folder = tmp_path / "run"
    if not gone:
        folder.touch()
    process = Process(folder)
    for _ in range(3):
        assert process.fault() == ""
        assert process.fault(client="10.0.0.2") == "signature_replayed"
    assert len(process.errors) == 1
    if gone:
        folder.mkdir()
        assert process.fault(b"another") == ""
        assert Process(folder).fault(b"another", client="10.0.0.2") == "signature_replayed"


@pytest.fixture
def host(tmp_path):
    """Return the folders of a host: one that a reboot empties, and one that it doesn't."""
    folders = tmp_path / "run", tmp_path / "state"
    for folder in folders:
        folder.mkdir()
    return folders


def boot(run):
    """Do what a reboot does."""
    for file in run.iterdir():
        file.unlink()


async def test_a_reboot_is_outlived(host):
    """What was taken before is refused, from the same address too: nobody can say how long ago it was."""
    run, state = host
    before = Process.on(run, state)
    assert before.fault() == ""
    await before.replays.finish()
    boot(run)
    after = Process.on(run, state)
    assert after.fault() == "signature_replayed"
    assert after.fault(client="10.0.0.2") == "signature_replayed"
    assert after.fault(key=OTHER_KEY) == "", "somebody else's own request"
    assert after.fault(b"GET,/api/ps?ts=1767225600") == ""
    await after.replays.finish()
    boot(run)
    last = Process.on(run, state)
    for message in (TAGS, b"GET,/api/ps?ts=1767225600"):
        assert last.fault(message) == "signature_replayed"
    assert [process.errors for process in (before, after, last)] == [[], [], []]


async def test_a_restart_without_a_reboot_knows_when_it_was(host):
    """The command's own repetition is still taken, though the disk has its first request, too."""
    old = Process.on(*host)
    assert old.fault() == ""
    await old.replays.finish()
    new = Process.on(*host)
    assert new.fault(now=1000.0 + REPEAT_SECONDS) == ""
    assert new.fault(client="10.0.0.2") == "signature_replayed"


async def test_what_is_on_the_disk_is_gathered_and_goes_again(host):
    """Digests only, for the owner only; without being told to, and not for longer than they are good for."""
    run, state = host
    process = Process.on(run, state)
    for number in range(300):
        assert process.fault(b"GET,/api/%d?ts=1767225600" % number) == ""
    (kept,) = await eventually_async(lambda: list(state.iterdir()))
    await eventually_async(lambda: kept.stat().st_size == 300 * RECORD.size)
    assert kept.read_bytes() == next(run.iterdir()).read_bytes()
    assert kept.stat().st_mode & 0o777 == 0o600
    (state / "learned.json").touch()
    for later in range(0, 600, SPAN_SECONDS):
        process.fault(b"%d" % later, stamp=STAMP + later)
        await process.replays.finish()
    left = {file.name for file in state.iterdir()}
    assert "learned.json" in left
    assert len(left) <= 1 + 60 // SPAN_SECONDS + 2
    boot(run)
    assert Process.on(run, state).fault(b"570", stamp=STAMP + 570) == "signature_replayed"


@pytest.mark.parametrize(
    "left", [b"", b"x" * 31, bytes(4096), None], ids=["empty", "half", "zeros", "a folder"]
)
async def test_what_a_power_cut_left_is_no_harm(host, left):
    """Whatever is in the files, what is whole counts, and the proxy starts."""
    run, state = host
    file = state / f"{PREFIX}{STAMP // SPAN_SECONDS}"
    if left is None:
        file.mkdir()
        with pytest.raises(IsADirectoryError):
            Process.on(run, state)
        return
    file.write_bytes(left)
    process = Process.on(run, state)
    assert process.fault() == ""
    assert process.fault(client="10.0.0.2") == "signature_replayed"
    await process.replays.finish()
    assert process.errors == []
    boot(run)
    assert Process.on(run, state).fault() == "signature_replayed"


async def test_a_disk_that_fails_stops_nobody(host):
    """It is said once, and what is taken counts in the runtime folder as ever."""
    run, state = host
    process = Process.on(run, state)
    state.rmdir()
    for number in range(3):
        assert process.fault(b"%d" % number) == ""
        await process.replays.finish()
    assert len(process.errors) == 1
    assert Process(run).fault(b"1", client="10.0.0.2") == "signature_replayed"


async def test_where_nothing_is_kept_the_boot_is_where_knowledge_begins(host):
    """What could have been taken before it is refused, and from two windows of uptime on nothing is."""
    run, state = host
    state.rmdir()
    with pytest.raises(OSError, match="can't be"):
        Process.on(run, state)
    signer, wall = Signer(), float(STAMP)
    signatures = Signatures(60.0)
    signatures.replays.blank = True

    def fault(uptime, stamp):
        target = b"/api/tags", b"ts=%d" % stamp
        signed = read_signed(signer.authorization("GET", "/api/tags", stamp).encode())
        return signatures.fault(signed, b"GET", target, "10.0.0.1", (wall, uptime))

    boots = wall - 20.0  # who was taken just before it may have had a clock that was a minute ahead
    assert fault(20.0, int(boots) + 60) == "signature_before_boot"
    assert fault(20.0, int(boots) + 61 - 1) == "signature_before_boot"
    assert fault(70.0, STAMP) == ""
    assert fault(119.0, STAMP - 59) == "signature_before_boot"
    assert fault(120.5, STAMP - 60) == ""
