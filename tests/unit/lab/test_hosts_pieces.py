"""The small parts under the lab's hosts: manifest, apt sources, mounts, groups, processes, locks, the CLI."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab import cli
from lab.hosts import LabError, base, cgroups, locks, machine, mounts, overlay, processes, spec, tools
from lab.hosts.paths import LabPaths
from lab.hosts.profiles import ProfileHost
from tests.support import eventually

MOUNTINFO = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
40 22 0:35 / /var/lib/drover-lab/lab/hosts/lab-a/root rw - overlay x rw
41 22 0:36 / /var/lib/drover-lab/lab2/hosts/lab2-a/root rw - overlay x rw
42 40 0:37 / /var/lib/drover-lab/lab/hosts/lab-a/root/with\\040space rw - tmpfs x rw
"""


def test_the_manifest_names_the_image():
    """Another package, suite or architecture makes another image; the same content the same one."""
    plain = base.manifest("amd64")
    assert base.manifest_hash(plain) == base.manifest_hash(base.manifest("amd64"))
    assert base.manifest_hash(base.manifest("arm64")) != base.manifest_hash(plain)
    assert base.manifest_hash({**plain, "packages": [*base.PACKAGES, "vim"]}) != base.manifest_hash(plain)


def sources(folder: Path, name: str, text: str) -> Path:
    """Write a file of apt sources."""
    (folder / "sources.list.d").mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder


def test_the_mirror_is_read_from_deb822_sources(tmp_path):
    """The stanza that has the suite itself counts: not its updates, security or another suite."""
    text = (
        "# a comment: with a colon\nTypes: deb\nURIs: http://one.test/debian\n"
        "Suites: trixie\nComponents: main\n\n"
        "Types: deb\n# URIs: http://old.test\nURIs: http://two.test/debian\n"
        "Suites: bookworm bookworm-updates\nComponents: main contrib\n"
    )
    assert base.debian_mirror(sources(tmp_path, "sources.list.d/a.sources", text)) == "http://two.test/debian"


def test_the_mirror_is_read_from_one_line_sources(tmp_path):
    """Options in brackets don't disturb; a line for security or without main doesn't count."""
    text = (
        "deb http://sec.test/debian bookworm-security main\ndeb http://no.test/debian bookworm contrib\n"
        "deb [arch=amd64 signed-by=/k.gpg] http://yes.test/debian bookworm main\n"
    )
    assert base.debian_mirror(sources(tmp_path, "sources.list", text)) == "http://yes.test/debian"


def test_without_the_suite_debootstrap_chooses_the_mirror(tmp_path):
    """On a machine of another distribution nothing is guessed."""
    text = "deb http://archive.test/ubuntu noble main\n"
    assert base.debian_mirror(sources(tmp_path, "sources.list", text)) is None
    assert base.debian_mirror(tmp_path / "nowhere") is None


def test_mountinfo_is_read_with_its_escapes():
    """A mount point with a space in it is found under its real name."""
    points = mounts.parse_mountinfo(MOUNTINFO)
    assert points[0] == Path("/")
    assert points[-1] == Path("/var/lib/drover-lab/lab/hosts/lab-a/root/with space")


def test_only_the_labs_own_mounts_count(tmp_path, monkeypatch):
    """A lab whose name begins like another's keeps its mounts."""
    file = tmp_path / "mountinfo"
    file.write_text(MOUNTINFO)
    monkeypatch.setattr(mounts, "MOUNTINFO", file)
    found = mounts.mounted_under(Path("/var/lib/drover-lab/lab"))
    assert [path.name for path in found] == ["root", "with space"]


def test_cgroup_hierarchies_of_both_versions():
    """Version 1's many trees and version 2's one are found; other file systems are not."""
    lines = [
        "tmpfs /cg tmpfs rw 0 0",
        "cgroup /cg/cpu cgroup rw,cpu 0 0",
        "cgroup2 /cg/unified cgroup2 rw 0 0",
    ]
    assert cgroups.hierarchies("\n".join(lines)) == [Path("/cg/cpu"), Path("/cg/unified")]


def test_a_new_cpuset_gets_what_its_parent_has(tmp_path):
    """An empty cpuset, which no process could enter, is filled from the one above."""
    (tmp_path / "child").mkdir()
    for name, value in (("cpuset.cpus", "0-1\n"), ("cpuset.mems", "0\n")):
        (tmp_path / name).write_text(value)
        (tmp_path / "child" / name).write_text("\n")
    cgroups._inherit_cpuset(tmp_path / "child")
    assert (tmp_path / "child/cpuset.cpus").read_text() == "0-1\n"


def test_a_process_is_told_from_a_later_one_with_its_id(tmp_path):
    """The same id with another start time is another process, and is not signalled."""
    mine = processes.record(os.getpid())
    assert mine is not None
    assert mine.alive
    other = processes.ProcessRecord(mine.pid, mine.start_ticks - 1)
    assert not other.alive
    processes.kill(other)  # would end this very test
    other.save(tmp_path / "pid")
    assert processes.read_record(tmp_path / "pid") is None
    mine.save(tmp_path / "pid")
    assert processes.read_record(tmp_path / "pid") == mine


