"""Ollama under systemd: a checked release beside the older ones, one instance a GPU, settings in a drop-in.

pyinfra -y inventories/FLEET/inventory.py deploys/ollama.py
"""

from __future__ import annotations

from typing import Any

from pyinfra import host
from pyinfra.api import operation

from deploys.lib import apt, operations, serving
from deploys.lib.facts import Lines
from deploys.lib.instances import GpuUuids, Instance, UnknownGpuError, bound, planned
from deploys.lib.operations import Commands
from deploys.lib.release import RELEASES, Login, release
from deploys.lib.stage import Context, Layer, SkipLayerError
from drover import catalogue

USER = "ollama"
HOME = "/var/lib/ollama"
UNITS = "/etc/systemd/system"
CHECK = f"{serving.LIBRARY}/ollama_check.py"


def preflight(ctx: Context) -> None:
    """Refuse a release whose digest nobody knows, and a host without GPUs."""
    values = ctx.vars
    if not values["ollama_enabled"]:
        raise SkipLayerError
    ctx.notes["instances"] = planned(ctx)
    if not ctx.notes["instances"]:
        ctx.refuse("no NVIDIA GPU on the PCI bus. Next: lspci -d 10de:, or set ollama_enabled: false for it")
    version = values["ollama_version"]
    archive = catalogue.ollama_archive(
        version, ctx.machine.architecture or "amd64", mirror=values["mirror_url"]
    )
    sha256 = (
        values["ollama_archive_sha256"]
        or values["ollama_archive_checksums"].get(version, "")
        or archive.sha256
    )
    if not sha256:
        ctx.refuse(
            f"nobody knows the SHA-256 of Ollama {version}: versions.yml doesn't list it. Next: set "
            "ollama_archive_sha256, from sha256sum.txt of the release"
        )
    ctx.notes["url"] = values["ollama_archive_url"] or archive.url
    ctx.notes["sha256"] = sha256.lower()


def install(ctx: Context) -> None:
    """Lay the release beside the older ones; nothing points to it yet."""
    values = ctx.vars
    apt.packages(
        name="Install what fetches, unpacks and checks", wanted={"curl": "", "python3": "", "zstd": ""}
    )
    serving.account(name="Have a user", user=USER, home=HOME, groups=["video", "render"])
    serving.folders(
        name="Have its folders",
        wanted={
            RELEASES: ("0755", "root", "root"),
            HOME: ("0750", USER, USER),
            values["ollama_models_dir"]: ("0750", USER, USER),
            "/etc/drover/ollama": ("0755", "root", "root"),
        },
    )
    url = ctx.notes["url"]
    on_mirror = bool(values["mirror_url"]) and url.startswith(values["mirror_url"])
    login = Login(values["mirror_username"], values["mirror_password"]) if on_mirror else Login()
    release(
        name=f"Have release {values['ollama_version']}, checked",
        version=values["ollama_version"],
        url=url,
        sha256=ctx.notes["sha256"],
        fetch=values["ollama_fetch"],
        login=login,
    )


def configure(ctx: Context) -> None:
    """Lay the unit, its settings, what it waits with, and each instance's GPUs and port."""
    serving.lay_fingerprint()
    for name, what in (("ollama_gate.py", "waits for the GPUs"), ("ollama_check.py", "checks the instances")):
        operations.place(
            name=f"Place what {what}",
            dest=f"{serving.LIBRARY}/{name}",
            content=serving.static("ollama", name),
            mode="0755",
        )
    operations.place(
        name="Place the unit",
        dest=f"{UNITS}/ollama@.service",
        content=ctx.render("ollama@.service.j2"),
    )
    operations.place(
        name="Place the settings",
        dest=f"{UNITS}/ollama@.service.d/10-drover.conf",
        content=ctx.render("10-drover.conf.j2"),
    )
    instance_files(name="Bind each instance to its GPUs", ctx=ctx)


@operation()
def instance_files(ctx: Context) -> Commands:
    """Lay the file of each instance, with the UUIDs of its GPUs as the driver shows them now.

    + ctx: the layer's context
    """
    try:
        instances = bound(ctx.notes["instances"], host.get_fact(GpuUuids))
    except UnknownGpuError as error:
        yield operations.refusal(str(error))
        return
    for instance in instances:
        content = ctx.render("instance.env.j2", instance=instance.for_template())
        yield from operations.place._inner(dest=instance.env_file, content=content)  # noqa: SLF001 - nested


@operation()
def no_others(instances: tuple[Instance, ...]) -> Commands:
    """Stop and remove instances that the host shall no longer have, and an `ollama.service` of other making.

    + instances: those that stay
    """
    files = host.get_fact(Lines, script="ls /etc/drover/ollama/*.env")
    names = [line.rpartition("/")[2].removesuffix(".env") for line in files]
    for name in sorted(set(names) - {instance.name for instance in instances}):
        yield operations.script(
            'set -eu; systemctl -q disable --now "ollama@$0.service"; rm -f -- "/etc/drover/ollama/$0.env" '
            '"/run/drover/started/ollama@$0.service"',
            name,
        )
    if host.get_fact(Lines, script="systemctl is-active ollama.service") == ["active"]:
        # install.sh's unit: it would hold the port and the GPUs.
        yield operations.script("systemctl -q disable --now ollama.service")


def activate(ctx: Context) -> None:
    """Point to the release, and restart the instances that run from something else."""
    version, instances = ctx.vars["ollama_version"], ctx.notes["instances"]
    serving.link(name=f"Point to release {version}", path=f"{RELEASES}/current", target=version)
    no_others(name="Stop instances that are no more", instances=instances)
    serving.running(
        name="Run the instances",
        names=[instance.unit for instance in instances],
        one_by_one=_answer_wait(ctx.vars["ollama_start_timeout_seconds"]),
    )


def _answer_wait(seconds: int) -> str:
    """Return a command that waits until the instance of "{unit}" answers, so that the next may restart."""
    return (
        "n={unit}; n=${n#ollama@}; n=${n%.service}; "
        'a=$(sed -n "s/^OLLAMA_HOST=//p" "/etc/drover/ollama/$n.env"); '
        f"timeout {seconds} sh -c "
        '"until curl -fs -m 5 -o /dev/null http://$a/api/version; do sleep 0.2; done"'
    )


def verify(ctx: Context) -> None:
    """Prove that each instance answers, in the right version, with its settings, on its GPUs."""
    operations.gate(
        name="See that every instance answers on its GPUs with its settings",
        probe=CHECK,
        message="An Ollama instance doesn't run as it was laid:",
        timeout_seconds=ctx.vars["ollama_start_timeout_seconds"],
    )
    serving.prune(
        name="Keep as many releases as wanted",
        folder=RELEASES,
        wanted=ctx.vars["ollama_version"],
        keep=ctx.vars["ollama_keep_releases"],
    )


def record(ctx: Context) -> None:
    """Write down the version and the instances."""

    def values() -> dict[str, Any]:
        return {
            "version": ctx.vars["ollama_version"],
            "sha256": ctx.notes["sha256"],
            "gpus": host.get_fact(GpuUuids),
            "instances": [instance.for_template() for instance in ctx.notes["instances"]],
        }

    operations.record(name="Record what is there", layer=ctx.layer, values=values)


LAYER = Layer("ollama", preflight, install, configure, activate, verify, record)
LAYER.run_if_main(__file__)
