"""The state file of simulated GPUs: its text, its locks, what memory counts."""

from __future__ import annotations

import multiprocessing
import os
import stat
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.gpu import faults
from lab.gpu.state import (
    Gpu,
    GpuMemoryError,
    GpuState,
    Held,
    StateError,
    claim,
    edit,
    free_bytes,
    is_alive,
    release,
    state_path,
)

GIB = 1 << 30


@pytest.fixture
def path(tmp_path):
    """A state with one GPU of 24 GiB, 1 GiB of which the driver keeps."""
    where = tmp_path / "state"
    gpu = Gpu(index=0, uuid="GPU-1", memory_total_bytes=24 * GIB, memory_reserved_bytes=GIB)
    GpuState(driver_version="580.1.1", gpus=[gpu]).save(where)
    return where


def only_gpu(path):
    """The state's only GPU, read anew."""
    return GpuState.load(path).gpus[0]


words = st.text(st.characters(codec="ascii", exclude_categories=["C"]), max_size=20).map(str.strip)
sizes = st.integers(0, 1 << 45)


@given(
    st.builds(
        GpuState,
        driver_version=words,
        cuda_version=sizes,
        loaded=st.integers(0, 1),
        gpus=st.lists(
            st.builds(
                Gpu,
                index=st.integers(0, 31),
                uuid=words,
                name=words,
                memory_total_bytes=sizes,
                temperature_c=st.integers(0, 120),
                fault=st.sampled_from(["", "lost", "hang"]),
                procs=st.dictionaries(st.integers(1, 1 << 22), sizes, max_size=3),
                held=st.dictionaries(
                    st.from_regex(r"[a-z0-9-]{1,8}", fullmatch=True),
                    st.builds(Held, sizes, pid=st.integers(1, 99)),
                ),
                extra=st.dictionaries(st.sampled_from(["serial", "ecc", "unknown_key"]), words),
            ),
            max_size=3,
            unique_by=lambda gpu: gpu.index,
        ),
    )
)
def test_what_is_written_is_read_back(state):
    """Every state survives its own text, keys that the program doesn't know included."""
    state.gpus.sort(key=lambda gpu: gpu.index)
    assert GpuState.parse(state.text()) == state


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("format=2", "format 2"), ("nonsense", "line 1"), ("gpu.0.xid=many", "line 1")],
)
def test_a_state_that_cannot_be_read_says_where(text, complaint):
    """A bad line is named with its number, not skipped."""
    with pytest.raises(StateError, match=complaint):
        GpuState.parse(text)


def test_no_state_file_is_said_with_its_path(tmp_path):
    """A missing file is a StateError that names it."""
    with pytest.raises(StateError, match=r"nowhere.*driver loaded"):
        GpuState.load(tmp_path / "nowhere")


def test_the_path_comes_from_the_environment(monkeypatch):
    """LABGPU_STATE wins over the place on a lab host."""
    monkeypatch.setenv("LABGPU_STATE", "/x/state")
    assert str(state_path()) == "/x/state"
    monkeypatch.delenv("LABGPU_STATE")
    assert str(state_path()) == "/run/labgpu/state"


def test_a_claim_takes_memory_and_a_release_gives_it_back(path):
    """Free memory is total less what the driver keeps less what living processes hold."""
    claim(path, 0, os.getpid(), 5 * GIB)
    assert free_bytes(only_gpu(path)) == 18 * GIB
    claim(path, 0, os.getpid(), 6 * GIB)
    assert free_bytes(only_gpu(path)) == 17 * GIB
    release(path, 0, os.getpid())
    assert free_bytes(only_gpu(path)) == 23 * GIB


def test_a_claim_beyond_what_is_free_is_refused_and_changes_nothing(path):
    """A GPU never holds more than it has: the claim fails as cudaMalloc would."""
    claim(path, 0, os.getpid(), 20 * GIB)
    with pytest.raises(GpuMemoryError, match="GPU 0 has"):
        claim(path, 0, os.getpid(), 24 * GIB)
    assert only_gpu(path).used_bytes() == 20 * GIB


def test_a_claim_on_a_gpu_that_is_not_there_is_refused(path):
    """The index is checked, and the answer says how many GPUs there are."""
    with pytest.raises(StateError, match="GPU 3 isn't in the state, which has 1"):
        claim(path, 3, os.getpid(), 1)


def test_the_memory_of_a_dead_process_is_free(path):
    """Nobody has to release for a process that was killed."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    claim(path, 0, child.pid, 5 * GIB)
    assert only_gpu(path).used_bytes() == 5 * GIB
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie now, not yet reaped
    assert not is_alive(child.pid)
    assert only_gpu(path).used_bytes() == 0
    child.communicate()


def test_a_late_release_holds_the_memory_until_its_time(path):
    """Memory that comes back late counts as used until then, and not a moment longer."""
    claim(path, 0, os.getpid(), 5 * GIB)
    release(path, 0, os.getpid(), late_seconds=60)
    gpu = only_gpu(path)
    assert gpu.procs == {}
    assert gpu.used_bytes() == 5 * GIB
    assert gpu.used_bytes(now=time.time() + 61) == 0


def test_memory_can_be_held_by_a_process(path):
    """`<bytes>@pid:<pid>` counts as long as that process lives."""
    with edit(path) as state:
        state.gpus[0].held = {"mine": Held(GIB, pid=os.getpid()), "gone": Held(GIB, pid=4_000_000)}
    assert only_gpu(path).used_bytes() == GIB


def test_an_edit_that_fails_leaves_the_file_as_it_was(path):
    """An exception inside `edit` writes nothing."""
    before = path.read_text()
    with pytest.raises(ZeroDivisionError), edit(path) as state:
        state.gpus[0].xid = 1 // 0
    assert path.read_text() == before


def test_every_user_may_write_the_state_whatever_the_umask(path):
    """The Ollama of a hardened unit (UMask=0077) writes it, the proxy's user reads it."""
    before = os.umask(0o077)
    try:
        with edit(path) as state:
            state.gpus[0].xid = 1
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666
    assert stat.S_IMODE(path.with_name("state.lock").stat().st_mode) == 0o666


def _count_up(path, rounds):
    for _ in range(rounds):
        with edit(path) as state:
            state.gpus[0].xid_count += 1


def test_edits_of_several_processes_lose_nothing(path):
    """Four processes that count in the same state end at the sum, and no reader sees half a file."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_count_up, args=(path, 25)) for _ in range(4)]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        assert len(GpuState.load(path).gpus) == 1
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert only_gpu(path).xid_count == 100
    assert {file.name for file in path.parent.iterdir()} == {"state", "state.lock"}


def test_a_lost_gpu_has_its_xid_and_asks_for_a_reboot(path):
    """A GPU that falls off the bus raises XID 79, whose recovery action is a reboot of the host."""
    faults.inject(path, "gpu0", "lost")
    gpu = only_gpu(path)
    assert (gpu.fault, gpu.xid, gpu.xid_count, gpu.recovery_action) == ("lost", 79, 1, 2)
    faults.inject(path, "all", "clear")
    assert (only_gpu(path).fault, only_gpu(path).recovery_action) == ("", 0)


@pytest.mark.parametrize(
    ("target", "kind", "complaint"),
    [("gpu7", "lost", "isn't in the state"), ("0", "lost", "no GPU"), ("gpu0", "fire", "no fault")],
)
def test_a_fault_that_does_not_exist_is_named(path, target, kind, complaint):
    """A wrong target or fault is refused with what there is."""
    with pytest.raises(faults.FaultError, match=complaint):
        faults.inject(path, target, kind)
