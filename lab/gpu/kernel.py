"""Plays the kernel's part of a simulated host: the PCI bus, loading and unloading nvidia, /proc and /sys.

Runs as root on a lab host from labgpu.service at each boot, and from the stand-ins of modprobe and its kin.
Standard library only: this file is also copied onto lab hosts, as /usr/lib/labgpu/kernel.py.

Nothing here reaches the machine below: the trees are folders under /run/labgpu-kernel, bound over the places
where programs look, inside the host's own mount namespace. The state lies in /dev/labgpu, because a unit with
ProtectSystem=strict can still write there, as it can to a GPU; /run/labgpu is a link to it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

try:
    from lab.gpu.initial import initial_state
    from lab.gpu.state import GpuState, StateError, is_alive, locked
except ImportError:  # on a lab host the files lie side by side
    from initial import initial_state  # type: ignore[import-not-found,no-redef]
    from state import GpuState, StateError, is_alive, locked  # type: ignore[import-not-found,no-redef]

NVIDIA_MAJOR = 195
UVM_MAJOR = 511
CONTROL_MINOR = 255
MODULES = ("nvidia", "nvidia_uvm")
# The tree of a mount, and where it is laid: only what exists below can be covered.
COVERS = {
    "pci": "sys/bus/pci/devices",
    "module": "sys/module",
    "procdriver": "proc/driver",
    "devices": "proc/devices",
    "modules": "proc/modules",
}


class KernelError(Exception):
    """The kernel refuses; the message is what insmod or rmmod would say."""


class Kernel:
    """The simulated kernel of one host. `root` other than / is for tests: no mounts, no device nodes."""

    def __init__(self, root: Path = Path("/"), release: str | None = None) -> None:
        self.root = root
        self.release = release or os.uname().release
        self.is_real = root == Path("/")
        self.tree = root / "run/labgpu-kernel"
        self.state = root / "dev/labgpu/state"
        self.log_file = root / "var/log/labgpu-kernel.log"

    # ---- boot ----

    def boot(self) -> None:
        """Lay the trees; load what a booting kernel would: nvidia by its alias, others by modules-load.d."""
        self.tree.mkdir(parents=True, exist_ok=True)
        self.state.parent.mkdir(parents=True, exist_ok=True)
        self.state.parent.chmod(0o777)  # noqa: S103  every user of the GPU writes its claims there
        link = self.root / "run/labgpu"
        if not link.is_symlink():
            link.symlink_to("/dev/labgpu" if self.is_real else self.state.parent)
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        self.log_file.write_text("", encoding="utf-8")  # a new boot, a new ring buffer
        self._lay_pci()
        for name in ("module", "procdriver"):
            (self.tree / name).mkdir(exist_ok=True)
        self._write_lists(())
        if self.is_real:
            self._cover()
        if self.gpus():
            with contextlib.suppress(KernelError):
                self.load("nvidia")
        for name in self._modules_at_boot():
            with contextlib.suppress(KernelError):
                self.load(name)

    def gpus(self) -> list[dict[str, Any]]:
        """The GPUs on the bus, as /etc/labgpu/profile.json has them."""
        try:
            profile = json.loads((self.root / "etc/labgpu/profile.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        gpus: list[dict[str, Any]] = profile.get("gpus", [])
        return gpus

    def _cover(self) -> None:
        for name, place in COVERS.items():
            target = self.root / place
            if not target.exists():
                if name != "pci":
                    continue  # this kernel has no such file: nothing to cover, nobody reads it
                target = self.root / "sys/bus"
                (self.tree / "bus/pci").mkdir(parents=True, exist_ok=True)
                (self.tree / "bus/pci/devices").symlink_to(self.tree / name)
                subprocess.run(["mount", "--bind", self.tree / "bus", target], check=True)
                continue
            subprocess.run(["mount", "--bind", self.tree / name, target], check=True)

    def _lay_pci(self) -> None:
        base = self.tree / "pci"
        base.mkdir(exist_ok=True)
        for gpu in self.gpus():
            device, vendor = _halves(gpu["pci_device_id"])
            sub_device, sub_vendor = _halves(gpu.get("pci_subsystem_id", "0x000010DE"))
            pci_class = gpu.get("pci_class", "0x030200").lower()
            folder = base / pci_address(gpu["pci_bus_id"])
            folder.mkdir(exist_ok=True)
            files = {
                "vendor": vendor,
                "device": device,
                "class": pci_class,
                "subsystem_vendor": sub_vendor,
                "subsystem_device": sub_device,
                "revision": "0xa1",
                "numa_node": "-1",
                "enable": "1",
                "modalias": f"pci:v{vendor[2:]:0>8}d{device[2:]:0>8}bc03sc{pci_class[4:6]}i00",
            }
            for name, value in files.items():
                (folder / name).write_text(value + "\n", encoding="utf-8")

    def _modules_at_boot(self) -> list[str]:
        # systemd-modules-load.service doesn't run in a container, so its folders are read here.
        names: list[str] = []
        for folder in ("usr/lib/modules-load.d", "etc/modules-load.d", "run/modules-load.d"):
            for file in sorted((self.root / folder).glob("*.conf")):
                lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
                names += [line.replace("-", "_") for line in lines if line and line[0] not in "#;"]
        return [name for name in names if name in MODULES]

    # ---- modules ----

    def module_file(self, name: str, release: str | None = None) -> Path:
        """Where a kernel's module lies when it is installed."""
        file = f"{name.replace('_', '-')}.ko"
        return self.root / "lib/modules" / (release or self.release) / "updates/dkms" / file

    def module_info(self, name: str, release: str | None = None) -> dict[str, str] | None:
        """What modinfo says of an installed module, or None."""
        try:
            text = self.module_file(name, release).read_text(encoding="utf-8")
        except OSError:
            return None
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def loaded(self) -> list[str]:
        """The modules that are loaded, in the order of lsmod."""
        return [name for name in reversed(MODULES) if (self.tree / "module" / name).is_dir()]

    def load(self, name: str) -> None:
        """Insert a module with what it needs; KernelError where the kernel refuses."""
        name = name.replace("-", "_")
        with self._locked():
            if name in self.loaded():
                return
            if name != "nvidia" and "nvidia" not in self.loaded():
                self._load_nvidia()
            if name == "nvidia":
                self._load_nvidia()
            else:
                if self.module_info(name) is None:
                    raise KernelError(f"Module {name} not found in directory /lib/modules/{self.release}")
                self._show_module(name, {"refcnt": "0", "initstate": "live"})
                self._node("nvidia-uvm", UVM_MAJOR, 0)
                self._node("nvidia-uvm-tools", UVM_MAJOR, 1)
                self._count_users()
            self._write_lists(self.loaded())

    def _load_nvidia(self) -> None:
        info = self.module_info("nvidia")
        if info is None:
            raise KernelError(f"Module nvidia not found in directory /lib/modules/{self.release}")
        version, flavour = info["version"], info["flavour"]
        bound = [gpu for gpu in self.gpus() if self._probe(gpu, version, flavour)]
        if not bound:
            self.log(
                "NVRM: No NVIDIA GPU found."
                if not self.gpus()
                else "NVRM: None of the NVIDIA devices were initialized."
            )
            raise KernelError("could not insert 'nvidia': No such device")
        self._show_module("nvidia", {"version": version, "refcnt": "0", "initstate": "live"})
        self._show_driver(version, flavour, bound)
        with locked(self.state):
            initial_state({"gpus": _renumbered(bound)}, version).save(self.state)
        self._node("nvidiactl", NVIDIA_MAJOR, CONTROL_MINOR)
        for index, gpu in enumerate(bound):
            self._node(f"nvidia{index}", NVIDIA_MAJOR, index)
            link = self.tree / "pci" / pci_address(gpu["pci_bus_id"]) / "driver"
            link.unlink(missing_ok=True)
            link.symlink_to("../../../../bus/pci/drivers/nvidia")
        self.log(f"NVRM: loading {_nvrm(version, flavour)}")
        self._write_lists(self.loaded())

    def _probe(self, gpu: Mapping[str, Any], version: str, flavour: str) -> bool:
        address = pci_address(gpu["pci_bus_id"])
        device, vendor = (half[2:] for half in _halves(gpu["pci_device_id"]))
        who = f"The NVIDIA GPU {address} (PCI ID: {vendor}:{device})"
        last = gpu.get("last_branch")
        if flavour not in gpu.get("flavours", ["open", "proprietary"]):
            lines: tuple[str, ...] = _NEEDS_OPEN if flavour == "proprietary" else _NO_GSP
        elif last and int(version.partition(".")[0]) > int(last):
            lines = (f"installed in this system is supported through the NVIDIA {last}.xx Legacy drivers.",)
        else:
            return True
        self.log(f"NVRM: {who}", *(f"NVRM: {line}" for line in lines))
        self.log(f"nvidia: probe of {address} failed with error -1")
        return False

    def unload(self, name: str) -> None:
        """Remove a module; KernelError while anything uses it."""
        name = name.replace("-", "_")
        with self._locked():
            if name not in self.loaded():
                raise KernelError(f"Module {name} is not currently loaded")
            if name == "nvidia" and "nvidia_uvm" in self.loaded():
                raise KernelError("Module nvidia is in use by: nvidia_uvm")
            if self.users(name):
                raise KernelError(f"Module {name} is in use")
            shutil.rmtree(self.tree / "module" / name)
            if name == "nvidia":
                self._forget_driver()
            else:
                for node in ("nvidia-uvm", "nvidia-uvm-tools"):
                    (self.root / "dev" / node).unlink(missing_ok=True)
            self._count_users()
            self._write_lists(self.loaded())

    def users(self, name: str = "nvidia") -> list[int]:
        """The processes that keep a module: what holds memory, and for nvidia the persistence daemon too."""
        pids = []
        with contextlib.suppress(StateError):
            pids += [pid for gpu in GpuState.load(self.state).gpus for pid in gpu.procs if is_alive(pid)]
        file = self.root / "run/nvidia-persistenced/nvidia-persistenced.pid"
        if name == "nvidia" and file.exists():
            with contextlib.suppress(OSError, ValueError):
                pid = int(file.read_text(encoding="utf-8"))
                pids += [pid] if is_alive(pid) else []
        return sorted(set(pids))

    def _forget_driver(self) -> None:
        shutil.rmtree(self.tree / "procdriver/nvidia", ignore_errors=True)
        self.state.unlink(missing_ok=True)
        for node in (self.root / "dev").glob("nvidia*"):
            if node.name == "nvidiactl" or node.name[6:].isdigit():
                node.unlink()
        for link in (self.tree / "pci").glob("*/driver"):
            link.unlink()

    # ---- what programs read ----

    def _show_module(self, name: str, files: Mapping[str, str]) -> None:
        folder = self.tree / "module" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, value in files.items():
            (folder / file).write_text(value + "\n", encoding="utf-8")

    def _count_users(self) -> None:
        if "nvidia" in self.loaded():
            self._show_module("nvidia", {"refcnt": str(int("nvidia_uvm" in self.loaded()))})

    def _show_driver(self, version: str, flavour: str, bound: Iterable[Mapping[str, Any]]) -> None:
        folder = self.tree / "procdriver/nvidia"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "version").write_text(
            f"NVRM version: {_nvrm(version, flavour)}\nGCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n",
            encoding="utf-8",
        )
        for index, gpu in enumerate(bound):
            place = folder / "gpus" / pci_address(gpu["pci_bus_id"])
            place.mkdir(parents=True, exist_ok=True)
            (place / "information").write_text(
                f"Model: \t\t {gpu['name']}\nGPU UUID: \t {gpu['uuid']}\nBus Location: \t {place.name}\n"
                f"Device Minor: \t {index}\nGPU Firmware: \t {version}\nGPU Excluded:\t No\n",
                encoding="utf-8",
            )

    def _write_lists(self, loaded: Iterable[str]) -> None:
        """Write /proc/devices and /proc/modules anew, in place: the mount is of the file, not of its name."""
        names = list(loaded)
        below = self.tree / "devices.below"
        if not below.exists():
            real = self.root / "proc/devices"
            below.write_text(
                real.read_text(encoding="utf-8")
                if real.exists()
                else "Character devices:\n  1 mem\n\nBlock devices:\n",
                encoding="utf-8",
            )
        character, separator, block = below.read_text(encoding="utf-8").partition("\nBlock devices:")
        lines = [line for line in character.splitlines() if "nvidia" not in line]
        if "nvidia" in names:
            lines += [f"{NVIDIA_MAJOR} nvidia", f"{NVIDIA_MAJOR} nvidiactl"]
        if "nvidia_uvm" in names:
            lines.append(f"{UVM_MAJOR} nvidia-uvm")
        (self.tree / "devices").write_text("\n".join(lines) + "\n" + separator + block, encoding="utf-8")
        (self.tree / "modules").write_text("".join(proc_modules(names)), encoding="utf-8")

    def _node(self, name: str, major: int, minor: int) -> None:
        path = self.root / "dev" / name
        path.unlink(missing_ok=True)
        if not self.is_real:
            path.touch()
            return
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(major, minor))
        except OSError as error:
            if error.errno not in {errno.EPERM, errno.EACCES}:
                raise
            path.touch()  # a sandbox without mknod: the name at least is there
        path.chmod(0o666)

    def log(self, *lines: str) -> None:
        """Append to the kernel's log, in dmesg's form."""
        stamp = f"[{time.monotonic():12.6f}] "
        with self.log_file.open("a", encoding="utf-8") as file:
            file.writelines(f"{stamp}{line}\n" for line in lines)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fd = os.open(self.tree / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def pci_address(bus_id: str) -> str:
    """The address as sysfs has it, from NVML's form with its long domain."""
    domain, _, rest = bus_id.partition(":")
    return f"{int(domain, 16):04x}:{rest.lower()}"


def _halves(device_id: str) -> tuple[str, str]:
    number = int(device_id, 16)
    return f"0x{number >> 16:04x}", f"0x{number & 0xFFFF:04x}"


def _renumbered(gpus: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{**gpu, "index": index} for index, gpu in enumerate(gpus)]


def _nvrm(version: str, flavour: str) -> str:
    kind = "Open Kernel Module for x86_64" if flavour == "open" else "x86_64 Kernel Module"
    return f"NVIDIA UNIX {kind}  {version}  Release Build  (lab)"


def proc_modules(names: Iterable[str]) -> list[str]:
    """The lines of /proc/modules for loaded modules."""
    loaded = list(names)
    lines = {
        "nvidia_uvm": "nvidia_uvm 2158592 0 - Live 0x0000000000000000 (OE)\n",
        "nvidia": "nvidia 14381056 1 nvidia_uvm, Live 0x0000000000000000 (OE)\n"
        if "nvidia_uvm" in loaded
        else "nvidia 14381056 0 - Live 0x0000000000000000 (OE)\n",
    }
    return [lines[name] for name in loaded]


_NO_GSP = (
    "installed in this system is not supported by open",
    "nvidia.ko because it does not include the required GPU",
    "System Processor (GSP).",
    "Please see the 'Open Linux Kernel Modules' and 'GSP",
    "Firmware' chapters in the driver README, available on",
    "the Linux graphics driver download page at",
    "www.nvidia.com.",
)
_NEEDS_OPEN = (
    "installed in this system requires use of the NVIDIA open kernel modules.",
    "Please see the 'Open Linux Kernel Modules' chapter in the driver README.",
)


if __name__ == "__main__":
    if sys.argv[1:] != ["boot"]:
        sys.exit("usage: kernel.py boot")
    Kernel().boot()
