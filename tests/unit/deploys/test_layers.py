"""The layers ollama, models, proxy and monitoring through pyinfra's own command, on fake hosts."""

from __future__ import annotations

import json

import pytest

from deploys.lib.stage import STAGES
from tests.unit.deploys.test_run import run  # noqa: F401 - a fixture

LAYERS = ("ollama", "models", "proxy", "monitoring")
DEPLOYS = tuple(f"deploys/{layer}.py" for layer in LAYERS)
KEYS = [{"name": "demo", "sha256": "a" * 64}]
MODELS = [{"name": "llama3.2:3b", "warm": True}]
HOST = {"@fake/l4": "0x27b8"}


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


def test_a_wish_for_machine_code_that_cannot_be_met_is_refused(run, monkeypatch):  # noqa: F811
    """The pure wheel isn't taken instead, in silence; nothing is touched."""
    monkeypatch.setenv("CC", "no-such-compiler")

    done = run(HOST, "--dry", "--json", deploys=("deploys/proxy.py",), proxy_keys=KEYS, proxy_compiled=True)

    assert done.returncode != 0
    assert "proxy_compiled is set, but" in done.stderr
    assert "no C compiler (no-such-compiler)" in done.stderr


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
