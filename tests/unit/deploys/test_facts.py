"""Facts, from captured output of real hosts and of hosts that have nothing yet."""

from __future__ import annotations

import pytest

from deploys.lib.facts import (
    AptPackage,
    AptState,
    FileState,
    FileStateFact,
    Lines,
    Machine,
    MachineFact,
    Probe,
    flavour_of_license,
    flavour_of_proc,
    library_version,
    machine_from,
)

WHOLE = """\
== kernel
6.1.0-44-amd64
== boot_id
0f9a3c0e-0b0e-4f0e-9c86-2a1a3d6f0a11
== os
PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
VERSION_ID="12"
ID=debian
== arch
amd64
== pci
0000:01:00.0 0x030200 0x27b8
0000:02:00.0 0x030000 0x2684
0000:02:00.1 0x040300 0x22bb
0000:05:00.0 0x068000 0x22a3
== loaded_version
580.159.03
== proc_version
NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.03  Release Build  (root@build)
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
== module_version
580.159.04
== module_license
Dual MIT/GPL
== library
/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1
/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.159.04
== modules
nvidia_uvm
nvidia
== secure_boot
   1
== mok
/var/lib/dkms/mok.pub
/var/lib/dkms/mok.pub is already enrolled
== free_mib
81234
== packages
ii |nvidia-driver-cuda|580.159.04-1
rc |nvidia-smi|535.1
hi |nvidia-kernel-open-dkms|580.159.04-1
un |nvidia-x|
== running
running
"""
NOTHING = "\n".join(f"== {name}" for name in ("kernel", "boot_id", "os", "pci", "free_mib", "packages"))


def test_a_whole_machine():
    """Every section of the batched command is read."""
    machine = machine_from(WHOLE.splitlines())
    assert machine.distribution == "debian12"
    assert [gpu.architecture for gpu in machine.gpus] == ["ada", "ada"]
    assert machine.nvswitches == 1
    assert (machine.loaded_version, machine.loaded_flavour) == ("580.159.03", "open")
    assert (machine.module_version, machine.module_flavour) == ("580.159.04", "open")
    assert machine.library_version == "580.159.04"
    assert machine.modules == {"nvidia", "nvidia_uvm"}
    assert machine.secure_boot
    assert machine.mok_enrolled
    assert machine.free_mib == 81234
    assert machine.packages == {
        "nvidia-driver-cuda": "580.159.04-1",
        "nvidia-kernel-open-dkms": "580.159.04-1",
    }


def test_a_machine_with_nothing():
    """A host without a driver, without dpkg and without PCI answers with nothing, and nothing breaks."""
    machine = machine_from(NOTHING.splitlines())
    assert machine == Machine(packages={})
    assert MachineFact.default() == Machine()


def test_the_batched_command_runs_here(scripted):
    """The command works on whatever machine runs the tests."""
    scripted.live = True
    machine = scripted.get_fact(MachineFact)
    assert machine.kernel
    assert machine.boot_id


@pytest.mark.parametrize(
    ("text", "flavour"),
    [
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.1", "open"),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.1", "proprietary"),
        ("", ""),
    ],
)
def test_flavour_of_the_loaded_driver(text, flavour):
    """The NVRM line tells which modules are loaded."""
    assert flavour_of_proc(text) == flavour


def test_flavour_of_the_module_on_disk():
    """The licence tells which modules are installed."""
    assert flavour_of_license("Dual MIT/GPL") == "open"
    assert flavour_of_license("NVIDIA") == "proprietary"
    assert not flavour_of_license("")


def test_library_version_takes_the_newest():
    """A library left behind by an older driver doesn't count; a bare soname has no version."""
    paths = "libnvidia-ml.so.1\nlibnvidia-ml.so.580.9.01\nlibnvidia-ml.so.580.159.03\n"
    assert library_version(paths) == "580.159.03"
    assert not library_version("libnvidia-ml.so.1")


def test_file_state(scripted, tmp_path):
    """Digest, mode and owner of a file; None for a link and for nothing."""
    scripted.live = True
    path = tmp_path / "with space"
    path.write_text("x")
    path.chmod(0o640)
    found = scripted.get_fact(FileStateFact, path=str(path))
    assert isinstance(found, FileState)
    assert found.mode == "0640"
    assert found.sha256.startswith("2d711642")
    (tmp_path / "link").symlink_to(path)
    assert scripted.get_fact(FileStateFact, path=str(tmp_path / "link")) is None
    assert scripted.get_fact(FileStateFact, path=str(tmp_path / "none")) is None


def test_probe_and_lines(scripted):
    """A probe says yes or no whatever it prints; lines of a failing command are none."""
    scripted.live = True
    assert scripted.get_fact(Probe, probe="echo no; true") is True
    assert scripted.get_fact(Probe, probe="echo yes; exit 3") is False
    assert scripted.get_fact(Lines, script="echo a; echo b") == ["a", "b"]
    assert scripted.get_fact(Lines, script="nosuchcommand") == []


POLICY = """\
== dpkg
ii |nvidia-driver-cuda|580.159.03-1
== policy
nvidia-driver-cuda:
  Installed: 580.159.03-1
  Candidate: 580.159.04-1
  Version table:
     595.10-1 1
        500 http://10.87.1.1:8088/apt ./ Packages
nvidia-kernel-open-dkms:
  Installed: (none)
  Candidate: (none)
  Version table:
"""


def test_apt_state():
    """Installed version and candidate of each package."""
    found = AptState().process(POLICY.splitlines())
    assert found["nvidia-driver-cuda"] == AptPackage("580.159.03-1", "580.159.04-1")
    assert found["nvidia-kernel-open-dkms"] == AptPackage("", "")
    assert AptState.default() == {}