def test_a_zombie_does_not_count_as_running():
    """A child that ended and wasn't collected is gone."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    running = processes.record(child.pid)
    assert running is None or processes.gone([running], within_seconds=10)
    child.wait()


def test_processes_are_found_by_whole_arguments():
    """A process is found by its arguments, not by parts of them."""
    with subprocess.Popen([sys.executable, "-c", "input()", "--machine=x-a"], stdin=subprocess.PIPE) as child:
        # The kernel shows a program's arguments a moment after it has begun.
        eventually(lambda: [found.pid for found in processes.find("--machine=x-a")] == [child.pid])
        assert processes.find("--machine=x") == []


def test_only_the_hosts_own_nspawn_is_taken_for_it():
    """Another machine of the name, or another program with the words, isn't ours."""
    root = Path("/var/lib/drover-lab/lab/hosts/lab-a/root")
    words = [f"--directory={root}", "--machine=lab-a"]
    assert machine.is_boot_of("lab-a", root, ["/usr/bin/systemd-nspawn", *words])
    assert not machine.is_boot_of("lab-a", root, ["grep", *words])
    assert not machine.is_boot_of("lab-a", root, ["systemd-nspawn", "--directory=/x", "--machine=lab-a"])
    assert not machine.is_boot_of("lab-a", root, [])


def test_the_hosts_file_knows_all_hosts_and_the_mirror(tmp_path):
    """Without a name server, /etc/hosts is where names come from."""
    lab = spec.make("lab", tmp_path, (ProfileHost("a", ()), ProfileHost("b", ())))
    lines = overlay.hosts_file(lab, lab.hosts[0]).splitlines()
    assert f"{lab.gateway} mirror" in lines
    assert f"{lab.hosts[1].address} lab-b b" in lines


def test_a_lock_is_refused_while_held_and_leaves_no_file(tmp_path):
    """Two commands on one lab: the second is told so. Afterwards no lock file is left."""
    path = tmp_path / "lock"
    with locks.held(path, busy="at work"):
        with pytest.raises(LabError, match="at work"), locks.held(path, busy="at work"):
            pass
        assert path.exists()
    assert not path.exists()
    with locks.held(path, busy="at work"):
        assert path.exists()


def test_missing_tools_are_installed_by_name(monkeypatch):
    """What is missing is named in one line and installed; what is there is left alone."""
    there = set(tools.PACKAGES.values()) - {"zstd", "gcc"}
    calls = []

    def apt_get(*arguments):
        calls.append(arguments)
        there.update({"zstd", "gcc"})
        return subprocess.CompletedProcess(arguments, 0, "", "")

    monkeypatch.setattr(tools, "_is_there", lambda proof: proof in there)
    monkeypatch.setattr(tools, "_apt_get", apt_get)
    monkeypatch.setattr(tools, "HELPFUL", {})
    monkeypatch.setattr(tools.shutil, "which", lambda name: f"/usr/bin/{name}")
    said = []
    tools.ensure_packages(said.append)
    assert calls == [("install", "zstd", "gcc")]
    assert said == ["installing what the lab needs on this machine: zstd gcc"]
    tools.ensure_packages(said.append)
    assert len(calls) == 1


@pytest.mark.parametrize(("code", "lines"), [(0, 1), (100, 2)])
def test_a_lab_boots_without_what_the_proxy_is_compiled_with(monkeypatch, code, lines):
    """Python's headers are installed by name too; where that fails, it is said, and nothing else fails."""
    calls = []

    def apt_get(*arguments):
        calls.append(arguments)
        return subprocess.CompletedProcess(arguments, code, "", "no such package")

    monkeypatch.setattr(tools, "HELPFUL", {"python3.99-dev": "/usr/include/python3.99/Python.h"})
    monkeypatch.setattr(tools, "_is_there", lambda proof: "3.99" not in proof)
    monkeypatch.setattr(tools, "_apt_get", apt_get)
    monkeypatch.setattr(tools.shutil, "which", lambda name: f"/usr/bin/{name}")
    said = []
    tools.ensure_packages(said.append)
    assert calls[-1] == ("install", "python3.99-dev")
    assert len(said) == lines
    assert said[0] == "installing what the proxy is compiled with: python3.99-dev"


@pytest.mark.parametrize("command", [["up"], ["down"], ["list"], ["ssh", "a"], ["status"], ["reset", "a"]])
def test_without_root_one_line_and_exit_code_3(monkeypatch, capsys, command):
    """Every command says in one line what is needed, and exits with 3, before it touches anything."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cli.main(command) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert f"lab {command[0]}: needs root" in said.err
    assert "run: sudo" in said.err


def test_without_linux_exit_code_3(monkeypatch, capsys):
    """On another system the same, with what works there."""
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cli.main(["up"]) == 3
    assert "needs Linux" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "lab"), [("mol-a", "mol"), ("a", "lab"), ("lab-a", "lab"), ("gone-a", "lab"), ("", "lab")]
)
def test_the_lab_is_read_from_a_hosts_full_name(host, lab):
    """`lab ssh mol-a` needs no --name when a lab of that name is there."""
    assert cli._lab_of(host, ["lab", "mol"]) == lab


def test_a_supervisor_that_is_gone_is_said_so(tmp_path, monkeypatch):
    """A command to a lab whose supervisor doesn't run names the way out."""
    from lab.hosts import control

    monkeypatch.setattr("lab.hosts.paths.STATE", tmp_path)
    with pytest.raises(LabError, match=r"doesn't answer(.|\n)*lab down --name cut"):
        control.command(LabPaths("cut"), "status")
