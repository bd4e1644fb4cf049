"""The layers ollama, models, proxy and monitoring through pyinfra's own command, on fake hosts."""

from __future__ import annotations

import json
import sys

import pytest

from deploys.lib import compiled
from deploys.lib.stage import STAGES
from tests.unit.deploys.test_run import run  # noqa: F401 - a fixture

LAYERS = ("ollama", "models", "proxy", "monitoring")
DEPLOYS = tuple(f"deploys/{layer}.py" for layer in LAYERS)
KEYS = [{"name": "demo", "sha256": "a" * 64}]
MODELS = [{"name": "llama3.2:3b", "warm": True}]
HOST = {"@fake/l4": "0x27b8"}


@pytest.fixture
def tools():
    """Nothing keeps this machine from compiling for hosts like itself; elsewhere a test can't tell."""
    if reason := compiled.lacking("{}.{}".format(*sys.version_info), compiled.platform.machine()):
        pytest.skip(reason)


def plan_of(done):
    """Return the names of the planned operations, each as layer, stage and sentence."""
    assert done.returncode == 0, done.stderr
    return [step["name"].split(" | ") for step in json.loads(done.stdout)["plan"]]


def test_the_plan_of_a_bare_host_is_whole(run):  # noqa: F811 - the fixture
    """Every layer, its stages in order, on a host without a driver or Python."""
    names = plan_of(run(HOST, "--dry", "--json", deploys=DEPLOYS, proxy_keys=KEYS, models_list=MODELS))

    assert list(dict.fromkeys(name for name, _, _ in names)) == list(LAYERS)
    for layer in LAYERS:
        order = [STAGES.index(stage) for name, stage, _ in names if name == layer]
        assert order == sorted(order)
        assert {"verify", "record"} <= {stage for name, stage, _ in names if name == layer}
    said = {what for _, _, what in names}
    assert "Have release 0.33.0, checked" in said


def test_layers_that_are_switched_off_plan_nothing(run):  # noqa: F811 - the fixture
    """Without the proxy there are no metrics to read either; without a list there are no models."""
    names = plan_of(run(HOST, "--dry", "--json", deploys=DEPLOYS, proxy_enabled=False))

    assert {name for name, _, _ in names} == {"ollama"}


@pytest.mark.parametrize(
    ("deploy", "variables", "reason"),
    [
        ("proxy", {}, "proxy_keys is empty"),
        ("ollama", {"ollama_version": "9.9.9"}, "ollama_archive_sha256"),
    ],
)
def test_a_host_that_cannot_be_served_well_is_refused(run, deploy, variables, reason):  # noqa: F811
    """A door without keys, a release of which nobody knows the digest: refused before anything is touched."""
    done = run(HOST, "--dry", "--json", deploys=(f"deploys/{deploy}.py",), **variables)

    assert done.returncode != 0
    assert reason in done.stderr


def like_here(**other):
    """Return what a fake host says of itself when asked for what its machine code would have to fit."""
    python = other.get("python", "{}.{}".format(*sys.version_info))
    return {"import sys": python, "GNU_LIBC_VERSION": f"glibc {other.get('libc', '99.0')}"}


def proxies(run, answers, *arguments, **variables):  # noqa: F811
    """Run the proxy's layer on fake hosts that answer so; return the run, and its lines about the build."""
    done = run(
        dict.fromkeys(answers, "0x27b8"), *(arguments or ("--dry", "--json")), deploys=("deploys/proxy.py",),
        answers=answers, proxy_keys=KEYS, **variables,
    )  # fmt: skip
    return done, [line.strip() for line in done.stderr.splitlines() if "compil" in line]


def test_a_wish_for_machine_code_that_cannot_be_met_is_refused(run, tools, monkeypatch):  # noqa: F811
    """The pure wheel isn't taken instead, in silence; nothing is touched."""
    monkeypatch.setenv("CC", "no-such-compiler")

    done, said = proxies(run, {"@fake/l4": like_here()}, proxy_compiled=True)

    assert done.returncode != 0
    assert len(said) == 1
    assert "proxy_compiled is true, but the controller has no C compiler (no-such-compiler)" in said[0]
    assert "Next: apt-get install gcc, or set proxy_compiled: auto" in said[0]


def test_a_mixed_fleet_is_told_once_who_gets_the_pure_wheel(run, tools):  # noqa: F811
    """By default, hosts like this machine go unnamed; the others are named with the reason and what to do."""
    done, said = proxies(
        run,
        {
            "@fake/like-1": like_here(),
            "@fake/like-2": like_here(),
            "@fake/new-1": like_here(python="3.99"),
            "@fake/new-2": like_here(python="3.99"),
            "@fake/old": like_here(libc="2.4"),
        },
    )

    assert done.returncode == 0, done.stderr
    assert len(said) == 1
    assert said[0].startswith(
        "The proxy isn't compiled for @fake/new-1, @fake/new-2 (the host's Python is 3.99, and"
    )
    assert "; nor for @fake/old (the host's glibc is 2.4, older than the controller's" in said[0]
    assert said[0].count("Next: deploy from a machine like it") == 2
    assert "like-1" not in said[0]


def test_the_pure_wheel_is_told_where_some_hosts_are_refused(run, tools, monkeypatch):  # noqa: F811
    """The line doesn't wait for hosts that never come so far."""
    monkeypatch.setenv("CC", "no-such-compiler")

    done, said = proxies(run, {"@fake/l4": like_here(), "@fake/ancient": like_here(python="3.4")})

    assert "the proxy needs 3.10" in done.stderr
    assert len(said) == 1
    assert said[0].startswith("The proxy isn't compiled for @fake/l4 (the controller has no C compiler")


def test_whoever_asks_for_the_pure_wheel_hears_nothing_of_it(run, monkeypatch):  # noqa: F811
    """A false is what an operator has decided, whatever the controller has."""
    monkeypatch.setenv("CC", "no-such-compiler")

    done, said = proxies(run, {"@fake/l4": like_here()}, proxy_compiled=False)

    assert done.returncode == 0, done.stderr
    assert said == []


def test_an_open_door_must_be_meant(run):  # noqa: F811 - the fixture
    """With proxy_open the keys aren't needed, and none are laid."""
    names = plan_of(run(HOST, "--dry", "--json", deploys=("deploys/proxy.py",), proxy_open=True))

    assert "Place the keys" not in {what for _, _, what in names}


def test_no_secret_is_shown_by_a_verbose_run(run):  # noqa: F811 - the fixture
    """The mirror's password travels on standard input only."""
    done = run(HOST, "--yes", "-vvv", "--debug", deploys=("deploys/ollama.py",))

    assert "Have release 0.33.0, checked" in done.stderr
    assert "canary" not in done.stdout + done.stderr


def test_no_secret_is_shown_by_a_plan(run):  # noqa: F811 - the fixture
    """Neither the certificate's key nor a hash of a key."""
    done = run(
        HOST, "--dry", "-vvv", "--debug", deploys=("deploys/proxy.py",),
        proxy_keys=KEYS, proxy_tls_cert="cert", proxy_tls_key="canary-key",
    )  # fmt: skip

    assert "Place the certificate's key" in done.stderr + done.stdout
    assert "canary" not in done.stdout + done.stderr
    assert "a" * 64 not in done.stdout + done.stderr
