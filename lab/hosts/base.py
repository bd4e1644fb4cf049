"""The base image: a Debian root made once by debootstrap, cached under the hash of what it is made from."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from lab.hosts.errors import LabError
from lab.hosts.locks import held
from lab.hosts.mounts import MOUNTINFO, unmount_under
from lab.hosts.paths import CACHE
from lab.hosts.tools import run

SUITE = "bookworm"
# Part of the hash: raise it when `_configure` changes what it makes.
REVISION = 3
PACKAGES = [
    "ca-certificates",
    "curl",
    "dbus",
    "gpg",
    "iproute2",
    "kmod",
    "openssh-server",
    "procps",
    "python3",
    "python3-venv",
    "sudo",
    "systemd",
    "systemd-sysv",
    "zstd",
]
# Units that do nothing for a host of the lab but cost time at each boot.
MASKED = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "console-getty.service",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "getty.target",
    "systemd-networkd.service",
    "systemd-networkd.socket",
    "systemd-resolved.service",
    "systemd-timesyncd.service",
    "fstrim.timer",
]
SSHD = """\
# A lab host: keys only, one host key made beforehand, no lookups that would wait for a name server.
HostKey /etc/ssh/ssh_host_ed25519_key
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UseDNS no
PrintMotd no
MaxSessions 100
MaxStartups 200
"""
OPS_UID = 1000


def manifest(architecture: str) -> dict[str, object]:
    """Return all that the base image depends on."""
    return {
        "suite": SUITE,
        "architecture": architecture,
        "packages": sorted(PACKAGES),
        "masked": sorted(MASKED),
        "sshd": SSHD,
        "revision": REVISION,
    }


def manifest_hash(content: dict[str, object]) -> str:
    """Return the short hash that names the image of a manifest."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def debian_mirror(sources: Path = Path("/etc/apt")) -> str | None:
    """Return where this machine fetches the suite from, if its apt sources say so."""
    for file in sorted(sources.glob("sources.list.d/*.sources")):
        for stanza in re.split(r"\n\s*\n", file.read_text()):
            fields = {
                key.strip().lower(): value.split()
                for key, _, value in (
                    line.partition(":")
                    for line in stanza.splitlines()
                    if ":" in line and line[0] not in "# \t"
                )
            }
            if SUITE in fields.get("suites", ()) and "main" in fields.get("components", ()):
                return fields["uris"][0]
    for file in [sources / "sources.list", *sorted(sources.glob("sources.list.d/*.list"))]:
        for line in file.read_text().splitlines() if file.is_file() else ():
            words = re.sub(r"\[[^]]*\]", "", line).split()
            if len(words) > 3 and words[0] == "deb" and words[2] == SUITE and "main" in words[3:]:
                return words[1]
    return None


def ensure(say: Callable[[str], None], cache: Path = CACHE) -> Path:
    """Return the root folder of the base image, made now if no image fits the manifest."""
    content = manifest(run(["dpkg", "--print-architecture"], "ask for the architecture").stdout.strip())
    image = cache / f"base-{manifest_hash(content)}"
    if (image / "root").is_dir():
        return image / "root"
    cache.mkdir(parents=True, exist_ok=True)
    with held(cache / ".base.lock", busy=None):
        if not (image / "root").is_dir():
            say(f"making the base image once ({SUITE}, by debootstrap): about a minute")
            began = time.monotonic()
            _make(image, content)
            _forget_old(image)
            say(f"base image made in {time.monotonic() - began:.0f} s: {image}")
    return image / "root"


def _make(image: Path, content: dict[str, object]) -> None:
    for stale in image.parent.glob(".making-base-*"):
        _remove(stale)  # of a run that was killed: the lock says that no other is at work
    making = image.parent / f".making-{image.name}"
    making.mkdir()
    try:
        _debootstrap(making / "root", making / "debootstrap.log")
        _configure(making / "root")
        (making / "manifest.json").write_text(json.dumps(content, indent=2) + "\n")
        making.rename(image)
    except BaseException:
        _remove(making)
        raise


def _debootstrap(root: Path, log: Path) -> None:
    mirror = debian_mirror()
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(root)]
    with log.open("w") as output:
        code = _run_group([*command, *([mirror] if mirror else [])], output)
    if code != 0:
        tail = "\n".join(log.read_text().splitlines()[-12:])
        raise LabError(
            f"debootstrap {SUITE}: failed with exit code {code}; its last words:\n{tail}\n"
            f"  why: most often the Debian mirror can't be reached ({mirror or 'the default one'})\n"
            f"  next: apt-get update, to see whether this machine reaches a mirror of {SUITE}"
        )


def _run_group(command: list[str], output: IO[str]) -> int:
    """Run a command in a session of its own; when this is interrupted, all that it started ends with it."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        try:
            return process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def _configure(root: Path) -> None:
    """Turn a fresh Debian into what every host of every lab shares."""
    for name in ("var/cache/apt/archives", "var/lib/apt/lists"):
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name / "partial").mkdir(parents=True)
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    (root / "etc/machine-id").write_text("")
    (root / "etc/apt/sources.list").write_text("")
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    (root / "etc/resolv.conf").write_text("# A lab host has no name server: see /etc/hosts.\n")
    (root / "etc/fstab").write_text("")
    (root / "etc/default/locale").write_text("LANG=C.UTF-8\n")
    (root / "etc/ssh/sshd_config.d/lab.conf").write_text(SSHD)
    (root / "var/log/journal").mkdir(exist_ok=True)  # so that the journal outlives a reboot of the host
    for unit in MASKED:
        link = root / "etc/systemd/system" / unit
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")
    default = root / "etc/systemd/system/default.target"
    default.unlink(missing_ok=True)
    default.symlink_to("/lib/systemd/system/multi-user.target")
    run(
        ["chroot", root, "useradd", "--create-home", "--uid", str(OPS_UID), "--shell", "/bin/bash", "ops"],
        "make the ops user",
    )
    sudoers = root / "etc/sudoers.d/ops"
    sudoers.write_text("ops ALL=(ALL:ALL) NOPASSWD: ALL\n")
    sudoers.chmod(0o440)


def _forget_old(current: Path) -> None:
    """Remove the images of earlier manifests, but for those that a lab stands on."""
    in_use = MOUNTINFO.read_text()
    for image in current.parent.glob("base-*"):
        if image != current and f"lowerdir={image}/" not in in_use:
            _remove(image)


def _remove(folder: Path) -> None:
    unmount_under(folder)  # debootstrap mounts /proc and /sys in it while it works
    shutil.rmtree(folder, ignore_errors=True)
