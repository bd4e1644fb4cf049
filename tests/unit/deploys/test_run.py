"""Whole deploys through pyinfra's own command, on fake hosts that record instead of doing."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploys.lib.stage import STAGES

PROJECT = Path(__file__).resolve().parents[3]
KEY_BODY = b"\x04" + b"\x00\x00\x00\x01" + b"\x16" + b"x" * 40
KEY = bytes([0xC6, len(KEY_BODY)]) + KEY_BODY
PRINT = hashlib.sha1(b"\x99" + len(KEY_BODY).to_bytes(2) + KEY_BODY).hexdigest()  # noqa: S324 - OpenPGP v4
MACHINE = """\
== kernel
6.1.0
== os
ID=debian
VERSION_ID="12"
== arch
amd64
== pci
0000:01:00.0 0x030200 {device}
== free_mib
90000
"""
INVENTORY = """\
from pathlib import Path
from drover.inventory import pyinfra_groups

groups = pyinfra_groups(Path(__file__).parent)
machines = {machines!r}
answers = {answers!r}
for name, data in groups["all"]:
    data["fake_responses"] = {{"== kernel": machines[name], **answers.get(name, {{}})}}
    data["fake_delay"] = data["fake_delay_jitter"] = 0
globals().update(groups)
"""


@pytest.fixture
def run(tmp_path):
    """Write a fleet of fake hosts, name to PCI device id, and run pyinfra on it.

    `answers` has for a host what it says to commands that contain a text.
    """

    def start(
        hosts,
        *arguments,
        deploys=("deploys/nvidia_driver.py", "deploys/container_toolkit.py"),
        answers=None,
        **variables,
    ):
        (tmp_path / "key.gpg").write_bytes(KEY)
        common = {
            "mirror_url": "http://mirror.example",
            "mirror_username": "fleet",
            "mirror_password": "canary-password",
            "mirror_apt_key_file": "key.gpg",
            "mirror_apt_key_fingerprint": PRINT,
            **variables,
        }
        tree = {"all": {"hosts": {name: {} for name in hosts}, "vars": common}}
        (tmp_path / "hosts.yml").write_text(json.dumps(tree))
        machines = {name: MACHINE.format(device=device) for name, device in hosts.items()}
        (tmp_path / "inventory.py").write_text(INVENTORY.format(machines=machines, answers=answers or {}))
        command = [
            str(Path(sys.executable).with_name("pyinfra")),
            *arguments,
            str(tmp_path / "inventory.py"),
            *deploys,
        ]
        return subprocess.run(
            command, cwd=PROJECT, env={**os.environ, "PYINFRA_PROGRESS": "off"}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    return start


def test_a_plan_names_layer_stage_and_step_in_order(run):
    """Operations are named `layer | stage | Sentence`, and the stages of a layer follow one another."""
    done = run({"@fake/l4": "0x27b8", "@fake/v100": "0x1db5"}, "--dry", "--json")
    assert done.returncode == 0, done.stderr
    names = [step["name"].split(" | ") for step in json.loads(done.stdout)["plan"]]
    assert all(len(name) == 3 and name[2][0].isupper() for name in names), names
    for layer in ("nvidia_driver", "container_toolkit"):
        order = [STAGES.index(stage) for name, stage, _ in names if name == layer]
        assert order == sorted(order)
    layers = [name for name, _, _ in names]
    assert layers == sorted(layers, reverse=True), "one layer after the other, the driver first"


def test_a_refused_host_leaves_the_others_in_the_run(run):
    """A refused host is named with the reason; the other's plan is whole; the exit code tells."""
    done = run(
        {"@fake/l4": "0x27b8", "@fake/b200": "0x2901"}, "--dry", "--json", nvidia_driver_flavour="proprietary"
    )
    assert done.returncode == 1
    assert "[@fake/b200] nvidia_driver | preflight | refused: GPU 0000:01:00.0 (blackwell" in done.stderr
    plan = json.loads(done.stdout)["plan"]
    assert {host for step in plan for host in step["hosts_with_change"]} == {"@fake/l4"}


def test_a_host_alone_that_is_refused_ends_the_run(run):
    """With nobody left the run ends with 1, and the reason is there."""
    done = run({"@fake/k80": "0x102d"}, "--dry", "--json")
    assert done.returncode == 1
    assert "too old" in done.stderr


def test_verbose_output_shows_no_secret(run):
    """Even with every command and its output printed, a secret isn't in it."""
    done = run({"@fake/l4": "0x27b8"}, "--yes", "-vvv", "--debug")
    assert "Place the repository's login" in done.stderr
    assert "canary" not in done.stdout + done.stderr


def test_the_printed_inventory_shows_no_secret(run):
    """Pyinfra's own look at the inventory has stars where secrets are."""
    done = run({"@fake/l4": "0x27b8"}, deploys=("debug-inventory",))
    assert done.returncode == 0, done.stderr
    assert "@fake/l4" in done.stdout + done.stderr
    assert "canary" not in done.stdout + done.stderr


def test_an_inventory_of_another_kind_is_explained():
    """Without a fleet the deploys say what to run instead."""
    pyinfra = str(Path(sys.executable).with_name("pyinfra"))
    done = subprocess.run(
        [pyinfra, "--dry", "--json", "@fake/x", "deploys/nvidia_driver.py"],
        cwd=PROJECT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        env={**os.environ, "PYINFRA_FAKE_DELAY": "0", "PYINFRA_FAKE_DELAY_JITTER": "0"},
    )  # fmt: skip
    assert done.returncode != 0
    assert "this inventory doesn't come from a drover fleet" in done.stderr
