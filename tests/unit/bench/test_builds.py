"""Which build of the proxy the benchmark calls drover."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from bench import builds
from bench.processes import BenchError
from deploys.lib import compiled
from drover.errors import DroverError

PROJECT = Path(__file__).resolve().parents[3]
SOURCES = PROJECT / "proxy" / "src"
PYTHON = Path(sys.executable)


@pytest.fixture(autouse=True)
def _able(monkeypatch):
    """A machine that can compile, whatever this one can."""
    monkeypatch.delenv(compiled.VARIABLE, raising=False)
    monkeypatch.setattr(compiled, "lacking", lambda *_: "")


def program(folder, said):
    """Lay something that answers as the proxy's command does; returns the wheel that holds it."""
    (folder / "compiled-1").mkdir()
    wheel = folder / "compiled-1" / "drover_proxy-1.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("drover_proxy/__init__.py", "")
        archive.writestr("drover_proxy/__main__.py", f"print({said!r})")
    return wheel


def test_drover_is_the_compiled_proxy(monkeypatch, tmp_path):
    """The wheel that the deploys make is unpacked, once, and what is in it says what it is."""
    made, into = tmp_path / "made", tmp_path / "into"
    made.mkdir()
    (into / "compiled-0").mkdir(parents=True)
    wheel = program(made, "drover-proxy 0.1.0 (compiled)")
    monkeypatch.setattr(compiled, "wheel", lambda: wheel)

    build = builds.deployed(PYTHON, SOURCES, into)

    assert build == builds.Build(into / "compiled-1", "compiled")
    assert builds.deployed(PYTHON, SOURCES, into) == build
    assert [path.name for path in into.iterdir()] == ["compiled-1"], "what was made of older sources is gone"


def test_drover_is_the_interpreted_proxy_where_nothing_can_be_compiled(monkeypatch, tmp_path):
    """The reason is the one that the deploys would give."""
    monkeypatch.setattr(compiled, "lacking", lambda *_: "the controller has no C compiler (cc)")

    build = builds.deployed(PYTHON, SOURCES, tmp_path)

    assert build == builds.Build(SOURCES, "interpreted", "the controller has no C compiler (cc)")


def test_drover_is_the_interpreted_proxy_where_compiling_fails(monkeypatch, tmp_path):
    """The run goes on, and says why."""

    def fail():
        raise DroverError("the proxy couldn't be compiled on the controller: no space left")

    monkeypatch.setattr(compiled, "wheel", fail)

    build = builds.deployed(PYTHON, SOURCES, tmp_path)

    assert build.kind == "interpreted"
    assert "no space left" in build.why


def test_drover_is_asked_what_it_is(monkeypatch, tmp_path):
    """A wheel without machine code in it isn't called compiled."""
    made = tmp_path / "made"
    made.mkdir()
    monkeypatch.setattr(compiled, "wheel", lambda: program(made, "drover-proxy 0.1.0 (interpreted)"))

    assert builds.deployed(PYTHON, SOURCES, tmp_path).kind == "interpreted"

    (tmp_path / "drover_proxy.py").write_text("print('drover-proxy 0.1.0')")
    with pytest.raises(BenchError, match="doesn't say which build"):
        builds.told(PYTHON, tmp_path)
