"""NVIDIA GPUs on the PCI bus: architecture by device id, and which driver each architecture needs.

A driver isn't needed to know a GPU: the PCI device id tells its chip. Ranges as in NVIDIA's list of supported
products; kernel module flavours and last branches as in NVIDIA's driver installation guide.
"""

from __future__ import annotations

from dataclasses import dataclass

# (first id, last id, architecture); the first match wins, so that exceptions stand before their ranges.
DEVICE_IDS = (
    (0x0FC0, 0x12FF, "kepler"),
    (0x15F0, 0x15FF, "pascal"),
    (0x1340, 0x17FF, "maxwell"),
    (0x1B00, 0x1D7F, "pascal"),
    (0x1D80, 0x1DFF, "volta"),
    (0x1E00, 0x1FFF, "turing"),
    (0x2180, 0x21FF, "turing"),
    (0x2080, 0x20FF, "ampere"),
    (0x2300, 0x233F, "hopper"),
    (0x2340, 0x237F, "grace-hopper"),
    (0x2200, 0x25FF, "ampere"),
    (0x2600, 0x28FF, "ada"),
    (0x2900, 0x32FF, "blackwell"),
)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA display or 3D controller on the bus."""

    address: str
    device_id: int
    architecture: str


@dataclass(frozen=True, slots=True)
class Support:
    """What an architecture can run: its flavours, the preferred one first, and its last branch if any."""

    flavours: tuple[str, ...]
    last_branch: int | None = None


SUPPORT = {
    "maxwell": Support(("proprietary",), 580),
    "pascal": Support(("proprietary",), 580),
    "volta": Support(("proprietary",), 580),
    "turing": Support(("open", "proprietary")),
    "ampere": Support(("open", "proprietary")),
    "ada": Support(("open", "proprietary")),
    "hopper": Support(("open", "proprietary")),
    "grace-hopper": Support(("open",)),
    "blackwell": Support(("open",)),
}
# From this branch on NVIDIA ships no proprietary kernel modules.
FIRST_OPEN_ONLY_BRANCH = 615


def architecture_of(device_id: int) -> str:
    """Return the architecture of a PCI device id, 'unknown' for one that the table doesn't hold."""
    for first, last, name in DEVICE_IDS:
        if first <= device_id <= last:
            return name
    return "unknown"


def gpu_from_pci(address: str, device: str) -> Gpu:
    """Return the GPU for a PCI address and the text of its `device` file, such as 0x27b8."""
    try:
        number = int(device, 16)
    except ValueError:
        number = 0
    return Gpu(address, number, architecture_of(number))


class UnsupportedError(ValueError):
    """No driver of this branch and flavour fits all GPUs of the host; the text says which and why."""


def choose_flavour(gpus: tuple[Gpu, ...], wanted: str, branch: int) -> str:
    """Return the kernel module flavour for these GPUs, or raise UnsupportedError."""
    fitting = {"open", "proprietary"}
    if branch >= FIRST_OPEN_ONLY_BRANCH:
        fitting = {"open"}
    for gpu in gpus:
        support = SUPPORT.get(gpu.architecture)
        if gpu.architecture == "kepler":
            raise UnsupportedError(f"{_label(gpu)} is too old: Kepler ended with driver branch 470")
        if support is None:
            # A chip newer than the table: the newest ones run open modules only.
            fitting &= {"open"}
            continue
        if support.last_branch is not None and branch > support.last_branch:
            raise UnsupportedError(
                f"{_label(gpu)} has no driver in branch {branch}; its last is {support.last_branch}. "
                f'Next: set nvidia_driver_branch: "{support.last_branch}" for this host'
            )
        fitting &= set(support.flavours)
    if wanted != "auto":
        if wanted not in fitting:
            raise UnsupportedError(_misfit(gpus, wanted, branch))
        return wanted
    if not fitting:
        raise UnsupportedError(
            f"no kernel modules of branch {branch} fit all GPUs of this host: "
            + ", ".join(f"{_label(gpu)} needs {' or '.join(_flavours(gpu))}" for gpu in gpus)
        )
    return "open" if "open" in fitting else "proprietary"


def _label(gpu: Gpu) -> str:
    return f"GPU {gpu.address} ({gpu.architecture}, 10de:{gpu.device_id:04x})"


def _flavours(gpu: Gpu) -> tuple[str, ...]:
    support = SUPPORT.get(gpu.architecture)
    return support.flavours if support else ("open",)


def _misfit(gpus: tuple[Gpu, ...], wanted: str, branch: int) -> str:
    if branch >= FIRST_OPEN_ONLY_BRANCH and wanted == "proprietary":
        return f"branch {branch} has only open kernel modules. Next: set nvidia_driver_flavour: auto"
    misfits = [gpu for gpu in gpus if wanted not in _flavours(gpu)]
    return (
        f"{', '.join(_label(gpu) for gpu in misfits)}: {wanted} modules would install and then not bind; "
        f"it needs {' or '.join(_flavours(misfits[0]))}. Next: set nvidia_driver_flavour: auto"
    )
