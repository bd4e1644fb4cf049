"""The proxy, the only door of a host: installed offline with hashes checked, and warm after every boot.

pyinfra -y inventories/FLEET/inventory.py deploys/proxy.py
"""

from __future__ import annotations

import hashlib
from typing import Any

from pyinfra import host
from pyinfra.api import operation

from deploys.lib import apt, builds, operations, serving, wheelhouse
from deploys.lib.facts import FileState, FileStateFact, Lines
from deploys.lib.instances import GpuUuids, UnknownGpuError, bound, planned
from deploys.lib.operations import Commands
from deploys.lib.stage import Context, Layer, SkipLayerError
from drover.errors import DroverError

USER = "drover-proxy"
RELEASES = "/opt/drover/proxy"
CONFIG = "/etc/drover/proxy.yaml"
KEYS = "/etc/drover/keys.yaml"
TLS = "/etc/drover/tls"
UNITS = "/etc/systemd/system"
SOCKET, SERVICE, WARMUP = "drover-proxy.socket", "drover-proxy.service", "drover-warmup.service"
WARM = f"{serving.LIBRARY}/warmup.py"
# The python3 of each distribution, for a host that hasn't got it yet.
PYTHONS = {"debian12": "3.11", "debian13": "3.13", "ubuntu2204": "3.10", "ubuntu2404": "3.12"}

# $0 is the bundle, $1 the release's folder, $2 its build, $3 what to do when that doesn't start. A venv can't
# be moved, so it is made in its place; nothing points to it before its mark is there, and the mark comes when
# all that serves could be imported here. Machine code of another Python would be passed over in silence.
INSTALL = (
    'trial() { said=$("$1/bin/drover-proxy" --version) || return 1; '
    '"$1/bin/python" -I -c "import uvloop, drover_proxy.app.service" || return 1; '
    'case $said in *"($2)") ;; *) echo "it is $said, and should be $2" >&2; return 1;; esac; }; '
    'set -eu; umask 022; rm -rf -- "$1"; new=$(mktemp -d); '
    'trap \'rm -rf -- "$new" "$0"; [ -e "$1/.complete" ] || rm -rf -- "$1"\' EXIT; '
    'tar -x -f "$0" -C "$new" --no-same-owner; python3 -m venv "$1"; '
    '"$1/bin/python" -m pip install -q --disable-pip-version-check --no-index --no-cache-dir '
    '--find-links "$new" --require-hashes -r "$new/requirements.txt"; '
    'if trial "$1" "$2" 2>"$1.failed"; then rm -f -- "${1%/*}"/*.failed; touch -- "$1/.complete"; exit 0; '
    'fi; cat "$1.failed" >&2; echo "the new release of the proxy, $2, doesn\'t start on this host; '
    'the one before stays. Next: $3" >&2; exit 1'
)
CHECK = (
    '"$2/bin/drover-proxy" check "$0" || { rm -f -- "$0"; echo "nothing was put in place" >&2; exit 1; }; '
    'mv -fT -- "$0" "$1"'
)


def preflight(ctx: Context) -> None:
    """Refuse a door without keys, unless it is meant to be open."""
    values = ctx.vars
    if not values["proxy_enabled"]:
        builds.note_host()
        raise SkipLayerError
    if not values["proxy_keys"] and not values["proxy_open"]:
        ctx.refuse(
            "nobody could come in: proxy_keys is empty. Next: drover-proxy keys add, or set proxy_open: true "
            "to let everybody in"
        )
    ctx.notes["instances"] = planned(ctx)
    if not ctx.notes["instances"]:
        ctx.refuse("no Ollama instance to stand before. Next: set proxy_enabled: false for this host")
    found = "".join(
        host.get_fact(Lines, script="python3 -c 'import sys; print(\"%d.%d\" % sys.version_info[:2])'")
    )
    python = found.strip() or PYTHONS.get(ctx.machine.distribution, "3.11")
    if tuple(map(int, python.split("."))) < (3, 10):
        ctx.refuse(f"its python3 is {python}; the proxy needs 3.10 or later")
    architecture = ctx.machine.architecture or "amd64"
    if architecture not in wheelhouse.MACHINES:
        ctx.refuse(f"the proxy has no wheels for {architecture}")
    ctx.notes["target"] = builds.chosen(ctx, wheelhouse.Target(python, architecture), RELEASES)
    ctx.notes["release"] = wheelhouse.release_name(ctx.notes["target"])
    ctx.notes["admin"] = f"http://127.0.0.1:{values['monitoring_listen'].rpartition(':')[2]}"


