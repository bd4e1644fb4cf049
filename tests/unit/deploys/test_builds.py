"""Which build of the proxy a host gets, and what is said about it. test_layers.py has whole runs of it."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from deploys.lib import builds, compiled, wheelhouse
from deploys.lib.compiled import Obstacle
from deploys.lib.facts import Lines
from deploys.lib.stage import RefusedError
from drover.errors import DroverError

OWN = "{}.{}".format(*sys.version_info)
PURE = wheelhouse.Target(OWN, "amd64")
RELEASES = "/opt/drover/proxy"
COMPILED = f"{RELEASES}/{wheelhouse.release_name(wheelhouse.Target(OWN, 'amd64', compiled=True))}"


@pytest.fixture
def told(monkeypatch, scripted):
    """Return the lines of a run with one host that is like this machine, where nothing lacks."""
    scripted.facts[Lines] = ["glibc 99.0"]
    lines = []
    monkeypatch.setattr(builds, "ROLL", builds.Roll())
    monkeypatch.setattr(builds, "logger", SimpleNamespace(info=lines.append))
    inventory = SimpleNamespace(get_active_hosts=lambda: [scripted])
    monkeypatch.setattr(builds, "state", SimpleNamespace(inventory=inventory))
    monkeypatch.setattr(compiled, "_differences", lambda *_host: iter(()))  # wherever the test runs
    monkeypatch.setattr(compiled, "_tools_missing", lambda: iter(()))
    return lines


@pytest.fixture
def made(monkeypatch):
    """Return how often the wheel was asked for."""
    calls = []
    monkeypatch.setattr(compiled, "wheel", calls.append)
    return calls


@pytest.fixture
def broken(monkeypatch):
    """A compiler that is there, and fails."""

    def fail(_say):
        monkeypatch.setattr(compiled, "_tools_missing", lambda: iter([Obstacle("it failed", "rm the.log")]))
        raise DroverError("it failed")

    monkeypatch.setattr(compiled, "wheel", fail)


def choose(wish):
    """Return what the host at hand gets."""
    return builds.chosen(SimpleNamespace(vars={"proxy_compiled": wish}, refuse=refuse), PURE, RELEASES)


def refuse(message):
    """Stand in for what drops a host from pyinfra's run."""
    raise RefusedError(message)


@pytest.mark.parametrize(
    ("wish", "build"), [("auto", "compiled"), (True, "compiled"), (False, "interpreted")]
)
def test_a_host_like_this_machine_gets_what_is_asked_for(told, made, wish, build):
    """It is made in preflight, unless nobody asks for it; nothing needs to be said."""
    assert choose(wish).build == build
    assert len(made) == (build == "compiled")
    assert told == []


def test_a_dry_run_makes_nothing(told, made, monkeypatch):
    """The release's name, and so the plan, doesn't depend on it."""
    monkeypatch.setattr(sys, "argv", ["pyinfra", "--dry", "inventory.py", "deploys/site.py"])

    assert choose("auto").compiled
    assert made == []


def test_a_compiler_that_fails_breaks_no_host(told, broken):
    """By default the pure wheel goes out, and the line says why; who insists is refused in preflight."""
    assert choose("auto") == PURE
    assert told == ["The proxy isn't compiled for scripted (it failed. Next: rm the.log)"]

    with pytest.raises(
        RefusedError, match=r"proxy_compiled is true, but it failed\. Next: rm the\.log, or set"
    ):
        choose(wish=True)


@pytest.mark.parametrize("wish", ["auto", True])
def test_what_lies_on_the_host_neednt_be_made(told, made, scripted, monkeypatch, wish):
    """Two who deploy by turns, of whom one can't compile, change nothing."""
    monkeypatch.setattr(compiled, "_tools_missing", lambda: iter([Obstacle("no compiler", "install one")]))
    assert choose("auto") == PURE

    mark = f"{COMPILED}/.complete"
    scripted.facts[Lines] = lambda script: ["glibc 99.0", mark] if f" {mark} " in script else []
    assert choose(wish).compiled
    assert made == []


def test_what_didnt_start_on_the_host_isnt_sent_there_again(told, made, scripted):
    """The next run gives it the pure wheel; the file that says why is named."""
    scripted.facts[Lines] = ["glibc 99.0", f"{COMPILED}.failed"]

    assert choose("auto") == PURE
    assert made == []
    why = f"it didn't start there, as {COMPILED}.failed tells. Next: rm {COMPILED}.failed there, to try again"
    assert told == [f"The proxy isn't compiled for scripted ({why})"]


def test_the_line_waits_for_every_host_and_names_a_few():
    """It comes once, when the last host has been asked; who gets what is asked for isn't in it."""
    roll = builds.Roll()
    names = [f"gpu-{number:02}" for number in range(9)]
    other = Obstacle("another Python", "deploy from elsewhere")
    for name in names[:-1]:
        roll.note(name, [other] if name < "gpu-07" else [], names)
        assert not roll.is_told
    roll.note(names[-1], [Obstacle("old glibc", "wait"), Obstacle("old too", "wait")], names)

    assert roll.is_told
    assert roll.line() == (
        "The proxy isn't compiled for gpu-00, gpu-01, gpu-02, gpu-03, gpu-04 and 2 more (another Python. "
        "Next: deploy from elsewhere); nor for gpu-08 (old glibc; old too. Next: wait)"
    )
    assert builds.Roll().line() == ""
