"""What the controller needs to run a lab: Linux, root, and a handful of system packages."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path

from lab.hosts.errors import LabError, NotPossibleHereError

# Debian package -> a command or file that shows that it is there.
PACKAGES = {
    "debootstrap": "debootstrap",
    "debian-archive-keyring": "/usr/share/keyrings/debian-archive-keyring.gpg",
    "systemd-container": "systemd-nspawn",
    "iproute2": "ip",
    "mount": "mount",
    "openssh-client": "ssh-keygen",
    "dpkg": "dpkg-deb",
    "zstd": "zstd",
    "xz-utils": "xz",
    "apt-utils": "apt-ftparchive",
    "gnupg": "gpg",
    "gpgv": "gpgv",
    "gcc": "gcc",
    "libc6-dev": "/usr/include/stdio.h",
}
# Headers that the proxy is compiled with. Another Python than the distribution's brings its own or has none;
# hosts then get the pure wheel, as from every controller that lacks something.
HEADERS = "python{}.{}-dev".format(*sys.version_info)
HELPFUL = {HEADERS: f"{sysconfig.get_path('include')}/Python.h"} if sys.base_prefix == "/usr" else {}


def require_root_on_linux(what: str) -> None:
    """Refuse in one line what only root on Linux can do."""
    if sys.platform != "linux":
        raise NotPossibleHereError(
            f"{what}: needs Linux (network namespaces, systemd-nspawn), this is {sys.platform}; "
            "run it on a Linux machine, or here only: make test-unit"
        )
    if os.geteuid() != 0:
        raise NotPossibleHereError(
            f"{what}: needs root (mounts, network namespaces, systemd-nspawn), you are {getpass.getuser()}; "
            f"run: sudo {sys.executable} -m lab ..."
        )


def missing_packages() -> list[str]:
    """Return the Debian packages that the lab needs and this machine lacks."""
    return [package for package, proof in PACKAGES.items() if not _is_there(proof)]


def ensure_packages(say: Callable[[str], None]) -> None:
    """Install what is missing, by name; say so in one line."""
    if missing := missing_packages():
        _install(missing, say)
    helpful = [package for package, proof in HELPFUL.items() if not _is_there(proof)]
    if helpful and shutil.which("apt-get"):
        say(f"installing what the proxy is compiled with: {' '.join(helpful)}")
        if _apt_install(helpful):
            say("that can't be installed here: the lab's hosts get the proxy that isn't compiled")


def _install(missing: list[str], say: Callable[[str], None]) -> None:
    names = " ".join(missing)
    if not shutil.which("apt-get"):
        raise LabError(
            f"the lab needs these packages (Debian's names), which aren't here: {names}\n"
            "  why: it makes hosts by debootstrap, boots them by systemd-nspawn, builds GPUs and packages\n"
            "  next: install them with this system's package manager"
        )
    say(f"installing what the lab needs on this machine: {names}")
    if failed := _apt_install(missing):
        raise LabError(
            f"apt-get install {names}: {failed}\n  next: apt-get update && apt-get install {names}"
        )
    if left := missing_packages():
        raise LabError(f"after apt-get install, still not there: {' '.join(left)}")


def _apt_install(packages: list[str]) -> str:
    """Install packages; where that fails, once more with fresh lists. Return what went wrong."""
    if _apt_get("install", *packages).returncode == 0:
        return ""
    _apt_get("update")
    done = _apt_get("install", *packages)
    return f"failed with exit code {done.returncode}\n{done.stderr.strip()}" if done.returncode else ""


def run(
    arguments: Sequence[str | Path], what: str, *, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a tool and return what it said; fail with its own words."""
    done = subprocess.run(
        [str(argument) for argument in arguments], check=False, text=True, capture_output=True, input=stdin
    )
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip()
        raise LabError(f"{what}: `{' '.join(map(str, arguments))}` exited with {done.returncode}: {words}")
    return done


def _is_there(proof: str) -> bool:
    return Path(proof).exists() if proof.startswith("/") else shutil.which(proof) is not None


def _apt_get(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["apt-get", "-y", "-q", "--no-install-recommends", *arguments]
    return subprocess.run(
        command,
        check=False,
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    )
