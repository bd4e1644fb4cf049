"""The simulated kernel of a host, in a folder instead of a root: what it loads, binds, unloads and shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from lab.gpu import install, kmod
from lab.gpu.kernel import Kernel, KernelError, pci_address
from lab.gpu.state import GpuState, claim
from tests.unit.lab.gpu_support import PROJECT

RELEASE = "6.1.0-unit"
LICENSES = {"open": "Dual MIT/GPL", "proprietary": "NVIDIA"}


@pytest.fixture
def make_kernel(tmp_path):
    """Boot a host with these GPUs, and with a module installed if asked."""

    def make(*models, version="", flavour="open"):
        install.into(tmp_path, [{"model": model} for model in models], lab="unit", host="a")
        kernel = Kernel(tmp_path, RELEASE)
        if version:
            put_module(kernel, version, flavour)
        kernel.boot()
        return kernel

    return make


def put_module(kernel, version, flavour="open"):
    """Install a module as dkms does."""
    for name in ("nvidia", "nvidia_uvm"):
        file = kernel.module_file(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"version={version}\nflavour={flavour}\nlicense={LICENSES[flavour]}\n")


def test_the_bus_shows_the_gpus_before_any_driver(make_kernel):
    """Vendor, device and class can be read of every GPU, as a deploy does first of all."""
    kernel = make_kernel("L4", "RTX4090")
    folders = sorted(folder.name for folder in (kernel.tree / "pci").iterdir())
    assert folders == ["0000:01:00.0", "0000:11:00.0"]
    read = [
        {name: (kernel.tree / "pci" / folder / name).read_text() for name in ("vendor", "device", "class")}
        for folder in folders
    ]
    assert read == [
        {"vendor": "0x10de\n", "device": "0x27b8\n", "class": "0x030200\n"},
        {"vendor": "0x10de\n", "device": "0x2684\n", "class": "0x030000\n"},
    ]
    assert kernel.loaded() == []
    assert not kernel.state.exists()


def test_boot_loads_what_is_installed(make_kernel):
    """Nvidia comes with the GPU's alias; nvidia-uvm only where modules-load.d names it."""
    kernel = make_kernel("L4", version="580.159.03")
    assert kernel.loaded() == ["nvidia"]
    folder = kernel.root / "etc/modules-load.d"
    folder.mkdir()
    (folder / "x.conf").write_text("# a comment\nnvidia\nnvidia-uvm\nbrbridge\n")
    again = Kernel(kernel.root, RELEASE)
    again.boot()
    assert again.loaded() == ["nvidia_uvm", "nvidia"]


@pytest.mark.parametrize(
    ("flavour", "line"),
    [("open", "NVIDIA UNIX Open Kernel Module"), ("proprietary", "NVIDIA UNIX x86_64 Kernel Module")],
)
def test_a_loaded_driver_shows_itself(make_kernel, flavour, line):
    """Version and flavour in /proc and /sys, device nodes, a device number, and the state for the library."""
    kernel = make_kernel("L4", "L4", version="580.159.03", flavour=flavour)
    kernel.load("nvidia-uvm")
    assert line in (kernel.tree / "procdriver/nvidia/version").read_text()
    assert "580.159.03" in (kernel.tree / "procdriver/nvidia/version").read_text()
    assert (kernel.tree / "module/nvidia/version").read_text() == "580.159.03\n"
    assert (kernel.tree / "module/nvidia/refcnt").read_text() == "1\n"
    nodes = {node.name for node in (kernel.root / "dev").glob("nvidia*")}
    assert nodes == {"nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"}
    devices = (kernel.tree / "devices").read_text()
    assert "195 nvidia\n" in devices
    assert "511 nvidia-uvm\n" in devices
    state = GpuState.load(kernel.state)
    assert [state.driver_version, len(state.gpus), state.gpus[1].name] == ["580.159.03", 2, "NVIDIA L4"]


