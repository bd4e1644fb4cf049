"""A host's file system: the shared base image below, what the host writes above, and what makes it itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from lab.hosts import mounts
from lab.hosts.base import OPS_UID
from lab.hosts.errors import LabError
from lab.hosts.paths import LabPaths
from lab.hosts.spec import HostSpec, LabSpec
from lab.hosts.tools import run


def build(spec: LabSpec, host: HostSpec, paths: LabPaths, gpus: Callable[[HostSpec, Path], None]) -> None:
    """Mount a fresh file system for a host and put the host's own files into it."""
    folder = paths.host(host.name)
    mounts.unmount_under(folder)
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("upper", "work", "root"):
        (folder / name).mkdir(parents=True)
    root = folder / "root"
    # volatile: fsync costs nothing, and nobody needs a lab's files after a crash of this machine.
    options = f"lowerdir={spec.base},upperdir={folder / 'upper'},workdir={folder / 'work'},volatile"
    try:
        run(["mount", "-t", "overlay", "-o", options, f"drover-lab-{host.name}", root], "mount the overlay")
    except LabError as error:
        raise LabError(
            f"host {host.name}: its file system can't be mounted: {error}\n"
            "  why: /var/lib must be on a file system that can carry overlays (ext4, xfs, btrfs, tmpfs; "
            "not an overlay itself), and the kernel must have overlayfs"
        ) from error
    _personalise(spec, host, paths, root)
    gpus(host, root)


def make_keys(spec: LabSpec, paths: LabPaths) -> None:
    """Make the lab's key pair and each host's host key, and the known_hosts that goes with them."""
    folder = paths.ssh_key.parent
    folder.mkdir(mode=0o700)
    _keygen(paths.ssh_key, f"drover-lab-{spec.name}")
    lines = []
    for host in spec.hosts:
        key = host_key(paths, host)
        _keygen(key, host.name)
        kind, public = key.with_suffix(".pub").read_text().split()[:2]
        lines.append(f"{host.name},{host.address} {kind} {public}\n")
    paths.known_hosts.write_text("".join(lines))


def host_key(paths: LabPaths, host: HostSpec) -> Path:
    """Where this machine keeps a host's private host key."""
    return paths.ssh_key.parent / f"{host.name}_host_key"


def hosts_file(spec: LabSpec, host: HostSpec) -> str:
    """Return the /etc/hosts of a host: itself, all others, the mirror."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost", f"{spec.gateway} mirror"]
    lines += [f"{other.address} {other.name} {other.short_name}" for other in spec.hosts]
    return (
        f"# The lab {spec.name} as {host.name} sees it; there is no name server.\n" + "\n".join(lines) + "\n"
    )


def _personalise(spec: LabSpec, host: HostSpec, paths: LabPaths, root: Path) -> None:
    (root / "etc/hostname").write_text(f"{host.name}\n")
    (root / "etc/hosts").write_text(hosts_file(spec, host))
    (root / "etc/machine-id").write_text(f"{host.machine_id}\n")
    for suffix, mode in (("", 0o600), (".pub", 0o644)):
        key = root / f"etc/ssh/ssh_host_ed25519_key{suffix}"
        shutil.copyfile(f"{host_key(paths, host)}{suffix}", key)
        key.chmod(mode)
    public = paths.ssh_key.with_suffix(".pub").read_text()
    for home, owner in ((root / "root", 0), (root / "home/ops", OPS_UID)):
        folder = home / ".ssh"
        folder.mkdir(mode=0o700, exist_ok=True)
        authorized = folder / "authorized_keys"
        authorized.write_text(public)
        authorized.chmod(0o600)
        for path in (folder, authorized):
            shutil.chown(path, owner, owner)


def _keygen(path: Path, comment: str) -> None:
    run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", path],
        f"make the key {path.name}",
    )
