"""Reading /proc, and choosing cores."""

from __future__ import annotations

import os
import sys

import pytest

from bench import processes
from tests.support import eventually


def test_cpu_time_is_read_behind_a_name_with_spaces():
    """A process may be called ") 1 2": the fields are counted from the last parenthesis."""
    stat = "12 (a) 9 9 (b) S 1 12 12 0 -1 4194304 90 0 0 0 150 50 7 3 20 0 1 0 100 0 0"

    assert processes.cpu_of(stat) == pytest.approx(210 / os.sysconf("SC_CLK_TCK"))


def test_the_exact_figure_counts_while_every_thread_lives():
    """Nanoseconds by thread are better than ticks, until a thread has ended and taken its own with it."""
    before = (1.0, {"10": 1_000_000, "11": 2_000_000})

    assert processes.used(before, (9.0, {"10": 4_000_000, "11": 2_000_000, "12": 5})) == pytest.approx(
        0.003000005
    )
    assert processes.used(before, (1.5, {"10": 4_000_000})) == 0.5


def test_threads_of_one_core_are_not_set_against_each_other(monkeypatch, tmp_path):
    """Where the first core's second thread comes next, the core after it is taken."""
    assert processes.listed("0-1,4\n") == {0, 1, 4}
    assert processes.other_core([0, 1, 2, 3], {0, 1}) == 2
    assert processes.other_core([0, 1], {0, 1}) == 1


def test_one_core_is_refused_in_a_sentence(monkeypatch):
    """The comparison needs two."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {3})

    with pytest.raises(processes.BenchError, match="needs two cores"):
        processes.cores()


def test_a_child_is_watched_with_its_descendants_and_ended(tmp_path):
    """CPU and memory are those of the whole family, and none of it stays."""
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    core = min(os.sched_getaffinity(0))
    child = processes.start("family", [sys.executable, "-c", code], core, tmp_path)
    try:
        eventually(lambda: len(child.pids()) == 2, timeout=10, what="the grandchild runs")
        before = sum(child.cpu_exact().values())
        eventually(lambda: sum(child.cpu_exact().values()) > before + 20e6, timeout=10, what="CPU is counted")
        assert child.rss_bytes() > child.resident_bytes() > 5_000_000
        assert child.cores() == {core}
        assert child.cpu_seconds() >= 0
    finally:
        family = child.pids()
        child.stop()
    for pid in family:
        eventually(lambda pid=pid: processes.gone(pid), timeout=5, what=f"{pid} has ended")


def test_pages_that_are_shared_are_told_from_a_process_own():
    """Memory of a parent and a child that it forked counts once where it is the same."""
    text = """\
55f0-7ffc ---p 00000000 00:00 0    [rollup]
Rss:               14000 kB
Pss:                7000 kB
Pss_Dirty:          1000 kB
Shared_Clean:       8000 kB
Shared_Dirty:       2000 kB
Private_Clean:       500 kB
Private_Dirty:      3500 kB
Private_Hugetlb:       9 kB
"""

    assert processes._rollup(text) == (4000 * 1024, 10_000 * 1024)
    assert processes._rollup("") == (0, 0)


def test_whoever_does_not_come_up_is_ended_and_quoted(tmp_path):
    """The error has the last words of the contestant."""
    core = min(os.sched_getaffinity(0))
    code = "import sys; sys.exit('no such option')"
    child = processes.start("broken", [sys.executable, "-c", code], core, tmp_path)

    with pytest.raises(processes.BenchError, match="no such option"):
        processes.wait_for(child, lambda: False, seconds=10)

    assert child.process.poll() is not None
