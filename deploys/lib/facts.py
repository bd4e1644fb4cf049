"""Facts: what a host is, read by one command where possible, and tolerant of a host with nothing on it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from pyinfra.api import FactBase, QuoteString, StringCommand

from deploys.lib.gpus import Gpu, gpu_from_pci

# Sections of one shell script, each framed by a line "== name". Every command may fail: absence is an answer.
SECTIONS = {
    "kernel": "uname -r",
    "boot_id": "cat /proc/sys/kernel/random/boot_id",
    "os": "cat /etc/os-release",
    "arch": "dpkg --print-architecture",
    "pci": (
        "for d in /sys/bus/pci/devices/*; do "
        '[ "$(cat "$d/vendor" 2>/dev/null)" = 0x10de ] || continue; '
        'echo "${d##*/} $(cat "$d/class") $(cat "$d/device")"; done'
    ),
    "loaded_version": "cat /sys/module/nvidia/version",
    "proc_version": "cat /proc/driver/nvidia/version",
    "module_version": (
        'k=$(uname -r); PATH="$PATH:/usr/sbin:/sbin"; '
        "modinfo -k $k -F version nvidia-current || modinfo -k $k -F version nvidia"
    ),
    "module_license": (
        'k=$(uname -r); PATH="$PATH:/usr/sbin:/sbin"; '
        "modinfo -k $k -F license nvidia-current || modinfo -k $k -F license nvidia"
    ),
    "library": "ls /usr/lib/*-linux-gnu/libnvidia-ml.so.*",
    "modules": "cut -d' ' -f1 /proc/modules",
    "secure_boot": "od -An -t u1 -j 4 -N 1 /sys/firmware/efi/efivars/SecureBoot-*",
    "mok": "ls /var/lib/dkms/mok.pub && mokutil --test-key /var/lib/dkms/mok.pub",
    "free_mib": "df -Pm /usr | awk 'NR==2 {print $4}'",
    "packages": "dpkg-query -W -f '${db:Status-Abbrev}|${Package}|${Version}\\n' '*nvidia*'",
    "running": "systemctl is-system-running",
}


@dataclass(frozen=True, slots=True)
class Machine:
    """What the deploys ask about a host, read once."""

    kernel: str = ""
    boot_id: str = ""
    os_id: str = ""
    os_version: str = ""
    architecture: str = ""
    gpus: tuple[Gpu, ...] = ()
    nvswitches: int = 0
    loaded_version: str = ""
    loaded_flavour: str = ""
    module_version: str = ""
    module_flavour: str = ""
    library_version: str = ""
    modules: frozenset[str] = frozenset()
    secure_boot: bool = False
    mok_enrolled: bool = False
    free_mib: int = 0
    packages: dict[str, str] = field(default_factory=dict)

    @property
    def distribution(self) -> str:
        """Return NVIDIA's name of the distribution, such as debian12."""
        return f"{self.os_id}{self.os_version.replace('.', '')}"


def flavour_of_proc(text: str) -> str:
    """Return the flavour that the NVRM line of /proc/driver/nvidia/version tells, '' without a driver."""
    if "NVRM" not in text:
        return ""
    return "open" if "Open Kernel Module" in text else "proprietary"


def flavour_of_license(text: str) -> str:
    """Return the flavour that the licence of a module file tells: only the open ones are under MIT/GPL."""
    if not text.strip():
        return ""
    return "open" if "GPL" in text or "MIT" in text else "proprietary"


def library_version(paths: str) -> str:
    """Return the version in the name of libnvidia-ml's file, '' when there is none."""
    found = re.findall(r"libnvidia-ml\.so\.(\d+\.\d+(?:\.\d+)?)\b", paths)
    return max(found, key=lambda text: [int(part) for part in text.split(".")], default="")


