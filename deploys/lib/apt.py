"""apt: a repository trusted by one checked key, package lists that must verify, versions that must hold."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from pyinfra import host
from pyinfra.api import QuoteString, StringCommand, operation

from deploys.lib import operations
from deploys.lib import vars as variables_of
from deploys.lib.facts import AptPackage, AptState, Lines
from deploys.lib.operations import Commands
from deploys.lib.stage import Context
from deploys.lib.templates import render
from drover import catalogue, openpgp
from drover.errors import DroverError

STAMPS = "/var/lib/drover/apt"
INSTALL = (
    "DEBIAN_FRONTEND=noninteractive", "NEEDRESTART_MODE=l", "apt-get", "-o", "DPkg::Lock::Timeout=300",
    "-o", "Dpkg::Options::=--force-confold", "-y", "--no-install-recommends",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Source:
    """One apt repository as it shall be laid on a host."""

    name: str
    url: str
    key: bytes
    fingerprint: str
    machine: str
    username: str
    password: str

    @property
    def keyring(self) -> str:
        """Return where its key lies on the host."""
        return f"/etc/apt/keyrings/{self.name}.gpg"

    def digest(self) -> str:
        """Return what changes when any of it changes; it isn't reversible to the password."""
        parts = [self.url, self.fingerprint, self.username]
        return hashlib.sha256(json.dumps(parts).encode() + self.key).hexdigest()


def resolve(ctx: Context) -> Source:
    """Return this layer's repository: by its own variables, the mirror's, or the vendor's."""
    values, layer = ctx.vars, ctx.layer
    mirror = values["mirror_url"].rstrip("/")
    url = values[f"{layer}_apt_url"] or (f"{mirror}/apt/" if mirror else "")
    key_file = values[f"{layer}_apt_key_file"] or values["mirror_apt_key_file"]
    fingerprint = values[f"{layer}_apt_key_fingerprint"] or values["mirror_apt_key_fingerprint"]
    try:
        if not url:
            vendor = catalogue.apt_repository(layer, ctx.machine.distribution, ctx.machine.architecture)
            url, fingerprint = vendor.url, values[f"{layer}_apt_key_fingerprint"] or vendor.fingerprint
        key = _read_key(ctx, key_file, fingerprint)
    except DroverError as error:
        ctx.refuse(str(error))
    on_mirror = bool(mirror) and url.startswith(mirror)
    host_part = url.partition("://")[2]
    # apt sends a login over plain http only when the scheme is named too.
    scheme = "http://" if url.startswith("http://") else ""
    return Source(
        name="drover-mirror" if on_mirror else f"drover-{layer.replace('_', '-')}",
        url=url if url.endswith("/") else f"{url}/",
        key=key,
        fingerprint=fingerprint,
        machine=f"{scheme}{host_part.partition('/')[0]}",
        username=values["mirror_username"] if on_mirror else "",
        password=values["mirror_password"] if on_mirror else "",
    )


def _read_key(ctx: Context, key_file: str, fingerprint: str) -> bytes:
    if not key_file:
        raise DroverError(
            f"no key to trust the repository by. Next: set {ctx.layer}_apt_key_file (or mirror_apt_key_file) "
            "to the repository's public key"
        )
    if not fingerprint:
        raise DroverError(
            f"no fingerprint to check {key_file} against. Next: set {ctx.layer}_apt_key_fingerprint (or "
            "mirror_apt_key_fingerprint)"
        )
    path = variables_of.controller_path(ctx.vars, key_file)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DroverError(f"{path}: the repository's key can't be read: {error.strerror}") from None
    return openpgp.check(data, fingerprint, str(path))


def lay_repository(source: Source) -> None:
    """Register the operations that lay the repository and read its package lists."""
    operations.place(
        name="Let apt wait for its lock and fail on what it can't verify",
        dest="/etc/apt/apt.conf.d/90drover",
        content=render("common", "apt.conf.j2", {}),
    )
    operations.place(name="Place the repository's key", dest=source.keyring, content=source.key)
    if source.username:
        login = {
            "apt_machine": source.machine,
            "mirror_username": source.username,
            "mirror_password": source.password,
        }
        operations.secret_file(
            name="Place the repository's login",
            dest=f"/etc/apt/auth.conf.d/{source.name}.conf",
            content=render("common", "auth.conf.j2", login),
        )
    words = {"apt_url": source.url, "apt_keyring": source.keyring}
    operations.place(
        name="Place the repository's source",
        dest=f"/etc/apt/sources.list.d/{source.name}.sources",
        content=render("common", "repository.sources.j2", words),
    )
    update(
        name="Read the package lists",
        stamp=f"{STAMPS}/{source.name}.read",
        digest=source.digest(),
    )


