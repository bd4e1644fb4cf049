"""NVML for the stand-in of nvidia-smi: the library through ctypes, and how each field is read.

Standard library only: the driver package ships this file beside smi.py.
"""

from __future__ import annotations

import ctypes
import datetime as dt
from collections.abc import Callable
from typing import Any

MIB = 1024 * 1024
NOT_AVAILABLE = "[N/A]"
LIBRARY = "libnvidia-ml.so.1"
RECOVERY = {0: "None", 1: "Reset", 2: "Reboot", 3: "Drain P2P", 4: "Drain and Reset"}


class NvmlError(Exception):
    """NVML answered with an error; `code` is also nvidia-smi's exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class _Memory(ctypes.Structure):
    _fields_ = [
        ("version", ctypes.c_uint),
        ("total", ctypes.c_ulonglong),
        ("reserved", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    ]


class _Process(ctypes.Structure):
    _fields_ = [
        ("pid", ctypes.c_uint),
        ("bytes", ctypes.c_ulonglong),
        ("gi", ctypes.c_uint),
        ("ci", ctypes.c_uint),
    ]


class _Pci(ctypes.Structure):
    _fields_ = [
        ("legacy", ctypes.c_char * 16),
        ("domain", ctypes.c_uint),
        ("bus", ctypes.c_uint),
        ("device", ctypes.c_uint),
        ("device_id", ctypes.c_uint),
        ("subsystem_id", ctypes.c_uint),
        ("bus_id", ctypes.c_char * 32),
    ]


class _Field(ctypes.Structure):
    _fields_ = [
        ("field", ctypes.c_uint),
        ("scope", ctypes.c_uint),
        ("timestamp", ctypes.c_longlong),
        ("latency", ctypes.c_longlong),
        ("type", ctypes.c_uint),
        ("answer", ctypes.c_int),
        ("value", ctypes.c_ulonglong),
    ]


class Nvml:
    """The library, with errors as exceptions."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError:
            raise NvmlError(12) from None
        self._library.nvmlErrorString.restype = ctypes.c_char_p

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function; NvmlError where it doesn't answer 0."""
        code = getattr(self._library, name)(*arguments)
        if code:
            raise NvmlError(code)

    def error_text(self, code: int) -> str:
        """What the library calls an error."""
        text: bytes = self._library.nvmlErrorString(code)
        return text.decode()

    def system_text(self, name: str) -> str:
        """A text about the whole system."""
        buffer = ctypes.create_string_buffer(96)
        self.call(name, buffer, 96)
        return buffer.value.decode()

    def count(self) -> int:
        """How many GPUs there are."""
        number = ctypes.c_uint()
        self.call("nvmlDeviceGetCount_v2", ctypes.byref(number))
        return number.value


class Device:
    """One GPU; every property asks the library anew."""

    def __init__(self, nvml: Nvml, index: int) -> None:
        self.nvml = nvml
        self.position = index
        self.handle = ctypes.c_void_p()
        nvml.call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(self.handle))

    def text(self, what: str) -> str:
        """A text, by the end of its function's name."""
        buffer = ctypes.create_string_buffer(96)
        self.nvml.call(f"nvmlDeviceGet{what}", self.handle, buffer, 96)
        return buffer.value.decode()

    def number(self, what: str, *before: Any) -> int:
        """A number, by the end of its function's name."""
        value = ctypes.c_ulonglong()
        self.nvml.call(f"nvmlDeviceGet{what}", self.handle, *before, ctypes.byref(value))
        return value.value

    def memory(self) -> _Memory:
        """Total, reserved, free and used."""
        memory = _Memory(version=0x02000028)
        self.nvml.call("nvmlDeviceGetMemoryInfo_v2", self.handle, ctypes.byref(memory))
        return memory

    def pci(self) -> _Pci:
        """Where it is on the bus, and what."""
        pci = _Pci()
        self.nvml.call("nvmlDeviceGetPciInfo_v3", self.handle, ctypes.byref(pci))
        return pci

    def bus_id(self) -> str:
        """The PCI bus id with its long domain."""
        value: bytes = self.pci().bus_id
        return value.decode()

    def capability(self) -> str:
        """The CUDA compute capability."""
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.nvml.call(
            "nvmlDeviceGetCudaComputeCapability", self.handle, ctypes.byref(major), ctypes.byref(minor)
        )
        return f"{major.value}.{minor.value}"

    def pair(self, what: str) -> tuple[int, int]:
        """Two numbers in one answer: utilisation, ECC mode."""
        pair = (ctypes.c_uint * 2)()
        if what == "UtilizationRates":
            self.nvml.call("nvmlDeviceGetUtilizationRates", self.handle, pair)
        else:
            second = ctypes.byref(pair, 4)
            self.nvml.call(f"nvmlDeviceGet{what}", self.handle, pair, second)
        return pair[0], pair[1]

    def remapped(self, index: int) -> int:
        """Remapped rows: correctable, uncorrectable, pending, failure."""
        rows = [ctypes.c_uint() for _ in range(4)]
        self.nvml.call("nvmlDeviceGetRemappedRows", self.handle, *(ctypes.byref(row) for row in rows))
        return rows[index].value

    def field(self, number: int) -> int:
        """A field value."""
        value = _Field(field=number)
        self.nvml.call("nvmlDeviceGetFieldValues", self.handle, 1, ctypes.byref(value))
        if value.answer:
            raise NvmlError(value.answer)
        return int(value.value)

    def processes(self) -> list[_Process]:
        """The compute processes."""
        count = ctypes.c_uint(128)
        found = (_Process * 128)()
        self.nvml.call("nvmlDeviceGetComputeRunningProcesses_v3", self.handle, ctypes.byref(count), found)
        return list(found[: count.value])