@pytest.mark.parametrize(
    ("model", "version", "flavour", "complaint"),
    [
        ("V100", "580.159.03", "open", "does not include the required GPU"),
        ("V100", "595.45.04", "proprietary", "580.xx Legacy drivers"),
        ("RTX5090", "580.159.03", "proprietary", "requires use of the NVIDIA open kernel modules"),
        ("B200", "595.45.04", "proprietary", "requires use of the NVIDIA open kernel modules"),
    ],
)
def test_the_wrong_driver_does_not_bind(make_kernel, model, version, flavour, complaint):
    """It is installed and stays out: no device, no state, and the kernel's log says why."""
    kernel = make_kernel(model, version=version, flavour=flavour)
    with pytest.raises(KernelError, match="could not insert 'nvidia': No such device"):
        kernel.load("nvidia")
    assert kernel.loaded() == []
    assert not list((kernel.root / "dev").glob("nvidia*"))
    assert not kernel.state.exists()
    assert complaint in kernel.log_file.read_text()
    assert "probe of 0000:01:00.0 failed with error -1" in kernel.log_file.read_text()


def test_only_the_gpus_that_fit_bind(make_kernel):
    """In a mixed host the open driver takes the newer GPU and leaves the older one."""
    kernel = make_kernel("V100", "L4", version="580.159.03")
    state = GpuState.load(kernel.state)
    assert [(gpu.index, gpu.name) for gpu in state.gpus] == [(0, "NVIDIA L4")]
    assert not (kernel.tree / "pci/0000:01:00.0/driver").is_symlink()
    assert (kernel.tree / "pci/0000:11:00.0/driver").is_symlink()


def test_a_host_without_gpus_loads_nothing(make_kernel):
    """The module finds no device."""
    kernel = make_kernel(version="580.159.03")
    with pytest.raises(KernelError, match="No such device"):
        kernel.load("nvidia")
    assert "No NVIDIA GPU found" in kernel.log_file.read_text()


def test_an_upgrade_under_a_loaded_driver_waits_for_a_reload(make_kernel):
    """The new module on disk changes nothing until the old one is out."""
    kernel = make_kernel("L4", version="580.126.20")
    put_module(kernel, "580.159.03")
    kernel.load("nvidia")
    assert GpuState.load(kernel.state).driver_version == "580.126.20"
    kernel.unload("nvidia")
    assert not (kernel.tree / "procdriver/nvidia").exists()
    assert not list((kernel.root / "dev").glob("nvidia*"))
    kernel.load("nvidia")
    assert GpuState.load(kernel.state).driver_version == "580.159.03"


def test_a_driver_in_use_stays(make_kernel):
    """nvidia-uvm needs nvidia, and a process with GPU memory keeps both."""
    kernel = make_kernel("L4", version="580.159.03")
    kernel.load("nvidia-uvm")
    with pytest.raises(KernelError, match="Module nvidia is in use by: nvidia_uvm"):
        kernel.unload("nvidia")
    claim(kernel.state, 0, os.getpid(), 1)
    with pytest.raises(KernelError, match="Module nvidia_uvm is in use"):
        kernel.unload("nvidia-uvm")
    assert kernel.users() == [os.getpid()]


def test_the_persistence_daemon_keeps_nvidia_but_not_uvm(make_kernel):
    """It has a device file open, and computes nothing."""
    kernel = make_kernel("L4", version="580.159.03")
    kernel.load("nvidia-uvm")
    pid_file = kernel.root / "run/nvidia-persistenced/nvidia-persistenced.pid"
    pid_file.parent.mkdir()
    pid_file.write_text(f"{os.getpid()}\n")
    kernel.unload("nvidia-uvm")
    with pytest.raises(KernelError, match="Module nvidia is in use"):
        kernel.unload("nvidia")
    pid_file.unlink()
    kernel.unload("nvidia")


def test_addresses_are_those_of_sysfs():
    """NVML writes an eight-digit domain in capitals, sysfs a four-digit one in small letters."""
    assert pci_address("00000000:5A:00.0") == "0000:5a:00.0"


