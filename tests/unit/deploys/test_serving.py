"""Instances, units, links, releases and bundles: what the serving layers have in common."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from deploys.lib import release as release_of
from deploys.lib import serving, wheelhouse
from deploys.lib.facts import Lines
from deploys.lib.instances import Instance, UnknownGpuError, bound, planned
from deploys.lib.model_list import all_filled, file_name
from drover.variables import load_defaults
from tests.unit.deploys.support import commands_of, perform, refusal_of, text_of


def context(gpus, **variables):
    """Return a layer's context with so many GPUs on the bus."""
    return SimpleNamespace(
        vars={**load_defaults(), **variables}, machine=SimpleNamespace(gpus=("gpu",) * gpus), notes={}
    )


def states(**units):
    """Return the lines that a host gives for units: name to (state, started from what lies there)."""
    lines = []
    for name, (state, fresh) in units.items():
        lines += [
            f"== {name}.service",
            f"ActiveState={state}",
            "NeedDaemonReload=no",
            "UnitFileState=enabled",
        ]
        lines += ["Current=aa", f"Started={'aa' if fresh else 'bb'}"]
    return lines


def test_one_instance_a_gpu_by_default():
    """Names and ports count up; they are known before there is a driver."""
    found = planned(context(2))

    assert [(one.name, one.port, one.gpus) for one in found] == [
        ("gpu0", 11434, ("0",)),
        ("gpu1", 11435, ("1",)),
    ]
    assert found[1].unit == "ollama@gpu1.service"


def test_one_more_over_all_gpus():
    """It has all GPUs, and a port far from the others'."""
    spread = planned(context(2, ollama_spread=True))[-1]

    assert (spread.name, spread.port, spread.gpus) == ("spread", 11533, ("0", "1"))


def test_instances_by_hand_replace_the_default():
    """What the fleet writes is what is laid."""
    entry = {"name": "big", "port": 12000, "gpus": ["1", "GPU-a"]}

    assert planned(context(4, ollama_instances=[entry])) == (Instance("big", 12000, ("1", "GPU-a")),)


def test_indexes_become_uuids_and_strangers_are_refused():
    """A UUID stays; a GPU that the driver doesn't show is named with what it shows."""
    assert bound((Instance("x", 1, ("1", "GPU-a")),), ["GPU-a", "GPU-b"])[0].gpus == ("GPU-b", "GPU-a")
    with pytest.raises(UnknownGpuError, match="needs GPU 2, but the driver shows GPU-a"):
        bound((Instance("x", 1, ("2",)),), ["GPU-a"])


def test_units_that_run_from_what_lies_there_are_left_alone(scripted):
    """No reload, no restart, nothing."""
    scripted.facts[Lines] = states(a=("active", True), b=("active", True))

    assert commands_of(serving.running, names=["a.service", "b.service"]) == []


def test_a_stale_unit_is_restarted_alone_and_waited_for(scripted):
    """Others serve meanwhile; nothing is started that runs."""
    scripted.facts[Lines] = states(a=("active", True), b=("active", False))

    found = [
        text_of(c)
        for c in commands_of(serving.running, names=["a.service", "b.service"], one_by_one="wait {unit}")
    ]

    assert len(found) == 2
    assert "daemon-reload" in found[0]
    assert "b.service" in found[1]
    assert "a.service" not in found[1]
    assert "wait b.service" in found[1]


