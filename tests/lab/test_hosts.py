"""The lab's hosts, real ones: booted, rebooted, reset, kept apart, and gone without a trace."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from lab.fleet import read_secrets
from lab.hosts import Lab, LabError, control
from lab.hosts.mounts import mounted_under
from lab.hosts.paths import LabPaths
from tests.support import eventually

PROJECT = Path(__file__).resolve().parents[2]
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3).close()"


@pytest.fixture(scope="module")
def pair():
    """A lab of two hosts for the tests of this module, without a mirror."""
    with Lab("pair") as lab:
        lab.down()
        yield lab.up(2, "profiles/mixed.yaml", mirror=False)


@pytest.fixture
def cli(tmp_path):
    """Start `python -m lab` in a process group of its own, as a shell does; gone after the test."""
    started = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "lab", *arguments],
                cwd=PROJECT,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
    Lab("cut").down()


def reach(host, address: str, port: int) -> subprocess.CompletedProcess[str]:
    """Try a TCP connection from a host."""
    return host.run(["python3", "-c", CONNECT, address, str(port)], check=False)


def test_hosts_are_real_systemd_machines(pair):
    """Each host has systemd as its first process, all units up, its own name and machine id."""
    for host in pair.hosts:
        assert host.run("cat /proc/1/comm").stdout.strip() == "systemd"
        assert host.run("systemctl is-system-running").stdout.strip() == "running"
        assert host.run("hostname").stdout.strip() == host.name
    assert len({host.run("cat /etc/machine-id").stdout for host in pair.hosts}) == 2


def test_ops_becomes_root_without_a_password(pair):
    """The user of the deploys comes in with the lab's key and may use sudo."""
    host = pair.host("a")
    assert host.run("id -un; sudo -n id -un", user="ops").stdout.split() == ["ops", "root"]


def test_gpus_of_the_profile_are_on_the_host(pair):
    """The host's own GPUs stand in /etc/labgpu and the unit that plays the kernel has run."""
    profile = json.loads(pair.host("b").run("cat /etc/labgpu/profile.json").stdout)
    assert [gpu["model"] for gpu in profile["gpus"]] == ["A100-80G"] * 4
    assert pair.host("b").run("systemctl is-active labgpu").stdout.strip() == "active"


def test_reboot_inside_gives_a_new_boot_and_keeps_the_files(pair):
    """`reboot` on a host works: another boot_id, the same files, and the supervisor counted the start."""
    host = pair.host("a")
    before = host.boot_id()
    host.run("echo kept >/etc/kept")
    host.reboot()
    assert host.boot_id() != before
    assert host.run("cat /etc/kept").stdout == "kept\n"
    assert host.run("systemctl is-active ssh").stdout.strip() == "active"
    assert pair.status()["children"][host.name]["starts"] >= 2


def test_poweroff_inside_stays_off_until_started(pair):
    """A host that powers itself off isn't started again; `start` brings it back."""
    host = pair.host("b")
    host.run("systemctl poweroff", check=False)
    eventually(lambda: pair.status()["children"][host.name]["state"] == "off", timeout=20)
    assert host.run("true", check=False, timeout=20).returncode == 255
    with pytest.raises(LabError, match=r"pair-b: is off \(exit code 0\)[^$]*lab start pair-b"):
        host.wait_until_up()
    host.start()
    assert host.run("echo back").stdout == "back\n"


def test_reset_gives_a_fresh_host(pair):
    """`reset` forgets what was written on the host, and its host key is the one that is known."""
    host = pair.host("a")
    host.run("echo dirt >/etc/dirt; rm -rf /usr/share/doc")
    pair.reset("a")
    assert host.run("ls /etc/dirt", check=False).returncode != 0
    assert host.run("ls /usr/share/doc").stdout


def test_hosts_reach_each_other_and_the_mirror_and_nothing_else(pair):
    """From a host: its neighbour and the lab's own address answer; beyond the lab there is no way."""
    first, second = pair.hosts
    assert reach(first, second.name, 22).returncode == 0
    with socket.create_server((pair.spec.gateway, 0)) as mirror:
        assert reach(first, "mirror", mirror.getsockname()[1]).returncode == 0
    routes = first.run("ip -4 route; ip -6 route show default").stdout.splitlines()
    assert [line.split()[0] for line in routes] == [pair.spec.network]
    for beyond in ("192.0.2.2", "198.51.100.7", "8.8.8.8"):
        refused = reach(first, beyond, 443)
        assert "Network is unreachable" in refused.stderr


def test_services_of_one_name_have_groups_of_their_own_on_each_host(pair):
    """Hosts don't share control groups: the same service on each is in another one."""
    groups = []
    for host in pair.hosts:
        found = host.run(
            "find /sys/fs/cgroup -maxdepth 3 -name ssh.service -printf '%D:%i\\n'"
        ).stdout.split()
        assert found
        groups.append(set(found))
    assert groups[0].isdisjoint(groups[1])


