"""The compiled wheel: who can make it for whom, and that it is made once. tests/compiled really makes it."""

from __future__ import annotations

import platform
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

from deploys.lib import compiled, wheelhouse
from drover.errors import DroverError

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
    assert "lacks mypyc and setuptools; make venv" in reason


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


def test_a_failed_build_leaves_nothing_and_says_why(monkeypatch, tmp_path):
    """The compiler's last words are shown, and the next run builds again."""
    monkeypatch.setattr(compiled, "CACHE", tmp_path)
    monkeypatch.setattr(compiled, "PROXY", tmp_path / "nowhere")
    monkeypatch.setattr(compiled, "sources", lambda: "x")

    with pytest.raises(DroverError, match=r"couldn't be compiled on the controller: .*nowhere[^\0]*Next: "):
        compiled.wheel()
    assert list(tmp_path.iterdir()) == []


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
