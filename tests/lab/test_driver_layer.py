"""The layers nvidia_driver and container_toolkit on real hosts: laid, left alone, moved on, refused.

The lab of this module has two L4 in one host and a V100 in the other, so that the two need different kernel
modules. Each test starts on fresh hosts, which takes a second.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.hosts import Lab

PROJECT = Path(__file__).resolve().parents[2]
BOTH = ("deploys/nvidia_driver.py", "deploys/container_toolkit.py")
DRIVER = ("deploys/nvidia_driver.py",)
PROFILE = {
    "hosts": [
        {"name": "a", "gpus": [{"model": "L4"}, {"model": "L4"}]},
        {"name": "b", "gpus": [{"model": "V100"}]},
    ]
}
OLD, NEW = "580.126.20", "580.159.03"
# A process that holds memory of the first GPU, as a server with a model does.
HOLD = """
systemd-run --unit=holder sleep infinity
python3 -BES - <<'PY'
import subprocess, sys
sys.path.insert(0, "/usr/lib/labgpu")
import state
pid = int(subprocess.check_output(["systemctl", "show", "-P", "MainPID", "holder"]))
state.claim("/run/labgpu/state", 0, pid, 1 << 30)
PY
"""


@dataclass(frozen=True)
class Outcome:
    """What a run of pyinfra ended with."""

    rc: int
    stdout: str
    stderr: str

    @property
    def answer(self) -> dict[str, Any]:
        """Return the run's JSON."""
        return json.loads(self.stdout)

    @property
    def changes(self) -> int:
        """Return how many operations changed something."""
        return int(self.answer["results"]["totals"]["success"])


class Fleet:
    """The module's lab with its fleet folder, and pyinfra run on it as an operator does."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.folder = folder
        self.a, self.b = lab.hosts

    def set(self, host: str, **variables: object) -> None:
        """Give a host these variables, and no others."""
        path = self.folder / "host_vars" / f"{host}.yml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(variables))

    def run(self, *arguments: str, deploys: tuple[str, ...] = DRIVER) -> Outcome:
        """Run pyinfra with --json."""
        inventory = str(self.folder / "inventory.py")
        command = [str(PROJECT / ".venv/bin/pyinfra"), *arguments, "--json", inventory, *deploys]
        environment = {**os.environ, "PYINFRA_PROGRESS": "off"}
        done = subprocess.run(
            command, cwd=PROJECT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=240, check=False,
        )  # fmt: skip
        return Outcome(done.returncode, done.stdout, done.stderr)

    def fresh(self) -> None:
        """Give both hosts a fresh file system, and take back every variable."""
        shutil.rmtree(self.folder / "host_vars", ignore_errors=True)
        for host in (self.a, self.b):
            self.lab.reset(host.name)


@pytest.fixture(scope="module")
def module_fleet(tmp_path_factory):
    """Boot the module's lab."""
    folder = tmp_path_factory.mktemp("driver")
    (folder / "group_vars/all").mkdir(parents=True)
    for name in ("inventory.py", "group_vars/all/main.yml"):
        shutil.copyfile(PROJECT / "inventories/lab" / name, folder / name)
    profile = folder.with_name("profile.yaml")
    profile.write_text(yaml.safe_dump(PROFILE))
    with Lab("drv") as lab:
        lab.down()
        yield Fleet(lab.up(2, profile, folder), folder)


@pytest.fixture
def fleet(module_fleet):
    """Return the fleet with hosts that have nothing yet."""
    module_fleet.fresh()
    return module_fleet


def record(host, layer: str) -> dict[str, Any]:
    """Return what a layer recorded on a host."""
    return json.loads(host.run(f"cat /var/lib/drover/record/{layer}.json").stdout)


def untouched(host) -> bool:
    """Say whether nothing of ours lies on a host."""
    done = host.run("ls -d /var/lib/drover /etc/apt/*/drover*", check=False)
    return not done.stdout.strip()


def test_a_bare_host_gets_a_driver_and_keeps_it(fleet):
    """A dry run changes nothing, the first run lays all, the second nothing, the third mends drift."""
    dry = fleet.run("--dry", deploys=BOTH)
    assert dry.rc == 0, dry.stderr
    planned = {step["name"] for step in dry.answer["plan"] if step["hosts_with_change"]}
    assert "nvidia_driver | install | Install the driver" in planned
    assert untouched(fleet.a)

    first = fleet.run("--yes", deploys=BOTH)
    assert first.rc == 0, first.stderr
    assert first.changes > 0
    assert record(fleet.a, "nvidia_driver")["flavour"] == "open"
    assert record(fleet.b, "nvidia_driver")["flavour"] == "proprietary"
    assert record(fleet.a, "nvidia_driver")["version"] == NEW
    assert len(set(record(fleet.a, "container_toolkit")["packages"].values())) == 1
    assert fleet.a.run("nvidia-smi -L").stdout.count("GPU ") == 2
    assert "nvidia.com/gpu=1" in fleet.a.run("nvidia-ctk cdi list").stdout

    again = fleet.run("--yes", deploys=BOTH)
    assert again.rc == 0, again.stderr
    assert again.changes == 0, again.stderr

    fleet.a.run("rm /etc/modules-load.d/drover-nvidia.conf")
    mended = fleet.run("--yes", deploys=BOTH)
    assert mended.changes == 1, mended.stderr
    assert "nvidia-uvm" in fleet.a.run("cat /etc/modules-load.d/drover-nvidia.conf").stdout