Reader = Callable[[Device], str]


def _mib(name: str) -> Reader:
    return lambda device: str(round(getattr(device.memory(), name) / MIB))


def _watts(what: str) -> Reader:
    return lambda device: f"{device.number(what) / 1000:.2f}"


def _remap(index: int) -> Reader:
    return lambda device: str(device.remapped(index))


def _switch(value: int) -> str:
    return "Enabled" if value else "Disabled"


def _ecc(counter: int) -> Reader:
    return lambda device: str(device.number("TotalEccErrors", ctypes.c_uint(1), ctypes.c_uint(counter)))


# Field: unit, and how to read it.
FIELDS: dict[str, tuple[str, Reader]] = {
    "timestamp": ("", lambda _: dt.datetime.now().strftime("%Y/%m/%d %H:%M:%S.%f")[:-3]),  # noqa: DTZ005
    "driver_version": ("", lambda device: device.nvml.system_text("nvmlSystemGetDriverVersion")),
    "count": ("", lambda device: str(device.nvml.count())),
    "name": ("", lambda device: device.text("Name")),
    "index": ("", lambda device: str(device.number("Index"))),
    "uuid": ("", lambda device: device.text("UUID")),
    "serial": ("", lambda device: device.text("Serial")),
    "compute_cap": ("", Device.capability),
    "pci.bus_id": ("", Device.bus_id),
    "pci.domain": ("", lambda device: f"0x{device.pci().domain:04X}"),
    "pci.bus": ("", lambda device: f"0x{device.pci().bus:02X}"),
    "pci.device": ("", lambda device: f"0x{device.pci().device:02X}"),
    "pci.device_id": ("", lambda device: f"0x{device.pci().device_id:08X}"),
    "pci.sub_device_id": ("", lambda device: f"0x{device.pci().subsystem_id:08X}"),
    "memory.total": ("MiB", _mib("total")),
    "memory.reserved": ("MiB", _mib("reserved")),
    "memory.used": ("MiB", _mib("used")),
    "memory.free": ("MiB", _mib("free")),
    "utilization.gpu": ("%", lambda device: str(device.pair("UtilizationRates")[0])),
    "utilization.memory": ("%", lambda device: str(device.pair("UtilizationRates")[1])),
    "temperature.gpu": ("", lambda device: str(device.number("Temperature", ctypes.c_uint(0)))),
    "temperature.memory": ("", lambda device: str(device.field(82))),
    "power.draw": ("W", _watts("PowerUsage")),
    "power.limit": ("W", _watts("PowerManagementLimit")),
    "power.default_limit": ("W", _watts("PowerManagementDefaultLimit")),
    "enforced.power.limit": ("W", _watts("EnforcedPowerLimit")),
    "persistence_mode": ("", lambda device: _switch(device.number("PersistenceMode"))),
    "pstate": ("", lambda device: f"P{device.number('PerformanceState')}"),
    "ecc.mode.current": ("", lambda device: _switch(device.pair("EccMode")[0])),
    "ecc.mode.pending": ("", lambda device: _switch(device.pair("EccMode")[1])),
    "ecc.errors.uncorrected.volatile.total": ("", _ecc(0)),
    "ecc.errors.uncorrected.aggregate.total": ("", _ecc(1)),
    "remapped_rows.correctable": ("", _remap(0)),
    "remapped_rows.uncorrectable": ("", _remap(1)),
    "remapped_rows.pending": ("", _remap(2)),
    "remapped_rows.failure": ("", _remap(3)),
    "mig.mode.current": ("", lambda device: _switch(device.pair("MigMode")[0])),
    "clocks_event_reasons.active": (
        "",
        lambda device: f"0x{device.number('CurrentClocksEventReasons'):016X}",
    ),
    "gpu_recovery_action": ("", lambda device: RECOVERY.get(device.field(230), NOT_AVAILABLE)),
}
ALIASES = {
    "gpu_name": "name",
    "gpu_uuid": "uuid",
    "gpu_serial": "serial",
    "gpu_bus_id": "pci.bus_id",
    "compute_capability": "compute_cap",
}
APP_FIELDS: dict[str, tuple[str, Callable[[Device, _Process], str]]] = {
    "gpu_uuid": ("", lambda device, _: device.text("UUID")),
    "gpu_name": ("", lambda device, _: device.text("Name")),
    "gpu_bus_id": ("", lambda device, _: device.bus_id()),
    "pid": ("", lambda _, process: str(process.pid)),
    "process_name": ("", lambda device, process: process_name(device.nvml, process.pid)),
    "used_gpu_memory": ("MiB", lambda _, process: str(process.bytes // MIB)),
}


def process_name(nvml: Nvml, pid: int) -> str:
    """The name of a process as NVML knows it."""
    buffer = ctypes.create_string_buffer(1024)
    try:
        nvml.call("nvmlSystemGetProcessName", ctypes.c_uint(pid), buffer, 1024)
    except NvmlError:
        return "[Not Found]"
    return buffer.value.decode(errors="replace")


def read(device: Device, reader: Reader) -> str:
    """A field's value; what this GPU doesn't have is [N/A]."""
    try:
        return reader(device)
    except NvmlError as error:
        if error.code in {3, 13}:
            return NOT_AVAILABLE
        raise