def split_sections(lines: list[str]) -> dict[str, str]:
    """Split the output of the batched command at its "== name" lines."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in lines:
        if line.startswith("== "):
            current = found.setdefault(line[3:].strip(), [])
        else:
            current.append(line)
    return {name: "\n".join(body).strip() for name, body in found.items()}


def _os_release(text: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in text.splitlines())
    return {key: value.strip().strip('"') for key, _, value in pairs}


def _installed(text: str) -> dict[str, str]:
    rows = (line.split("|") for line in text.splitlines() if line.count("|") == 2)
    return {name: version for status, name, version in rows if status.startswith(("ii", "hi"))}


def machine_from(lines: list[str]) -> Machine:
    """Make a Machine from the output of the batched command."""
    part = split_sections(lines)
    release = _os_release(part.get("os", ""))
    pci = [line.split() for line in part.get("pci", "").splitlines() if len(line.split()) == 3]
    first_word = part.get("free_mib", "").split()
    return Machine(
        kernel=part.get("kernel", ""),
        boot_id=part.get("boot_id", ""),
        os_id=release.get("ID", ""),
        os_version=release.get("VERSION_ID", ""),
        architecture=part.get("arch", ""),
        gpus=tuple(gpu_from_pci(address, device) for address, kind, device in pci if kind.startswith("0x03")),
        nvswitches=sum(kind.startswith("0x0680") for _address, kind, _device in pci),
        loaded_version=part.get("loaded_version", ""),
        loaded_flavour=flavour_of_proc(part.get("proc_version", "")),
        module_version=part.get("module_version", ""),
        module_flavour=flavour_of_license(part.get("module_license", "")),
        library_version=library_version(part.get("library", "")),
        modules=frozenset(part.get("modules", "").split()),
        secure_boot=part.get("secure_boot", "").strip() == "1",
        mok_enrolled="is already enrolled" in part.get("mok", ""),
        free_mib=int(first_word[0]) if first_word and first_word[0].isdigit() else 0,
        packages=_installed(part.get("packages", "")),
    )


class MachineFact(FactBase[Machine]):
    """Everything in Machine, by one command."""

    @staticmethod
    def default() -> Machine:
        """Return a machine of which nothing is known."""
        return Machine()

    def command(self) -> StringCommand:
        """Return the batched command."""
        script = "; ".join(f"echo '== {name}'; {{ {body}; }} 2>/dev/null" for name, body in SECTIONS.items())
        return StringCommand(f"{script}; true")

    def process(self, output: list[str]) -> Machine:
        """Make the Machine."""
        return machine_from(output)


class Probe(FactBase[bool]):
    """Whether a command succeeds; its output is thrown away."""

    @staticmethod
    def default() -> bool:
        """Return the answer of a host that doesn't answer."""
        return False

    def command(self, probe: str) -> StringCommand:
        """Return the command that says yes or no."""
        return StringCommand(f"if ( {probe} ) >/dev/null 2>&1; then echo yes; else echo no; fi")

    def process(self, output: list[str]) -> bool:
        """Read the yes or no."""
        return output[-1].strip() == "yes"


class Lines(FactBase[list[str]]):
    """The output lines of a command; none when it fails."""

    default = list

    def command(self, script: str) -> StringCommand:
        """Return the command, made tolerant."""
        return StringCommand(f"( {script} ) 2>/dev/null || true")

    def process(self, output: list[str]) -> list[str]:
        """Return the lines as they are."""
        return list(output)


@dataclass(frozen=True, slots=True)
class FileState:
    """What lies at a path."""

    sha256: str
    mode: str
    user: str
    group: str


class FileStateFact(FactBase[Any]):
    """The digest, mode and owner of a regular file; None when there is none."""

    def command(self, path: str) -> StringCommand:
        """Return the command."""
        quoted = QuoteString(path)
        return StringCommand(
            "if [ -f", quoted, "] && [ ! -L", quoted, "]; then stat -c '%a %U %G'", quoted,
            "&& sha256sum <", quoted, "; fi",
        )  # fmt: skip

    def process(self, output: list[str]) -> FileState | None:
        """Read the two lines."""
        if len(output) < 2:
            return None
        mode, user, group = output[0].split()
        return FileState(output[1].split()[0], mode.zfill(4), user, group)


@dataclass(frozen=True, slots=True)
class AptPackage:
    """One package as dpkg and apt see it."""

    installed: str = ""
    candidate: str = ""


class AptState(FactBase[dict[str, AptPackage]]):
    """Installed version and apt's candidate of each package."""

    default = dict

    def command(self, packages: list[str]) -> StringCommand:
        """Return the command."""
        names = [QuoteString(name) for name in packages]
        return StringCommand(
            "echo '== dpkg'; dpkg-query -W -f '${db:Status-Abbrev}|${Package}|${Version}\\n'", *names,
            "2>/dev/null; echo '== policy'; LC_ALL=C apt-cache policy", *names, "2>/dev/null; true",
        )  # fmt: skip

    def process(self, output: list[str]) -> dict[str, AptPackage]:
        """Read both answers."""
        part = split_sections(output)
        installed = _installed(part.get("dpkg", ""))
        candidates: dict[str, str] = {}
        name = ""
        for line in part.get("policy", "").splitlines():
            if line and not line.startswith(" ") and line.endswith(":"):
                name = line[:-1]
            elif line.strip().startswith("Candidate:") and name:
                version = line.split(":", 1)[1].strip()
                candidates[name] = "" if version == "(none)" else version
        return {
            name: AptPackage(installed.get(name, ""), candidates.get(name, ""))
            for name in {*installed, *candidates}
        }
