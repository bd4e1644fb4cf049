"""A stand-in of nvidia-smi over libnvidia-ml.so.1: its queries, its texts and its exit codes.

Standard library only; the driver package ships it behind /usr/bin/nvidia-smi. Exit codes: 0 well, 2 a bad
argument, 3 not supported, 4 no permission, 6 no such GPU, 9 no driver, 12 no library, 15 a GPU is lost,
18 versions differ.
"""

from __future__ import annotations

import ctypes
import datetime as dt
import sys
from typing import Any

try:
    from lab.gpu.smi_nvml import (
        ALIASES,
        APP_FIELDS,
        FIELDS,
        MIB,
        NOT_AVAILABLE,
        Device,
        Nvml,
        NvmlError,
        process_name,
        read,
    )
except ImportError:  # in the driver package the files lie side by side
    from smi_nvml import (  # type: ignore[import-not-found,no-redef]
        ALIASES,
        APP_FIELDS,
        FIELDS,
        MIB,
        NOT_AVAILABLE,
        Device,
        Nvml,
        NvmlError,
        process_name,
        read,
    )

TEXTS = {
    9: "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
    "Make sure that the latest NVIDIA driver is installed and running.\n",
    12: "NVIDIA-SMI couldn't find libnvidia-ml.so library in your system. Please make sure that the NVIDIA "
    "Display Driver is properly installed and present in your system.\n"
    "Please also try adding directory that contains libnvidia-ml.so to your system PATH.\n",
}
HELP = """\
NVIDIA System Management Interface -- simulated GPUs of a lab host

    -h,   --help                Print usage information and exit.
    -L,   --list-gpus           Display a list of GPUs connected to the system.
    -q,   --query               Display GPU or Unit info.
    -pm,  --persistence-mode=   Set persistence mode: 0 or 1.
    -i,   --id=                 Target a specific GPU: index, UUID or PCI bus id; several with commas.
          --query-gpu=          Fields, with commas: {fields}
          --query-compute-apps= Fields, with commas: {apps}
          --format=             csv, then noheader and nounits, with commas.
"""


class UsageError(Exception):
    """The arguments can't be understood: exit code 2."""


def _formats(text: str | None) -> tuple[bool, bool]:
    parts = (text or "").split(",")
    if parts[0] != "csv" or set(parts[1:]) - {"noheader", "nounits"}:
        raise UsageError("\"--format=\" is missing or not understood. Please run 'nvidia-smi -h' for help.")
    return "noheader" not in parts, "nounits" not in parts


def _table(known: dict[str, Any], wanted: str, form: str | None) -> tuple[list[tuple[str, Any]], bool]:
    header, units = _formats(form)
    columns = []
    for word in wanted.split(","):
        name = word.strip()
        key = name if name in known else ALIASES.get(name, name)
        if key not in known:
            raise UsageError(f'Field "{name}" is not a valid field to query.\n')
        columns.append((name, known[key]))
    if header:
        print(", ".join(f"{name} [{unit}]" if unit and units else name for name, (unit, _) in columns))
    return columns, units


def _with_unit(value: str, unit: str, units: bool) -> str:
    return f"{value} {unit}" if unit and units and value != NOT_AVAILABLE else value


def query_gpu(devices: list[Device], wanted: str, form: str | None) -> None:
    """--query-gpu."""
    columns, units = _table(FIELDS, wanted, form)
    for device in devices:
        print(", ".join(_with_unit(read(device, reader), unit, units) for _, (unit, reader) in columns))


def query_apps(devices: list[Device], wanted: str, form: str | None) -> None:
    """--query-compute-apps."""
    columns, units = _table(APP_FIELDS, wanted, form)
    for device in devices:
        for process in device.processes():
            print(", ".join(_with_unit(get(device, process), unit, units) for _, (unit, get) in columns))


def list_gpus(devices: list[Device]) -> None:
    """-L."""
    for device in devices:
        print(f"GPU {device.position}: {device.text('Name')} (UUID: {device.text('UUID')})")