def test_a_driver_in_use_is_replaced_by_a_reboot(fleet):
    """While the old driver is in use the new one needs a reboot; the run goes on after it and ends well."""
    fleet.set(fleet.a.name, nvidia_driver_version=OLD)
    first = fleet.run("--yes", "--limit", fleet.a.name)
    assert first.rc == 0, first.stderr
    assert record(fleet.a, "nvidia_driver")["version"] == OLD
    fleet.a.run(HOLD)
    boot = fleet.a.run("cat /proc/sys/kernel/random/boot_id").stdout

    fleet.set(fleet.a.name, nvidia_driver_version=NEW, nvidia_driver_reboot=False)
    refused = fleet.run("--yes", "--limit", fleet.a.name)
    assert refused.rc == 1
    assert f"driver {OLD} is loaded, {NEW} is installed" in refused.stderr
    assert fleet.a.run("cat /proc/sys/kernel/random/boot_id").stdout == boot

    fleet.set(fleet.a.name, nvidia_driver_version=NEW)
    second = fleet.run("--yes", "--limit", fleet.a.name)
    assert second.rc == 0, second.stderr
    assert "Rebooted: boot id" in second.stderr
    assert fleet.a.run("cat /proc/sys/kernel/random/boot_id").stdout != boot
    assert record(fleet.a, "nvidia_driver")["version"] == NEW
    assert fleet.run("--yes", "--limit", fleet.a.name).changes == 0


@pytest.fixture
def serve_tampered(fleet, tmp_path):
    """Serve a copy of the mirror's apt repository without its signatures, or with wrong ones."""
    servers = []

    def serve(damage) -> str:
        copy = tmp_path / "apt"
        shutil.copytree(Path(fleet.lab.spec.mirror_root) / "apt", copy)
        damage(copy)
        address = fleet.lab.spec.mirror_url.split("//")[1].split(":")[0]
        handler = functools.partial(Quiet, directory=str(copy))
        servers.append(http.server.ThreadingHTTPServer((address, 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://{address}:{servers[-1].server_port}/"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder without a word."""

    def log_message(self, *_words: object) -> None:
        """Say nothing."""


def strip(folder: Path) -> None:
    """Take the signatures away."""
    for name in ("InRelease", "Release.gpg"):
        (folder / name).unlink(missing_ok=True)


def tamper(folder: Path) -> None:
    """Change what was signed."""
    path = folder / "InRelease"
    path.write_text(path.read_text().replace("SHA256:", "SHA257:", 1))


@pytest.mark.parametrize("damage", [strip, tamper])
def test_a_repository_that_cannot_be_verified_is_refused(fleet, serve_tampered, damage):
    """Without a signature, or with one that doesn't fit, nothing is installed."""
    fleet.set(fleet.a.name, nvidia_driver_apt_url=serve_tampered(damage))
    done = fleet.run("--yes", "--limit", fleet.a.name)
    assert done.rc == 1
    assert "is not signed" in done.stderr
    assert not fleet.a.run("dpkg-query -W '*nvidia*'", check=False).stdout.strip()


def test_a_key_with_another_fingerprint_is_refused(fleet):
    """The key is checked on the controller before its host is touched; the other host goes on."""
    fleet.set(fleet.b.name, mirror_apt_key_fingerprint="0" * 40)
    done = fleet.run("--dry")
    assert done.rc == 1
    assert f"[{fleet.b.name}] nvidia_driver | preflight | refused:" in done.stderr
    assert "expected the key 000" in done.stderr
    assert {name for step in done.answer["plan"] for name in step["hosts_with_change"]} == {fleet.a.name}


def test_a_flavour_that_would_not_bind_is_refused(fleet):
    """Open modules don't fit a V100, and branch 595 has no driver for it: said before anything happens."""
    fleet.set(fleet.b.name, nvidia_driver_flavour="open")
    wrong = fleet.run("--yes", "--limit", fleet.b.name)
    assert wrong.rc == 1
    assert "open modules would install and then not bind" in wrong.stderr
    fleet.set(fleet.b.name, nvidia_driver_branch="595")
    late = fleet.run("--dry", "--limit", fleet.b.name)
    assert late.rc == 1
    assert "its last is 580" in late.stderr
    assert untouched(fleet.b)


def test_a_host_that_is_down_does_not_stop_the_others(fleet):
    """The host that answers is finished, the other is named, and the exit code tells."""
    fleet.b.stop()
    try:
        done = fleet.run("--yes")
    finally:
        fleet.b.start()
    assert done.rc == 1
    assert done.answer["results"]["failed_hosts"] == [fleet.b.name]
    assert record(fleet.a, "nvidia_driver")["version"] == NEW


def test_a_bad_variable_is_named_and_nothing_is_touched(fleet):
    """A mistake in one host's variables stops the whole run before any host is reached."""
    fleet.set(fleet.b.name, nvidia_driver_brnch="580")
    done = fleet.run("--yes")
    assert done.rc == 1
    assert f"{fleet.b.name}: nvidia_driver_brnch (set in host_vars/{fleet.b.name}.yml)" in done.stderr
    assert "Nearest: nvidia_driver_branch." in done.stderr
    assert "Connecting" not in done.stderr
    assert untouched(fleet.a)
    assert untouched(fleet.b)


def test_a_host_without_a_gpu_is_refused_unless_it_wants_no_driver(fleet):
    """Without a GPU on the bus the driver is refused; switched off, both layers leave the host alone."""
    fleet.b.run("umount /sys/bus/pci/devices || umount /sys/bus; true")
    done = fleet.run("--yes", "--limit", fleet.b.name)
    assert done.rc == 1
    assert "no NVIDIA GPU on the PCI bus" in done.stderr
    fleet.set(fleet.b.name, nvidia_driver_enabled=False, container_toolkit_enabled=False)
    off = fleet.run("--yes", "--limit", fleet.b.name, deploys=BOTH)
    assert off.rc == 0, off.stderr
    assert untouched(fleet.b)
