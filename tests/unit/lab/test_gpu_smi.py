"""The stand-in of nvidia-smi: what it prints, and its exit codes."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from lab.gpu.state import claim, edit
from tests.unit.lab.gpu_support import DRIVER, Box, make_box, needs_compiler

pytestmark = needs_compiler
MIB = 1 << 20


def test_list(box):
    """`-L` has one line a GPU, in nvidia-smi's form."""
    done = box.smi("-L")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(
        re.fullmatch(rf"GPU {i}: NVIDIA L4 \(UUID: GPU-[0-9a-f-]{{36}}\)", line)
        for i, line in enumerate(lines)
    )


def test_query_in_csv(box):
    """Header and units, without a header, and without units."""
    claim(box.state, 0, os.getpid(), 512 * MIB)
    query = "--query-gpu=index,name,memory.total,memory.used,power.limit,mig.mode.current,compute_cap"
    assert box.smi(query, "--format=csv").stdout.splitlines()[:2] == [
        "index, name, memory.total [MiB], memory.used [MiB], power.limit [W], mig.mode.current, compute_cap",
        "0, NVIDIA L4, 23034 MiB, 512 MiB, 72.00 W, [N/A], 8.9",
    ]
    assert (
        box.smi(query, "--format=csv,noheader")
        .stdout.splitlines()[1]
        .startswith("1, NVIDIA L4, 23034 MiB, 0 MiB")
    )
    bare = box.smi(query, "--format=csv,noheader,nounits", "-i", "1").stdout
    assert bare == "1, NVIDIA L4, 23034, 0, 72.00, [N/A], 8.9\n"


def test_every_field_of_the_help_can_be_queried(box):
    """What --help names works."""
    words = re.search(r"--query-gpu= +Fields, with commas: (.*)", box.smi("--help").stdout)
    fields = words[1].replace(" ", "")
    done = box.smi(f"--query-gpu={fields}", "--format=csv,noheader")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()[0].split(", ")) == len(fields.split(","))


def test_compute_processes(box):
    """--query-compute-apps lists who holds memory."""
    claim(box.state, 1, os.getpid(), 300 * MIB)
    done = box.smi("--query-compute-apps=pid,used_gpu_memory", "--format=csv,noheader")
    assert done.stdout == f"{os.getpid()}, 300 MiB\n"


def test_the_table_and_the_long_form(box):
    """Both name driver, GPU and memory."""
    table, long = box.smi().stdout, box.smi("-q").stdout
    assert f"Driver Version: {DRIVER}" in table
    assert re.search(r"NVIDIA L4 +00000000:01:00.0 +0MiB / +23034MiB +0%", table)
    assert len({len(line) for line in table.splitlines()[1:]}) == 1
    assert re.search(rf"Driver Version +: {DRIVER}", long)
    assert re.search(r"Bus Id +: 00000000:11:00.0", long)
    assert re.search(r"Total +: 23034 MiB", long)


@pytest.mark.parametrize("key", ["1", "uuid", "00000000:11:00.0", "0000:11:00.0"])
def test_one_gpu_by_index_uuid_or_bus_id(box, key):
    """`-i` takes each of them."""
    uuid = box.smi("--query-gpu=uuid", "--format=csv,noheader").stdout.splitlines()[1]
    done = box.smi("-i", uuid if key == "uuid" else key, "--query-gpu=index", "--format=csv,noheader")
    assert (done.returncode, done.stdout) == (0, "1\n")


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--nonsense"], 2, "Invalid combination of input arguments"),
        (["--query-gpu=nonsense", "--format=csv"], 2, 'Field "nonsense" is not a valid field to query.'),
        (["--query-gpu=name"], 2, '"--format=" is missing'),
        (["-i", "9", "-L"], 6, "No devices were found"),
        (["-i", "GPU-none", "-L"], 6, "No devices were found"),
    ],
)
def test_what_it_refuses(box, words, code, text):
    """Exit codes 2 and 6, with a reason."""
    done = box.smi(*words)
    assert done.returncode == code
    assert text in done.stdout


def test_no_gpu_at_all(nvml_library, tmp_path):
    """A loaded driver without a GPU is exit code 6."""
    done = make_box(nvml_library, tmp_path).smi("-L")
    assert (done.returncode, done.stdout) == (6, "No devices were found\n")


def test_no_driver(box):
    """Exit code 9 and the sentence that everybody knows."""
    box.state.unlink()
    done = box.smi()
    assert done.returncode == 9
    assert "couldn't communicate with the NVIDIA driver" in done.stdout


def test_no_library(box, tmp_path):
    """Exit code 12."""
    done = Box(tmp_path / "none", box.state).smi("-L")
    assert done.returncode == 12
    assert "couldn't find libnvidia-ml.so library" in done.stdout


def test_a_lost_gpu(box):
    """Exit code 15, and which GPU it is."""
    box.fault("gpu1", "lost")
    done = box.smi("-L")
    assert done.returncode == 15
    assert "Unable to determine the device handle for GPU1" in done.stdout


def test_versions_that_differ(box):
    """Exit code 18, and the library's version."""
    with edit(box.state) as state:
        state.library_version = "595.45.04"
    done = box.smi()
    assert done.returncode == 18
    assert (
        done.stdout
        == "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 595.45\n"
    )


def test_a_state_that_may_not_be_read(box):
    """NVML's error 4 for a user who may not open the device."""
    box.state.chmod(0)
    probe = (
        "import ctypes, os; lib = ctypes.CDLL('libnvidia-ml.so.1');"
        "os.geteuid() == 0 and os.setuid(65534); raise SystemExit(lib.nvmlInit_v2())"
    )
    done = subprocess.run([sys.executable, "-c", probe], env=box.env, check=False)
    assert done.returncode == 4


def test_persistence_mode(box):
    """-pm sets it, says so, and is idle the second time."""
    if os.geteuid() != 0:
        assert box.smi("-pm", "1").returncode == 4
        return
    assert box.smi("-pm", "1").stdout.startswith("Enabled persistence mode for GPU 00000000:01:00.0.")
    assert "already Enabled" in box.smi("-i", "0", "-pm", "1").stdout
    assert box.smi("--query-gpu=persistence_mode", "--format=csv,noheader").stdout == "Enabled\nEnabled\n"
    assert box.smi("-pm", "7").returncode == 2