def _update_commands(stamp: str, digest: str) -> Commands:
    yield StringCommand(
        "apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", "-o", "APT::Update::Error-Mode=any", "update"
    )
    yield operations.script(
        'umask 022; mkdir -p -- "$(dirname -- "$0")"; printf "%s\\n" "$1" > "$0"', stamp, digest
    )


@operation()
def update(stamp: str, digest: str) -> Commands:
    """Read the package lists when the sources changed; a list that doesn't verify fails the host.

    + stamp: file on the host that remembers for which sources the lists were read
    + digest: what stands in it when they are current
    """
    seen = "".join(
        host.get_fact(Lines, script=f"cat {stamp}; ls /var/lib/apt/lists | grep -q Packages || echo none")
    )
    if seen.strip() == digest:
        host.noop("the package lists are those of these sources")
        return
    yield from _update_commands(stamp, digest)


def fits(version: str, wanted: str) -> bool:
    """Say whether a Debian version is the wanted one: 580 fits 580.x, 580.159.03 fits 580.159.03-1."""
    bare = version.partition(":")[2] or version
    return bool(bare) and (not wanted or bare == wanted or bare.startswith((f"{wanted}.", f"{wanted}-")))


def unmet(state: dict[str, AptPackage], wanted: dict[str, str]) -> list[str]:
    """Return the packages that aren't installed in the version wanted."""
    return [name for name, version in wanted.items() if not _met(state.get(name, AptPackage()), version)]


def _met(package: AptPackage, version: str) -> bool:
    return bool(package.installed) and fits(package.installed, version)


@operation()
def packages(wanted: dict[str, str], purge: list[str] | None = None) -> Commands:
    """Install packages in the versions wanted, by the pins in force; refuse when apt would take others.

    + wanted: name to version or branch; an empty version is content with any
    + purge: packages that must go in the same step, such as the other flavour's
    """
    names = sorted(wanted)
    gone = sorted(purge or [])
    state = host.get_fact(AptState, packages=names + gone)
    missing = unmet(state, wanted)
    doomed = [name for name in gone if state.get(name, AptPackage()).installed]
    if not missing and not doomed:
        host.noop("installed as wanted")
        return
    if any(not fits(state.get(name, AptPackage()).candidate, wanted[name]) for name in missing):
        # What is wanted may be newer than the lists.
        yield StringCommand(
            "apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", "-o", "APT::Update::Error-Mode=any", "update"
        )
        state = {**state, **host.get_fact(AptState, packages=names)}
        if any(not fits(state.get(name, AptPackage()).candidate, wanted[name]) for name in missing):
            yield operations.refusal(_unavailable(state, wanted, missing))
            return
    yield StringCommand(
        *INSTALL, "--allow-downgrades", "install", *(QuoteString(name) for name in missing),
        *(QuoteString(f"{name}-") for name in doomed),
    )  # fmt: skip
    if doomed:
        yield StringCommand(*INSTALL, "purge", *(QuoteString(name) for name in doomed))


def _unavailable(state: dict[str, AptPackage], wanted: dict[str, str], missing: list[str]) -> str:
    lines = []
    for name in missing:
        candidate = state.get(name, AptPackage()).candidate
        if not fits(candidate, wanted[name]):
            version = wanted[name] or "any version"
            lines.append(f"{name}: wanted {version}, apt offers {candidate or 'none'}")
    return (
        "The repository doesn't offer what is pinned: "
        + "; ".join(lines)
        + ". Next: apt-cache policy on the host"
    )


def installed(names: list[str]) -> dict[str, Any]:
    """Return the installed versions; for `record`, called inside an operation."""
    state = host.get_fact(AptState, packages=names)
    return {name: state[name].installed for name in names if name in state and state[name].installed}