def set_persistence(devices: list[Device], wanted: str) -> None:
    """-pm: keep the driver's state when no client is there, until the next boot."""
    if wanted not in {"0", "1"}:
        raise UsageError("Invalid combination of input arguments. Please run 'nvidia-smi -h' for help.\n")
    word = "Enabled" if wanted == "1" else "Disabled"
    for device in devices:
        where = device.bus_id()
        if str(device.number("PersistenceMode")) == wanted:
            print(f"Persistence mode is already {word} for GPU {where}.")
            continue
        try:
            device.nvml.call("nvmlDeviceSetPersistenceMode", device.handle, ctypes.c_uint(int(wanted)))
        except NvmlError as error:
            text = device.nvml.error_text(error.code)
            print(f"Unable to set persistence mode for GPU {where}: {text}")
            print("Terminating early due to previous error.")
            raise
        print(f"{word} persistence mode for GPU {where}.")
    print("All done.")


def _cuda(nvml: Nvml) -> str:
    version = ctypes.c_int()
    nvml.call("nvmlSystemGetCudaDriverVersion_v2", ctypes.byref(version))
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def query_all(nvml: Nvml, devices: list[Device]) -> None:
    """-q: the sections that people read."""
    print("\n==============NVSMI LOG==============\n")
    print(f"{'Driver Version':42}: {nvml.system_text('nvmlSystemGetDriverVersion')}")
    print(f"{'CUDA Version':42}: {_cuda(nvml)}\n")
    print(f"{'Attached GPUs':42}: {nvml.count()}")
    sections = {
        "": (
            "Product Name=name",
            "Persistence Mode=persistence_mode",
            "Serial Number=serial",
            "GPU UUID=uuid",
        ),
        "PCI": ("Bus=pci.bus", "Device=pci.device", "Domain=pci.domain", "Bus Id=pci.bus_id"),
        "FB Memory Usage": tuple(
            f"{key.title()}=memory.{key}" for key in ("total", "reserved", "used", "free")
        ),
        "Utilization": ("GPU=utilization.gpu", "Memory=utilization.memory"),
        "ECC Mode": ("Current=ecc.mode.current", "Pending=ecc.mode.pending"),
        "Remapped Rows": tuple(
            f"{label}=remapped_rows.{key}"
            for label, key in (
                ("Correctable Error", "correctable"),
                ("Uncorrectable Error", "uncorrectable"),
                ("Pending", "pending"),
                ("Remapping Failure Occurred", "failure"),
            )
        ),
        "Temperature": ("GPU Current Temp=temperature.gpu",),
        "GPU Power Readings": ("Average Power Draw=power.draw", "Current Power Limit=power.limit"),
    }
    for device in devices:
        print(f"GPU {device.bus_id()}")
        for title, lines in sections.items():
            indent = "        " if title else "    "
            if title:
                print(f"    {title}")
            for line in lines:
                label, _, key = line.partition("=")
                unit, reader = FIELDS[key]
                unit = "C" if key.startswith("temperature") else unit
                value = _with_unit(read(device, reader), unit, units=True).strip("[]")
                print(f"{indent + label:42}: {value}")
        action = read(device, FIELDS["gpu_recovery_action"][1]).strip("[]")
        print(f"{'    GPU Recovery Action':42}: {action}\n")


def overview(nvml: Nvml, devices: list[Device]) -> None:
    """The table that comes without arguments."""
    line = "+" + "-" * 89 + "+"
    version = nvml.system_text("nvmlSystemGetDriverVersion")
    print(dt.datetime.now().strftime("%a %b %d %H:%M:%S %Y"))  # noqa: DTZ005
    print(line)
    head = f"NVIDIA-SMI {version:<22} Driver Version: {version:<14} CUDA Version: {_cuda(nvml)}"
    print(f"| {head:<87} |\n{line}")
    for device in devices:
        memory = device.memory()
        left = f"{device.position:>3}  {device.text('Name'):<32} {device.bus_id()}"
        right = f"{memory.used // MIB:>6}MiB / {memory.total // MIB:>6}MiB"
        busy = f"{device.pair('UtilizationRates')[0]:>3}%"
        print(f"| {f'{left:<60} {right} {busy}':<87} |")
    print(f"{line}\n| {'Processes:':<87} |")
    rows = [(device, process) for device in devices for process in device.processes()]
    for device, process in rows:
        name = process_name(nvml, process.pid)[:48]
        row = f"{device.position:>4} {process.pid:>10}  C  {name:<48} {process.bytes // MIB:>8}MiB"
        print(f"| {row:<87} |")
    if not rows:
        print(f"| {'  No running processes found':<87} |")
    print(line)


