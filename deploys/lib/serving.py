"""Operations that the layers ollama, models, proxy and monitoring share: units, links, folders, users."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from pyinfra import host
from pyinfra.api import operation

from deploys.lib import operations
from deploys.lib.facts import Lines, split_sections
from deploys.lib.operations import Commands
from deploys.lib.templates import TEMPLATES

LIBRARY = "/usr/lib/drover"
FINGERPRINT = f"{LIBRARY}/fingerprint"

# $0 is the unit's folder of notes; then the units.
STATES = (
    'for unit in {units}; do echo "== $unit"; '
    'systemctl show "$unit" -p ActiveState,SubState,NeedDaemonReload,UnitFileState; '
    'echo "Current=$({fingerprint} "$unit")"; echo "Started=$(cat "/run/drover/started/$unit")"; done'
)
RESTART = (
    'systemctl {block}restart -- "$0" "$@" || '
    '{{ systemctl status --no-pager -n 20 -- "$0" "$@" >&2; exit 1; }}'
)
NOT_RESTARTED = "echo 'not restarted: it could not start from what lies there, and serves on as it was' >&2"
ACCOUNT = (
    'set -eu; PATH="$PATH:/usr/sbin:/sbin"; getent group "$0" >/dev/null || groupadd --system "$0"; '
    'id -u "$0" >/dev/null 2>&1 || useradd --system --gid "$0" --home-dir "$1" --no-create-home '
    '--shell /usr/sbin/nologin "$0"; shift; '
    'for g in "$@"; do if getent group "$g" >/dev/null; then usermod -aG "$g" "$0"; fi; done'
)


def static(layer: str, name: str) -> bytes:
    """Return a file of templates/ that is laid as it is."""
    return (TEMPLATES / layer / name).read_bytes()


def lay_fingerprint() -> None:
    """Lay the script by which a unit notes what it was started from."""
    operations.place(
        name="Place what tells whether a unit is up to date",
        dest=FINGERPRINT,
        content=static("common", "fingerprint"),
        mode="0755",
    )


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit as systemd sees it, and whether it runs from what lies there now."""

    active: str
    sub: str
    definition_changed: bool
    enabled: bool
    current: list[str]
    """Digests: of what takes a restart, and of what takes a reload where there is such a thing."""
    started: list[str]

    @property
    def runs(self) -> bool:
        """Say whether it is up; a unit on its way may yet fail."""
        return self.active == "active"

    @property
    def is_stale(self) -> bool:
        """Say whether it was started from something else than what lies there now."""
        return self.current[:1] != self.started[:1]

    @property
    def needs_files_read(self) -> bool:
        """Say whether only such files differ as can be read again by what runs."""
        return not self.is_stale and self.current != self.started


def units(names: list[str]) -> dict[str, Unit]:
    """Read the state of units with one command; for use inside operations."""
    words = {"units": " ".join(map(shlex.quote, names)), "fingerprint": FINGERPRINT}
    sections = split_sections(host.get_fact(Lines, script=STATES.format(**words)))
    found = {}
    for name in names:
        shown = dict(line.partition("=")[::2] for line in sections.get(name, "").splitlines())
        found[name] = Unit(
            active=shown.get("ActiveState", ""),
            sub=shown.get("SubState", ""),
            definition_changed=shown.get("NeedDaemonReload") == "yes",
            enabled=shown.get("UnitFileState", "").startswith("enabled"),
            current=shown.get("Current", "").split(),
            started=shown.get("Started", "").split(),
        )
    return found