def install(ctx: Context) -> None:
    """Lay the release beside the older ones; nothing points to it yet."""
    apt.packages(name="Install Python", wanted={"python3": "", "python3-venv": "", "curl": ""})
    serving.account(name="Have a user", user=USER, home="/nonexistent", groups=["video", "render"])
    serving.folders(
        name="Have its folders",
        wanted={
            RELEASES: ("0755", "root", "root"),
            "/etc/drover": ("0755", "root", "root"),
            "/var/cache/drover": ("0755", "root", "root"),
        },
    )
    release(
        name="Have the release, installed offline",
        folder=f"{RELEASES}/{ctx.notes['release']}",
        target=ctx.notes["target"],
    )


@operation()
def release(folder: str, target: wheelhouse.Target) -> Commands:
    """Have the proxy installed in a virtual environment of its own, from a bundle made on the controller.

    + folder: where it goes
    + target: the host's Python and architecture, and the build
    """
    if host.get_fact(Lines, script=f"ls {folder}/.complete"):
        host.noop(f"{folder} is there")
        return
    yield operations.script('rm -rf -- "$0"', folder)
    try:
        bundle = wheelhouse.bundle(target)
    except DroverError as error:
        yield operations.refusal(str(error))
        return
    archive = f"/var/cache/drover/{bundle.name}"
    yield from operations.upload._inner(src=bundle, dest=archive)  # noqa: SLF001 - pyinfra's way to nest
    advice = (
        f"run again, and this host gets the pure wheel (by proxy_compiled: auto), until {folder}.failed goes"
    )
    yield operations.script(
        INSTALL, archive, folder, target.build, advice if target.compiled else "report this"
    )


def configure(ctx: Context) -> None:
    """Lay keys, certificate, settings and units; the settings are checked before they are put in place."""
    values = ctx.vars
    serving.lay_fingerprint()
    if values["proxy_open"]:
        operations.absent(name="Have no keys", path=KEYS)
    else:
        # The proxy reads it itself and follows its changes; the reload says whether it could.
        operations.secret_file(
            name="Place the keys", dest=KEYS, content=ctx.render("keys.yaml.j2"), mode="0640", group=USER
        )
    if values["proxy_tls_cert"]:
        operations.place(
            name="Place the certificate", dest=f"{TLS}/cert.pem", content=values["proxy_tls_cert"]
        )
        operations.secret_file(
            name="Place the certificate's key",
            dest=f"{TLS}/key.pem",
            content=values["proxy_tls_key"],
            mode="0640",
            group=USER,
        )
    else:
        operations.absent(name="Have no certificate", path=f"{TLS}/cert.pem")
        operations.absent(name="Have no certificate's key", path=f"{TLS}/key.pem")
    if values["proxy_tls_client_ca"]:
        operations.place(
            name="Place the authority of client certificates",
            dest=f"{TLS}/client-ca.pem",
            content=values["proxy_tls_client_ca"],
        )
    else:
        operations.absent(name="Have no authority of client certificates", path=f"{TLS}/client-ca.pem")
    config(name="Place the settings, checked", ctx=ctx)
    operations.place(
        name="Place the socket", dest=f"{UNITS}/{SOCKET}", content=ctx.render("drover-proxy.socket.j2")
    )
    operations.place(
        name="Place the service", dest=f"{UNITS}/{SERVICE}", content=ctx.render("drover-proxy.service.j2")
    )
    operations.place(
        name="Place what warms up", dest=WARM, content=serving.static("proxy", "warmup.py"), mode="0755"
    )
    operations.place(
        name="Place what shall be warm",
        dest="/etc/drover/warmup.json",
        content=ctx.render("warmup.json.j2", admin_url=ctx.notes["admin"]),
    )
    operations.place(
        name="Place the warm-up", dest=f"{UNITS}/{WARMUP}", content=ctx.render("drover-warmup.service.j2")
    )