def test_what_a_unit_says_of_devices_is_enforced(pair):
    """DevicePolicy= and DeviceAllow= hold as on a real host: a unit that forgot a device fails."""
    host = pair.host("a")
    read = "systemd-run -q --collect --pipe --wait -p DevicePolicy={} head -c1 /dev/zero | wc -c"
    assert host.run(read.format("closed")).stdout.strip() == "1"
    assert host.run(read.format("strict")).stdout.strip() == "0"
    assert host.run(read.format("strict -p 'DeviceAllow=/dev/zero r'")).stdout.strip() == "1"


def test_two_labs_live_side_by_side_and_never_meet(pair, make_lab):
    """Another lab has its own bridge and subnet; no host of one reaches a host of the other."""
    other = make_lab("other", profile="profiles/single.yaml")
    assert other.spec.subnet != pair.spec.subnet
    assert other.host("a").run("hostname").stdout.strip() == "other-a"
    refused = reach(other.host("a"), pair.host("a").address, 22)
    assert "Network is unreachable" in refused.stderr
    other.down()
    assert pair.host("a").run("echo here").stdout == "here\n"


def test_a_name_that_is_taken_is_refused(pair):
    """A second `up` of the same name changes nothing and says what to do."""
    with pytest.raises(LabError, match=r"is up already[^$]*lab down --name pair"):
        Lab("pair").up(1, "profiles/single.yaml", mirror=False)
    assert pair.host("a").run("echo here").stdout == "here\n"


def test_a_bridge_that_is_taken_is_refused():
    """A link of the bridge's name that isn't the lab's is left alone."""
    subprocess.run(["ip", "link", "add", "dlab-cut", "type", "bridge"], check=True)
    try:
        with pytest.raises(LabError, match="dlab-cut is there already"):
            Lab("cut").up(1, "profiles/single.yaml", mirror=False)
        assert not LabPaths("cut").state.exists()
        assert (
            subprocess.run(["ip", "link", "show", "dlab-cut"], capture_output=True, check=False).returncode
            == 0
        )
    finally:
        subprocess.run(["ip", "link", "delete", "dlab-cut"], check=True)


def test_down_after_the_supervisor_was_killed_leaves_nothing(make_lab):
    """SIGKILL takes the supervisor, its hosts run on; `down` finds and removes all of it."""
    lab = make_lab("cut", hosts=2)
    supervisor = control.supervisor(lab.paths)
    assert supervisor is not None
    os.kill(supervisor.pid, signal.SIGKILL)
    eventually(lambda: control.supervisor(lab.paths) is None)
    assert lab.status()["supervisor"] == "gone"
    assert any(line.startswith("process") for line in lab.leftovers())
    removed = lab.down()
    assert any(line.startswith("process") for line in removed)
    assert lab.leftovers() == []
    assert not list(Path("/run/netns").glob("dlab-cut-*"))


@pytest.mark.parametrize("moment", ["log/cut-a.log", "pids/cut-b.json", "ssh/known_hosts"])
def test_ctrl_c_during_up_leaves_nothing(cli, moment):
    """Ctrl-C, at whatever moment, takes back what `up` had made so far, and says so."""
    up = cli("up", "--name", "cut", "--hosts", "2")
    eventually(
        lambda: (LabPaths("cut").state / moment).exists() or up.poll() is not None, timeout=300, every=0.002
    )
    os.killpg(up.pid, signal.SIGINT)
    output, errors = up.communicate(timeout=60)
    assert up.returncode == 130, output + errors
    assert Lab("cut").leftovers() == []


def test_a_base_image_that_was_interrupted_leaves_nothing(tmp_path):
    """A base image is there whole or not at all: no folder, no mount, no process of debootstrap is left."""
    making = "import sys, pathlib; from lab.hosts import base; base.ensure(print, pathlib.Path(sys.argv[1]))"
    with subprocess.Popen([sys.executable, "-c", making, str(tmp_path)], cwd=PROJECT) as process:
        eventually(lambda: list(tmp_path.glob(".making-base-*/root/debootstrap/*")), timeout=60)
        process.send_signal(signal.SIGINT)
        process.wait(30)
    assert list(tmp_path.iterdir()) == []
    assert mounted_under(tmp_path) == []
    for process in psutil.process_iter(["cmdline"]):
        assert not any(str(tmp_path) in word for word in process.info["cmdline"] or ())


