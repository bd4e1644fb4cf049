"""Stand-ins of modprobe, rmmod, insmod, modinfo, lsmod and dmesg on a lab host, for NVIDIA's modules.

What is asked of other modules goes on to the real kmod. Standard library only: this file is also copied onto
lab hosts, as /usr/lib/labgpu/kmod.py; the first argument is the name of the program to play.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

try:
    from lab.gpu.faults import inject
    from lab.gpu.kernel import Kernel, KernelError
    from lab.gpu.state import GpuState, StateError
except ImportError:  # on a lab host the files lie side by side
    from faults import inject  # type: ignore[import-not-found,no-redef]
    from kernel import Kernel, KernelError  # type: ignore[import-not-found,no-redef]
    from state import GpuState, StateError  # type: ignore[import-not-found,no-redef]

KMOD = Path("/usr/bin/kmod")
SIZES = {"nvidia": 14_381_056, "nvidia_uvm": 2_158_592}


def _ours(name: str) -> bool:
    return name.replace("-", "_").startswith("nvidia")


def _words(arguments: list[str], with_value: str) -> tuple[list[str], list[str]]:
    """Split into options and names; options of one letter in `with_value` take the word after them."""
    options: list[str] = []
    names: list[str] = []
    rest = iter(arguments)
    for word in rest:
        if not word.startswith("-"):
            names.append(word)
        elif word.startswith("--") or word[-1] not in with_value:
            options.append(word)
        else:
            options.append(f"{word}={next(rest, '')}")
    return options, names


def modprobe(kernel: Kernel, arguments: list[str]) -> int:
    """Load modules, or with -r remove them."""
    options, names = _words(arguments, "CdS")
    quiet = _has(options, "q", "--quiet")
    remove = _has(options, "r", "--remove")
    dry = _has(options, "nD", "--dry-run", "--show", "--show-depends")
    several = remove or _has(options, "a", "--all")
    for name in names if several else names[:1]:  # without -a the rest are the module's parameters
        if remove and name.replace("-", "_") not in kernel.loaded():
            continue
        refusal = _try(kernel, name, "missing" if dry else "remove" if remove else "insert")
        if refusal:
            if not quiet or "not found" not in refusal:
                kind = "FATAL" if "not found" in refusal or "in use" in refusal else "ERROR"
                print(f"modprobe: {kind}: {refusal}", file=sys.stderr)
            return 1
    if remove and "nvidia" in kernel.loaded() and "nvidia" not in names:
        _try(kernel, "nvidia", "remove")  # modprobe -r also drops what nothing needs any more
    return 0


def _has(options: list[str], letters: str, *words: str) -> bool:
    """Whether an option was given, alone, or among others as in -abq."""
    short = "".join(option[1:] for option in options if not option.startswith("--"))
    return any(letter in short for letter in letters) or any(word in options for word in words)


def _try(kernel: Kernel, name: str, what: str) -> str:
    """Do it and return nothing, or return what the kernel says against it."""
    plain = name.replace("-", "_")
    if what == "missing":
        known = kernel.module_info(plain) is not None
        return "" if known else f"Module {name} not found in directory /lib/modules/{kernel.release}"
    if os.geteuid() != 0:
        return f"could not {what} '{name}': Operation not permitted"
    try:
        if what == "insert":
            kernel.load(plain)
        else:
            kernel.unload(plain)
    except KernelError as error:
        return str(error)
    return ""


def rmmod(kernel: Kernel, arguments: list[str]) -> int:
    """Remove modules."""
    _, names = _words(arguments, "")
    refusals = [refusal for name in names if (refusal := _try(kernel, name, "remove"))]
    for refusal in refusals:
        print(f"rmmod: ERROR: {refusal}", file=sys.stderr)
    return 1 if refusals else 0


def modinfo(kernel: Kernel, arguments: list[str]) -> int:
    """Print what an installed module says of itself."""
    release = field = None
    names = []
    rest = iter(arguments)
    for word in rest:
        if word in {"-k", "--set-version"}:
            release = next(rest, None)
        elif word in {"-F", "--field"}:
            field = next(rest, None)
        elif word.startswith("--field="):
            field = word.partition("=")[2]
        elif word == "-n":
            field = "filename"
        elif not word.startswith("-"):
            names.append(word)
    status = 0
    for name in names:
        info = kernel.module_info(name.replace("-", "_"), release)
        if info is None:
            print(f"modinfo: ERROR: Module {name} not found.", file=sys.stderr)
            status = 1
            continue
        shown = {"filename": str(kernel.module_file(name, release)), **info}
        shown.pop("flavour", None)
        if field:
            print(shown.get(field, ""))
        else:
            print("".join(f"{key + ':':16}{value}\n" for key, value in shown.items()), end="")
    return status


def lsmod(kernel: Kernel) -> int:
    """List the loaded modules."""
    loaded = kernel.loaded()
    print("Module                  Size  Used by")
    for name in loaded:
        used = "1 nvidia_uvm" if name == "nvidia" and "nvidia_uvm" in loaded else "0"
        print(f"{name:19}{SIZES[name]:>9}  {used}")
    return 0


def dmesg(kernel: Kernel) -> int:
    """Print the kernel's log."""
    print(kernel.log_file.read_text(encoding="utf-8"), end="")
    return 0


def fault(kernel: Kernel, arguments: list[str]) -> int:
    """Set a fault as `python -m lab.gpu fault` does, and let the kernel log the XID as in life."""
    target, kind = arguments
    inject(kernel.state, target, kind)
    for gpu in GpuState.load(kernel.state).gpus:
        if target in {"all", f"gpu{gpu.index}"} and (kind == "lost" or kind.startswith("xid=")):
            where = ":".join(gpu.pci_bus_id.split(":")[:3])[4:].rsplit(".", 1)[0].lower()
            kernel.log(f"NVRM: Xid (PCI:{where}): {gpu.xid}, pid='<unknown>', name=<unknown>")
    return 0


def main(program: str, arguments: list[str]) -> int:
    """Play a program; the exit code."""
    kernel = Kernel(Path(os.environ.get("LABGPU_ROOT", "/")), os.environ.get("LABGPU_RELEASE"))
    try:
        if program in {"modprobe", "rmmod", "modinfo", "insmod"}:
            if not any(_ours(word) for word in arguments if not word.startswith("-")) and KMOD.exists():
                os.execv(KMOD, [program, *arguments])  # noqa: S606
            if program == "insmod":
                return modprobe(kernel, [Path(arguments[-1]).stem])
            return {"modprobe": modprobe, "rmmod": rmmod, "modinfo": modinfo}[program](kernel, arguments)
        return (
            {"lsmod": lsmod, "dmesg": dmesg}[program](kernel)
            if program != "fault"
            else fault(kernel, arguments)
        )
    except (OSError, StateError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