@pytest.mark.parametrize("started", ["dd bb", "aa cc"])
def test_nothing_is_restarted_into_what_could_not_start(scripted, tmp_path, monkeypatch, started):
    """Neither where it runs from something else, nor where a reload takes a restart: it serves on."""
    scripted.facts[Lines] = [
        *("== a.service", "ActiveState=active", "NeedDaemonReload=no", "UnitFileState=enabled"),
        *("Current=aa bb", f"Started={started}"),
    ]
    ran = tmp_path / "ran"
    (tmp_path / "systemctl").write_text(f'#!/bin/sh\necho "$*" >>{ran}\n')
    (tmp_path / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for code in (0, 1):
        ran.write_text("")
        check = f"sh -c 'echo fine; echo bad key >&2; exit {code}'"
        found = commands_of(serving.running, names=["a.service"], reload="sh -c 'exit 3'", check=check)
        done = [perform(command) for command in found][-1]
        assert done.returncode == code
        assert ("restart -- a.service" in ran.read_text()) is (code == 0)
    assert done.stderr.startswith("bad key\nnot restarted: ")


def test_a_unit_whose_files_can_be_read_again_is_asked_to(scripted, tmp_path, monkeypatch):
    """It is restarted only where that takes a restart; where it refuses, the deploy fails with its words."""
    scripted.facts[Lines] = [
        *("== a.service", "ActiveState=active", "NeedDaemonReload=no", "UnitFileState=enabled"),
        *("Current=aa bb", "Started=aa cc"),
    ]
    ran = tmp_path / "ran"
    for name in ("fingerprint", "systemctl"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "${{0##*/}} $*" >>{ran}\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(serving, "FINGERPRINT", f"{tmp_path}/fingerprint")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    outcomes = {}
    for code in (0, 1, 2, 3):
        ran.write_text("")
        reload = f"sh -c 'echo told >&2; exit {code}'"
        done = [perform(c) for c in commands_of(serving.running, names=["a.service"], reload=reload)]
        assert done[-1].stderr == "told\n"
        outcomes[code] = (done[-1].returncode, ran.read_text().splitlines()[1:])
    assert outcomes == {
        0: (0, ["fingerprint --reloaded a.service"]),
        1: (1, []),
        2: (1, []),
        3: (0, ["systemctl restart -- a.service"]),
    }


@pytest.mark.parametrize("started", ["dd bb", "dd cc", "dd", ""])
def test_a_unit_of_another_kind_is_restarted_whatever_its_files_are(scripted, started):
    """Also one that was started before there were files to be read again."""
    scripted.facts[Lines] = [
        *("== a.service", "ActiveState=active", "NeedDaemonReload=no", "UnitFileState=enabled"),
        *("Current=aa bb", f"Started={started}"),
    ]
    found = [text_of(c) for c in commands_of(serving.running, names=["a.service"], reload="read again")]

    assert len(found) == 2
    assert "restart" in found[1]
    assert "read again" not in found[1]


def test_units_that_are_down_start_together_and_only_once(scripted):
    """At the first installation there is one start, and no restart after it."""
    scripted.facts[Lines] = states(a=("inactive", False), b=("failed", False))

    found = [text_of(c) for c in commands_of(serving.running, names=["a.service", "b.service"])]

    assert sum("restart --" in line for line in found) == 1
    assert "a.service b.service" in found[-1]


def test_links_are_flipped_in_one_step(scripted, tmp_path):
    """The link always points somewhere; the same target is no change."""
    scripted.live = True
    link = tmp_path / "current"
    for target in ("1.0", "1.0", "2.0"):
        commands = commands_of(serving.link, path=str(link), target=target)
        for command in commands:
            assert perform(command).returncode == 0
        assert str(link.readlink()) == target
    assert commands_of(serving.link, path=str(link), target="2.0") == []


def test_the_release_in_use_and_the_newest_others_stay(scripted, tmp_path):
    """Older ones go; the one wanted next and the one in use never do."""
    scripted.live = True
    for age, name in enumerate(("4.0", "3.0", "2.0", "1.0")):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    (tmp_path / "current").symlink_to("1.0")

    for command in commands_of(serving.prune, folder=str(tmp_path), wanted="4.0", keep=1):
        assert perform(command).returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"4.0", "3.0", "1.0", "current"}
    assert commands_of(serving.prune, folder=str(tmp_path), wanted="4.0", keep=1) == []


@pytest.fixture
def archive(tmp_path):
    """Make a release's archive with a program that says its version."""
    tree = tmp_path / "tree" / "bin"
    tree.mkdir(parents=True)
    (tree / "ollama").write_text("#!/bin/sh\necho ollama\n")
    (tree / "ollama").chmod(0o755)
    file = tmp_path / "ollama.tar.zst"
    subprocess.run(f"tar -C {tree.parent} -c . | zstd -q -o {file}", shell=True, check=True)
    return file


def test_a_release_is_unpacked_beside_the_others(archive, tmp_path):
    """It appears whole, with its mark; the archive is gone, and nothing half-made is left."""
    releases = tmp_path / "releases"
    (releases / "1.0").mkdir(parents=True)
    (releases / "1.0" / "stale").touch()

    done = subprocess.run(
        ["sh", "-c", release_of.UNPACK, archive, releases, "1.0", "abc"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in releases.iterdir()) == ["1.0"]
    assert (releases / "1.0" / release_of.MARK).read_text() == "abc\n"
    assert (releases / "1.0" / "bin" / "ollama").is_file()
    assert not (releases / "1.0" / "stale").exists()
    assert not archive.exists()


def test_a_damaged_archive_leaves_the_release_as_it_was(archive, tmp_path):
    """What was unpacked before stays, and nothing half-made is left."""
    releases = tmp_path / "releases"
    (releases / "1.0").mkdir(parents=True)
    archive.write_bytes(archive.read_bytes()[:60])

    done = subprocess.run(
        ["sh", "-c", release_of.UNPACK, archive, releases, "1.0", "abc"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode != 0
    assert [path.name for path in releases.iterdir()] == ["1.0"]


def test_a_release_that_is_there_is_not_fetched(scripted):
    """The mark with the same digest is enough; another digest fetches again."""
    scripted.facts[Lines] = ["abc"]
    words = {"version": "1.0", "url": "http://x", "fetch": "host", "login": release_of.Login()}

    assert commands_of(release_of.release, sha256="abc", **words) == []


def test_the_controller_refuses_an_archive_with_another_digest(scripted, tmp_path, monkeypatch):
    """Nothing is uploaded, nothing kept; the message names both digests."""
    monkeypatch.setattr(release_of, "DOWNLOADS", tmp_path / "downloads")
    scripted.facts[Lines] = []
    (tmp_path / "archive").write_bytes(b"evil")

    *_, last = commands_of(
        release_of.release, version="1.0", url=(tmp_path / "archive").as_uri(), sha256="0" * 64,
        fetch="controller", login=release_of.Login("u", "canary"),
    )  # fmt: skip

    message = refusal_of(last)
    assert hashlib.sha256(b"evil").hexdigest() in message
    assert "nothing was put in place" in message
    assert "canary" not in repr(release_of.Login("u", "canary"))
    assert list((tmp_path / "downloads").iterdir()) == []


def test_models_come_from_the_mirror_unless_they_name_a_host():
    """Names without a host take the registry's; plain http follows from the mirror's address."""
    values = {
        **load_defaults(),
        "mirror_url": "http://m:8088",
        "models_list": [
            {"name": "a:1b"},
            {"name": "b", "from": "org/b"},
            {"name": "c", "from": "hf.co/org/c:Q4"},
            {"name": "d", "registry": "r:5000"},
        ],
    }

    found = {model["name"]: (model["source"], model["insecure"]) for model in all_filled(values)}

    assert found == {
        "a:1b": ("m:8088/library/a:1b", True),
        "b": ("m:8088/org/b", True),
        "c": ("hf.co/org/c:Q4", False),
        "d": ("r:5000/library/d", False),
    }
    assert all_filled({**values, "mirror_url": ""})[0]["source"] == "a:1b"
    assert file_name("acme/x:1") == "acme--x:1.Modelfile"


LOCK = """\
# comment
exceptiongroup==1.3 ; python_full_version < '3.11' \\
    --hash=sha256:aa
uvloop==0.23 \\
    --hash=sha256:bb \\
    --hash=sha256:cc
"""


@pytest.mark.parametrize(("python", "names"), [("3.10", ["exceptiongroup", "uvloop"]), ("3.12", ["uvloop"])])
def test_markers_are_judged_for_the_host(python, names):
    """The controller's own Python has no say; every hash stays."""
    lines = wheelhouse.locked(LOCK, wheelhouse.Target(python, "amd64")).splitlines()

    assert [line.partition("==")[0] for line in lines] == names
    assert lines[-1] == "uvloop==0.23 --hash=sha256:bb --hash=sha256:cc"


def test_a_bundle_is_named_by_all_that_goes_into_it(monkeypatch):
    """Another Python, architecture or source is another release; the same is the same."""
    names = {
        wheelhouse.release_name(wheelhouse.Target(*target))
        for target in (("3.11", "amd64"), ("3.12", "amd64"), ("3.11", "arm64"), ("3.11", "amd64"))
    }
    assert len(names) == 3
    monkeypatch.setattr(wheelhouse, "sources", lambda: "other")
    assert wheelhouse.release_name(wheelhouse.Target("3.11", "amd64")) not in names


def test_a_bundle_holds_the_wheel_and_what_it_needs(tmp_path, monkeypatch):
    """Every requirement has a hash, the proxy's own wheel too."""
    calls = []

    def pip(*arguments):
        calls.append(arguments[0])
        folder = arguments[arguments.index("-w" if arguments[0] == "wheel" else "-d") + 1]
        name = "drover_proxy-1-py3-none-any.whl" if arguments[0] == "wheel" else "uvloop-0.23-any.whl"
        Path(folder).mkdir(exist_ok=True)
        (Path(folder) / name).write_text(name)

    monkeypatch.setattr(wheelhouse, "CACHE", tmp_path)
    monkeypatch.setattr(wheelhouse, "_pip", pip)
    target = wheelhouse.Target("3.11", "amd64")

    file = wheelhouse.bundle(target)

    with tarfile.open(file) as archive:
        assert {"requirements.txt", "drover_proxy-1-py3-none-any.whl", "uvloop-0.23-any.whl"} == set(
            archive.getnames()
        )
        member = archive.extractfile("requirements.txt")
        assert member is not None
        lines = member.read().decode().splitlines()
    assert all("--hash=sha256:" in line for line in lines)
    assert lines[-1].startswith(f"drover-proxy=={wheelhouse.version()} --hash=sha256:")
    assert wheelhouse.bundle(target) == file
    assert calls == ["download", "wheel"], "made once"