def choose(nvml: Nvml, wanted: str | None) -> list[Device]:
    """The GPUs that -i names, or all."""
    count = nvml.count()
    if wanted is None:
        if count == 0:
            print("No devices were found")
            raise NvmlError(6)
        return [_open(nvml, index) for index in range(count)]
    chosen = []
    for word in wanted.split(","):
        if word.isdigit() and int(word) < count:
            chosen.append(_open(nvml, int(word)))
            continue
        by = "UUID" if word.startswith("GPU-") else "PciBusId_v2"
        handle, index = ctypes.c_void_p(), ctypes.c_uint()
        try:
            nvml.call(f"nvmlDeviceGetHandleBy{by}", ctypes.c_char_p(word.encode()), ctypes.byref(handle))
            nvml.call("nvmlDeviceGetIndex", handle, ctypes.byref(index))
        except NvmlError as error:
            if error.code in {2, 6}:
                print("No devices were found")
                raise NvmlError(6) from None
            raise
        chosen.append(_open(nvml, index.value))
    return chosen


def _open(nvml: Nvml, index: int) -> Device:
    try:
        return Device(nvml, index)
    except NvmlError as error:
        if error.code == 15:
            text = "GPU is lost.  Reboot the system to recover this GPU"
            print(f"Unable to determine the device handle for GPU{index}: {text}")
        raise


def arguments_of(words: list[str]) -> dict[str, str]:
    """Read the command line as nvidia-smi does: `--key=value`, or `-i value`."""
    options: dict[str, str] = {}
    rest = iter(words)
    long_names = {
        "--list-gpus": "-L",
        "--query": "-q",
        "--id": "-i",
        "--help": "-h",
        "--persistence-mode": "-pm",
    }
    valued = {"-i", "-pm", "--query-gpu", "--query-compute-apps", "--format"}
    for word in rest:
        key, separator, value = word.partition("=")
        key = long_names.get(key, key)
        if key in {"-L", "-q", "-h"} and not separator:
            options[key] = ""
        elif key in valued:
            options[key] = value if separator else next(rest, "")
        else:
            raise UsageError(
                f"Invalid combination of input arguments. Please run 'nvidia-smi -h' for help.\n\n{word}"
            )
    return options


def run(options: dict[str, str]) -> None:
    """Do what the options ask."""
    nvml = Nvml()
    try:
        nvml.call("nvmlInit_v2")
    except NvmlError as error:
        if error.code not in TEXTS:
            print(f"Failed to initialize NVML: {nvml.error_text(error.code)}")
        if error.code == 18:
            library = nvml.system_text("nvmlSystemGetNVMLVersion").split(".")
            print(f"NVML library version: {'.'.join(library[1:3])}")
        raise
    devices = choose(nvml, options.get("-i"))
    if "-L" in options:
        list_gpus(devices)
    elif "--query-gpu" in options:
        query_gpu(devices, options["--query-gpu"], options.get("--format"))
    elif "--query-compute-apps" in options:
        query_apps(devices, options["--query-compute-apps"], options.get("--format"))
    elif "-pm" in options:
        set_persistence(devices, options["-pm"])
    elif "-q" in options:
        query_all(nvml, devices)
    else:
        overview(nvml, devices)


def main(words: list[str]) -> int:
    """Run the command line; the exit code."""
    try:
        options = arguments_of(words)
        if "-h" in options:
            print(HELP.format(fields=", ".join(FIELDS), apps=", ".join(APP_FIELDS)), end="")
            return 0
        run(options)
    except UsageError as error:
        print(error)
        return 2
    except NvmlError as error:
        if error.code in TEXTS:
            print(TEXTS[error.code])
        return error.code if error.code < 256 else 255
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
