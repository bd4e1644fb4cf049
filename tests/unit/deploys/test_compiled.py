"""The compiled wheel: who can make it for whom, and that it is made once. tests/compiled really makes it."""

from __future__ import annotations

import fcntl
import platform
import sys
import sysconfig
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deploys.lib import compiled, wheelhouse
from drover.errors import DroverError
from tests.support import eventually

OWN = "{}.{}".format(*sys.version_info)
HERE = platform.machine()


def test_nothing_lacks_for_a_host_like_this_machine():
    """The same Python and architecture, and a newer C library; the project's environment has the tools."""
    assert compiled.lacking(OWN, HERE, "99.0") == ""
    assert compiled.lacking(OWN, HERE) == ""


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        (("3.10", HERE, "99.0"), f"the host's Python is 3.10, and the controller's is {OWN}"),
        ((OWN, "riscv64", "99.0"), f"the host is riscv64, and the controller {HERE}"),
        ((OWN, HERE, "2.4"), "the host's glibc is 2.4, older than the controller's"),
        ((OWN, HERE, ""), "the host's glibc isn't known"),
    ],
)
def test_another_kind_of_host_is_named(host, reason):
    """What differs is said with both sides; 2.4 is older than 2.36."""
    assert compiled.lacking(*host).startswith(reason)


def test_all_that_is_missing_on_the_controller_is_named(monkeypatch, tmp_path):
    """One run tells of the compiler, the header and the tools, so that one command can install them."""
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)

    reason = compiled.lacking(OWN, HERE)

    assert "no C compiler (no-such-compiler)" in reason
    assert f"lacks {tmp_path}/Python.h" in reason
    assert "lacks mypyc and setuptools" in reason
    own = f"apt-get install python{OWN}-dev"
    assert [one.remedy for one in compiled.obstacles(OWN, HERE)] == ["apt-get install gcc", own, "make venv"]


@pytest.fixture
def built(monkeypatch, tmp_path):
    """Return the folders that a build was asked for; each gets a wheel."""
    folders = []

    def build(folder):
        folders.append(folder)
        folder.mkdir()
        (folder / "drover_proxy-1-cp311-cp311-linux_x86_64.whl").write_text("wheel")

    monkeypatch.setattr(compiled, "CACHE", tmp_path)
    monkeypatch.setattr(wheelhouse, "CACHE", tmp_path)
    monkeypatch.setattr(compiled, "_build", build)
    return folders


def test_a_wheel_is_made_once_for_the_same_sources(built, monkeypatch, tmp_path):
    """The cache goes by the sources; of what was made from older ones, two are kept."""
    first = compiled.wheel()
    assert first.read_text() == "wheel"
    assert compiled.wheel() == first
    assert len(built) == 1

    for digest in "abcd":
        monkeypatch.setattr(compiled, "sources", lambda digest=digest: digest)
        compiled.wheel()
    assert len(built) == 5
    assert len(list(tmp_path.glob("compiled-*"))) == 3


def test_hosts_of_a_run_share_the_minute_and_hear_of_it_once(built, monkeypatch):
    """Those that ask while it is made wait for it; a line says that it goes on, and one that it has ended."""
    build, said = compiled._build, []
    begun, may_end = threading.Event(), threading.Event()

    def slow(folder):
        begun.set()
        assert may_end.wait(20)
        build(folder)

    monkeypatch.setattr(compiled, "_build", slow)
    with ThreadPoolExecutor(3) as hosts:
        asked = [hosts.submit(compiled.wheel, said.append) for _ in range(3)]
        assert begun.wait(20)
        may_end.set()
        wheels = {one.result() for one in asked}

    assert len(wheels) == len(built) == 1
    assert said[0] == "compiling the proxy: a minute or two, once for these sources"
    assert said[1].startswith("compiled the proxy in ")
    assert len(said) == 2


def test_another_run_that_compiles_is_waited_for(built, tmp_path):
    """Its lock is a file's, so that it holds between processes; the one that waits says so, once."""
    said = []
    with (tmp_path / ".compiling").open("w") as lock, ThreadPoolExecutor(1) as hosts:
        fcntl.flock(lock, fcntl.LOCK_EX)
        asked = hosts.submit(compiled.wheel, said.append)
        eventually(lambda: said)
        assert said == ["waiting for another run on this machine, which compiles the proxy"]
        assert not built
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert asked.result(20).is_file()
    assert len(built) == 1


def test_a_failed_build_says_why_and_isnt_tried_again_by_itself(monkeypatch, tmp_path):
    """The compiler's words are kept; while they are, this machine lacks what it takes, and says so."""
    monkeypatch.setattr(compiled, "CACHE", tmp_path)
    monkeypatch.setattr(compiled, "PROXY", tmp_path / "nowhere")
    monkeypatch.setattr(compiled, "sources", lambda: "x")
    said = []

    with pytest.raises(DroverError, match=r"couldn't be compiled on the controller: [^\0]*nowhere[^\0]*Next"):
        compiled.wheel(said.append)
    (log,) = tmp_path.glob("failed-*.log")
    assert "nowhere" in log.read_text()
    assert {path.name for path in tmp_path.iterdir()} == {log.name, ".compiling"}
    (obstacle,) = compiled.obstacles(OWN, HERE)
    assert str(log) in obstacle.reason
    assert obstacle.remedy == f"rm {log}, to try again"

    with pytest.raises(DroverError, match=r"as .*failed-.*\.log tells"):
        compiled.wheel(said.append)
    assert said == ["compiling the proxy: a minute or two, once for these sources"]

    log.unlink()
    assert compiled.obstacles(OWN, HERE) == []


def test_a_bundle_takes_the_compiled_wheel(built, monkeypatch):
    """It is another release than the pure one, and holds the other wheel."""

    def pip(*arguments):
        folder = Path(arguments[arguments.index("-d") + 1])
        folder.mkdir()
        (folder / "uvloop-0.23-any.whl").write_text("wheel")

    monkeypatch.setattr(wheelhouse, "_pip", pip)
    pure, other = wheelhouse.Target("3.11", "amd64"), wheelhouse.Target("3.11", "amd64", compiled=True)
    assert wheelhouse.release_name(pure) != wheelhouse.release_name(other)

    with tarfile.open(wheelhouse.bundle(other)) as archive:
        assert "drover_proxy-1-cp311-cp311-linux_x86_64.whl" in archive.getnames()
    assert len(built) == 1