@operation()
def config(ctx: Context) -> Commands:
    """Lay the settings with the UUIDs of the GPUs; a release that refuses them leaves the old ones in place.

    + ctx: the layer's context
    """
    try:
        instances = bound(ctx.notes["instances"], host.get_fact(GpuUuids))
    except UnknownGpuError as error:
        yield operations.refusal(str(error))
        return
    content = ctx.render("proxy.yaml.j2", instances=[one.for_template() for one in instances])
    found = host.get_fact(FileStateFact, path=CONFIG)
    if found == FileState(hashlib.sha256(content.encode()).hexdigest(), "0644", "root", "root"):
        host.noop(f"{CONFIG} is as wanted")
        return
    new = f"{CONFIG}.new"
    yield from operations.place._inner(dest=new, content=content)  # noqa: SLF001 - pyinfra's way to nest
    yield operations.script(CHECK, new, CONFIG, f"{RELEASES}/{ctx.notes['release']}")


def activate(ctx: Context) -> None:
    """Point to the release, reload or restart what runs from something else, and have the models warmed."""
    serving.link(name="Point to the release", path=f"{RELEASES}/current", target=ctx.notes["release"])
    program = f"{RELEASES}/current/bin/drover-proxy"
    serving.running(
        name="Open the door",
        names=[SOCKET, SERVICE],
        reload=f"{program} reload --config {CONFIG}",
        check=f"{program} check {CONFIG}",
    )
    serving.running(name="Warm up", names=[WARMUP], wait=False)
    operations.guarded(
        name="Warm up again for instances that were restarted",
        commands=f"systemctl --no-block restart {WARMUP}",
        unless=f"{WARM} check || systemctl show -p ActiveState {WARMUP} | grep -q activating",
    )


def verify(ctx: Context) -> None:
    """Prove that the proxy is ready, that its door answers, and that the warm models are loaded."""
    admin, build = ctx.notes["admin"], ctx.notes["target"].build
    operations.gate(
        name="See that the proxy is ready",
        probe=f"curl -sS -m 5 -o /dev/null -w '%{{http_code}}' {admin}/readyz | grep -qx 200 || "
        f"{{ curl -sS -m 5 {admin}/readyz; exit 1; }}",
        message="The proxy isn't ready. Next: journalctl -u drover-proxy",
        timeout_seconds=60,
    )
    operations.gate(
        name="See that the build runs that was laid",
        probe=f'curl -fsS -m 5 {admin}/drover/v1/state | grep -Eo \'"build": ?"[a-z]+"\' | grep -q {build}',
        message=f"The proxy that runs isn't {build}. Next: systemctl restart drover-proxy",
        timeout_seconds=20,
    )
    operations.gate(
        name="See that the door answers",
        probe=door_probe(ctx.vars),
        message="The door doesn't answer. Next: systemctl status drover-proxy.socket drover-proxy.service",
        timeout_seconds=20,
    )
    operations.gate(
        name="See that the models are warm",
        probe=f"{WARM} check",
        message="The warm-up isn't done. Next: journalctl -u drover-warmup",
        timeout_seconds=ctx.vars["proxy_warm_timeout_seconds"],
    )
    serving.prune(name="Keep the release before", folder=RELEASES, wanted=ctx.notes["release"], keep=1)


def door_probe(values: Any) -> str:
    """Return a command that asks for the version through the door: 200, or 401 where keys are asked for."""
    first = values["proxy_listen"][0]
    expected = "200" if values["proxy_open"] else "401"
    scheme = "https" if values["proxy_tls_cert"] else "http"
    if first.startswith("unix:"):
        where = f"--unix-socket {first[5:]} {scheme}://localhost"
    else:
        name, _, port = first.rpartition(":")
        local = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(name, name)  # noqa: S104 - asked, not bound
        where = f"{scheme}://{local}:{port}"
    if values["proxy_tls_client_ca"]:
        # The deploy shows no certificate and is turned away, but only after TLS stands: that is the answer.
        measured = f"curl -s -k -m 10 -o /dev/null -w '%{{time_appconnect}}' {where}/api/version"
        return f"{measured} | grep -q '[1-9]'"
    return (
        f"curl -sS -k -m 10 -o /dev/null -w '%{{http_code}}' {where}/api/version | grep -Eqx '200|{expected}'"
    )


def record(ctx: Context) -> None:
    """Write down the release."""
    operations.record(
        name="Record what is there",
        layer=ctx.layer,
        values={
            "release": ctx.notes["release"],
            "python": ctx.notes["target"].python,
            "build": ctx.notes["target"].build,
        },
    )


LAYER = Layer("proxy", preflight, install, configure, activate, verify, record)
LAYER.run_if_main(__file__)