@pytest.fixture
def tool(make_kernel, monkeypatch, capsys):
    """Run a stand-in of kmod's programs on a host with one L4; exit code and output."""
    kernel = make_kernel("L4", version="580.159.03")
    monkeypatch.setenv("LABGPU_ROOT", str(kernel.root))
    monkeypatch.setenv("LABGPU_RELEASE", RELEASE)
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    def run(program, *arguments):
        code = kmod.main(program, list(arguments))
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    run.kernel = kernel
    return run


def test_modinfo(tool):
    """The field of a deploy's question, the whole, and a module that isn't there."""
    assert tool("modinfo", "-k", RELEASE, "-F", "version", "nvidia") == (0, "580.159.03\n")
    assert tool("modinfo", "-F", "license", "nvidia") == (0, "Dual MIT/GPL\n")
    code, text = tool("modinfo", "nvidia")
    assert (code, "flavour" in text) == (0, False)
    assert f"filename:       {tool.kernel.module_file('nvidia')}" in text
    assert tool("modinfo", "-k", "5.0", "nvidia") == (1, "modinfo: ERROR: Module nvidia not found.\n")
    assert tool("modinfo", "nvidia-current")[0] == 1


def test_modprobe_and_lsmod(tool):
    """Loading, listing, and what systemd's own unit passes (-abq)."""
    assert tool("modprobe", "-abq", "nvidia_uvm") == (0, "")
    code, text = tool("lsmod")
    assert (code, [line.split()[0] for line in text.splitlines()]) == (0, ["Module", "nvidia_uvm", "nvidia"])
    assert tool("modprobe", "-r", "nvidia")[0] == 1
    assert tool("modprobe", "-r", "nvidia-uvm") == (0, "")
    assert tool.kernel.loaded() == []
    assert tool("modprobe", "-n", "nvidia-drm")[0] == 1
    assert tool("modprobe", "-q", "nvidia-drm") == (1, "")


def test_rmmod_says_why_not(tool):
    """In use, and not loaded."""
    tool("modprobe", "nvidia-uvm")
    assert tool("rmmod", "nvidia") == (1, "rmmod: ERROR: Module nvidia is in use by: nvidia_uvm\n")
    assert tool("rmmod", "nvidia_uvm", "nvidia") == (0, "")
    assert tool("rmmod", "nvidia") == (1, "rmmod: ERROR: Module nvidia is not currently loaded\n")


def test_others_may_not_load(tool, monkeypatch):
    """Loading is for root."""
    tool("rmmod", "nvidia")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert tool("modprobe", "nvidia") == (
        1,
        "modprobe: ERROR: could not insert 'nvidia': Operation not permitted\n",
    )


def test_a_fault_on_a_host_is_logged_by_its_kernel(tool):
    """An XID stands in the kernel's log in the form that monitors parse."""
    assert tool("fault", "gpu0", "xid=79") == (0, "")
    assert "NVRM: Xid (PCI:0000:01:00): 79, " in tool("dmesg")[1]
    assert GpuState.load(tool.kernel.state).gpus[0].xid == 79


def test_the_programs_on_a_host_need_nothing_but_python(tmp_path):
    """The installed files import each other where no project and no site-packages are."""
    install.into(tmp_path, [{"model": "L4"}], lab="unit", host="a")
    assert json.loads((tmp_path / "etc/labgpu/profile.json").read_text())["gpus"][0]["name"] == "NVIDIA L4"
    assert str(PROJECT) not in (tmp_path / "usr/sbin/modprobe").read_text()
    Kernel(tmp_path, RELEASE).boot()
    done = subprocess.run(
        [sys.executable, "-BES", str(tmp_path / "usr/lib/labgpu/kmod.py"), "lsmod"],
        env={"LABGPU_ROOT": str(tmp_path), "PATH": os.environ["PATH"]},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Module ")