def test_down_after_up_was_killed_half_way_leaves_nothing(cli):
    """A crash in the middle of `up` leaves a half-made lab; `status` shows it and `down` removes it."""
    up = cli("up", "--name", "cut", "--hosts", "2")
    network = LabPaths("cut").host("cut-a") / "root/etc/hostname"
    eventually(lambda: network.exists() or up.poll() is not None, timeout=300, every=0.002)
    os.killpg(up.pid, signal.SIGKILL)
    up.wait(30)
    assert Lab("cut").leftovers()
    assert Lab("cut").down()
    assert Lab("cut").leftovers() == []


def test_the_command_line_lists_runs_and_shows_logs(pair, cli):
    """`list`, `ssh`, `logs` and `status` find the lab by the host's full name."""
    listed = json.loads(cli("list", "--json", "--name", "pair").communicate(timeout=30)[0])
    assert [host["name"] for host in listed["hosts"]] == ["pair-a", "pair-b"]
    assert listed["hosts"][0]["address"] == pair.host("a").address
    assert listed["keys"]["use"].startswith("drv_")
    assert cli("ssh", "pair-b", "hostname").communicate(timeout=30)[0] == "pair-b\n"
    failing = cli("ssh", "pair-b", "exit 7")
    failing.communicate(timeout=30)
    assert failing.returncode == 7
    logs = cli("logs", "pair-b").communicate(timeout=30)[0]
    assert "multi-user.target" in logs
    assert "Started ssh.service" in logs
    assert "pair: supervisor running" in cli("status").communicate(timeout=30)[0]


def test_a_way_that_is_blocked_is_noticed_at_up(pair):
    """What a host must reach and doesn't is named before any deploy meets it, with what to do."""
    pair._check_network(pair.spec)
    nobody = dataclasses.replace(pair.spec, mirror_root="/nowhere")
    with pytest.raises(LabError, match=r"pair-a does not reach mirror, port 8088[^$]*dlab-pair -j ACCEPT"):
        pair._check_network(nobody)


def test_secrets_are_for_root_alone(pair):
    """What holds secrets in the lab's folder can't be read by others, nor can the folder be entered."""
    assert pair.paths.state.stat().st_mode & 0o777 == 0o700
    for path in (pair.paths.secrets, pair.paths.mirror_auth, pair.paths.ssh_key):
        assert path.stat().st_mode & 0o077 == 0, path


def test_the_mirror_serves_the_lab_with_a_login(make_lab, tmp_path):
    """`up` starts the mirror and writes the fleet; the mirror refuses whoever has no login."""
    lab = make_lab("cut", fleet=tmp_path / "fleet", mirror=True)
    host, secrets = lab.host("a"), read_secrets("cut")
    ask = "curl -so /dev/null -w '%{http_code}' --netrc-file /dev/stdin http://mirror:8088/apt/InRelease"
    login = f"machine mirror login {secrets['mirror_username']} password {secrets['mirror_password']}\n"
    assert host.run(ask, stdin=login).stdout == "200"
    assert host.run(ask, stdin="").stdout == "401"
    assert (tmp_path / "fleet/hosts.yml").exists()
    mirror = lab.status()["children"]["mirror"]
    os.kill(mirror["pid"], signal.SIGKILL)
    eventually(lambda: lab.status()["children"]["mirror"]["starts"] == 2, timeout=10)
    eventually(lambda: host.run(ask, stdin=login, check=False).stdout == "200", timeout=10)
    lab.down()
    assert list((tmp_path / "fleet").rglob("*.yml")) == []


def test_both_engines_reach_the_hosts_with_strict_host_keys(lab, fleet_dir, run_pyinfra, tmp_path):
    """The fleet that `up` writes does for pyinfra and Ansible; a host with another key is refused."""
    deploy = tmp_path / "deploy.py"
    deploy.write_text(
        "from pyinfra.operations import server\nserver.shell(name='who', commands=['id -un'])\n"
    )
    done = run_pyinfra(deploy=str(deploy))
    assert done.rc == 0, done.output
    assert all(f"[{host.name}] Success" in done.output for host in lab.hosts)
    ansible = [str(PROJECT / ".venv/bin/ansible"), "-i", str(fleet_dir / "hosts.yml"), "all", "-m", "command"]
    settings = {**os.environ, "ANSIBLE_VAULT_PASSWORD_FILE": str(fleet_dir / ".vault-password")}
    run = [*ansible, "-a", "id -un"]
    said = subprocess.run(run, cwd=tmp_path, env=settings, capture_output=True, text=True, check=False)
    assert said.stdout.count("CHANGED | rc=0 >>\nroot") == 3, said.stdout + said.stderr
    known = lab.paths.known_hosts.read_text()
    try:
        other = known.splitlines()[1].split()[2]
        lab.paths.known_hosts.write_text(known.replace(known.splitlines()[0].split()[2], other))
        assert run_pyinfra("--limit", lab.hosts[0].name, deploy=str(deploy)).rc != 0
    finally:
        lab.paths.known_hosts.write_text(known)