@operation()
def running(
    names: list[str], one_by_one: str = "", wait: bool = True, reload: str = "", check: str = ""
) -> Commands:
    """Have units enabled and running from what lies there now; restart only those that run from other things.

    Whether a unit is stale is read off the unit itself, so the next run makes good one that was stopped
    half-way.

    + names: the units, in the order in which to start them
    + one_by_one: a command to wait by after each restart, while the others serve; "{unit}" stands for it
    + wait: wait until they are up
    + reload: has the unit that names files for it read them again; exit code 3 when that takes a restart
    + check: says whether what lies there could be started; else what runs is left as it is
    """
    found = units(names)
    stale = [name for name in names if found[name].runs and found[name].is_stale]
    unread = [name for name in names if found[name].runs and found[name].needs_files_read]
    down = [name for name in names if not found[name].runs]
    disabled = [name for name in names if not found[name].enabled]
    block = "" if wait else "--no-block "
    if not (stale or unread or down or disabled or any(unit.definition_changed for unit in found.values())):
        host.noop("running from what lies there")
        return
    yield operations.script("systemctl daemon-reload")
    if disabled:
        yield operations.script('systemctl -q enable -- "$0" "$@"', *disabled)
    restart = RESTART.format(block=block)
    if down:
        # One that failed too often has to be forgiven first.
        yield operations.script(f'systemctl reset-failed -- "$0" "$@" 2>/dev/null || true; {restart}', *down)
    if check:
        restart = f"{check} >/dev/null || {{ {NOT_RESTARTED}; exit 1; }}; {restart}"
    for name in stale:
        wait_for = one_by_one.replace("{unit}", shlex.quote(name))
        yield operations.script(f"{restart}; {wait_for or ':'}", name)
    for name in unread:
        # What refuses its files runs on as it was, and isn't restarted into them.
        yield operations.script(
            f'{reload} && exec {FINGERPRINT} --reloaded "$0"; [ $? = 3 ] || exit 1; {restart}', name
        )


@operation()
def account(user: str, home: str, groups: list[str]) -> Commands:
    """Have a system user with its own group, in those of the other groups that exist.

    + user: its name
    + home: its home, which is not created
    + groups: groups of devices
    """
    wanted = " ".join(map(shlex.quote, groups))
    missing = host.get_fact(
        Lines,
        script=f"id -u {user} >/dev/null || echo user; for g in {wanted}; do getent group $g >/dev/null && "
        f'! id -nG {user} | tr " " "\\n" | grep -qx $g && echo $g; done; true',
    )
    if not missing:
        host.noop(f"user {user} is there")
        return
    yield operations.script(ACCOUNT, user, home, *groups)


@operation()
def folders(wanted: Mapping[str, tuple[str, str, str]]) -> Commands:
    """Have folders with these modes and owners; what is in them is left alone.

    + wanted: path to mode, user and group
    """
    paths = " ".join(map(shlex.quote, wanted))
    lines = host.get_fact(Lines, script=f"stat -c '%n %a %U %G' {paths}; true")
    found = {line.split(" ")[0]: tuple(line.split(" ")[1:]) for line in lines}
    for path, (mode, user, group) in wanted.items():
        if found.get(path) != (mode.lstrip("0"), user, group):
            yield operations.script('install -d -m "$1" -o "$2" -g "$3" -- "$0"', path, mode, user, group)


@operation()
def link(path: str, target: str) -> Commands:
    """Have a symbolic link, moved into place in one step so that there is always one.

    + path: the link
    + target: what it points to
    """
    if host.get_fact(Lines, script=f"readlink -- {shlex.quote(path)}") == [target]:
        host.noop(f"{path} points to {target}")
        return
    yield operations.script('ln -sfn -- "$1" "$0.new" && mv -fT -- "$0.new" "$0"', path, target)


@operation()
def prune(folder: str, wanted: str, keep: int) -> Commands:
    """Remove the oldest releases of a folder; the one wanted, the one in use and the newest others stay.

    + folder: where releases lie side by side, with a link `current`
    + wanted: the release that will be in use
    + keep: how many others may stay
    """
    script = (
        f"cd {shlex.quote(folder)} && ls -1t -d -- */ | tr -d / | "
        f'grep -vxF -e {shlex.quote(wanted)} -e current -e "$(readlink current || echo current)" | '
        f"tail -n +{keep + 1}"
    )
    doomed = [line for line in host.get_fact(Lines, script=script) if line]
    if not doomed:
        host.noop("nothing to remove")
        return
    yield operations.script('set -eu; cd "$0"; for r in "$@"; do rm -rf -- "./$r"; done', folder, *doomed)
