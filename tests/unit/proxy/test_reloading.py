"""Every key of the configuration at a reload: it counts where it is used, or is said to need a restart."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from drover_proxy.app.instance import Instance
from drover_proxy.app.service import Service
from drover_proxy.cli import main
from drover_proxy.config import ConfigError, parse
from drover_proxy.config.changes import changes
from drover_proxy.guard.keys import hash_of

from tests.proxy.every_key import MODEL, NOT_BUILT, OTHERS, base, leaves, with_other

RESTART = {
    "listen",
    "admin_listen",
    *(leaf for leaf in OTHERS if leaf.startswith(("instances[].", "gpus[]."))),
}


def core(section: str, name: str) -> Callable[[Service], Any]:
    """Look where the scheduler does."""
    return lambda service: getattr(getattr(service._parts.runtime.core.state.config, section), name)


def profile(name: str) -> Callable[[Service], Any]:
    """Look at the model's profile, as the scheduler does."""
    return lambda service: getattr(service._parts.runtime.core.state.config.profiles[MODEL], name)


def limit(name: str) -> Callable[[Service], Any]:
    """Look at what new connections get."""
    return lambda service: getattr(service._public.limits, name)


def shown(name: str) -> Callable[[Service], Any]:
    """Look at the file that the context in force was made from."""
    return lambda service: (
        getattr(service._reloader._tls.config, name),
        id(service._public.tls),
    )


USED: dict[str, Callable[[Service], Any]] = {
    **{f"tls.{name}": shown(name) for name in ("cert", "key", "client_ca")},
    "auth.keys_file": lambda service: service._reloader._keys.name,
    "auth.signature_seconds": lambda service: service._parts.door.signatures.window_seconds,
    **{f"models.*.{name}": profile(name) for name in ("context", "slots", "pin", "priority")},
    "models.*.aliases": lambda service: list(service._parts.catalogue._aliases),
    **{leaf: core(*leaf.split(".")) for leaf in OTHERS if leaf.startswith(("queue.", "loads."))},
    "loads.memory_timeout_seconds": lambda service: service._parts.runtime.core.state.ledger.timeout_seconds,
    **{f"limits.{name}": limit(name) for name in ("header_bytes", "header_count", "body_bytes")},
    **{
        f"limits.{name}_seconds": limit(f"{name}_timeout")
        for name in ("head", "body", "idle", "connect", "stall")
    },
    "limits.first_byte_seconds": limit("first_byte_timeout"),
    "limits.max_connections": limit("max_connections"),
    "limits.max_connections_per_client": limit("max_connections_per_client"),
    "forwarding.x_forwarded": lambda service: service._public.forwarding.mode.value,
    "forwarding.via": lambda service: service._public.via_line,
    "forwarding.trusted_proxies": lambda service: service._public.forwarding.trusts("10.1.2.3"),
    "log.level": lambda service: service._log.level,
    "log.access": lambda service: service._parts.config.log.access,
    "log.sample": lambda service: service._parts.config.log.sample,
    "drain_seconds": lambda service: service._parts.config.drain_seconds,
}
"""Where each key that takes a reload is looked up when it counts."""


@pytest.fixture
def config(tmp_path):
    """A configuration in which every section stands."""
    keys = tmp_path / "keys.yaml"
    keys.write_text(yaml.safe_dump({"keys": [{"name": "a", "sha256": hash_of("a")}]}))
    return base(tmp_path, keys)


@pytest.fixture
async def service(config, tmp_path):
    """A proxy that has begun to schedule, and listens nowhere."""
    (tmp_path / "proxy.yaml").write_text(yaml.safe_dump(config))
    made = Service(tmp_path / "proxy.yaml")
    made._log._stream = io.StringIO()
    made._reloader.begin()
    parts = made._parts
    for item in parts.config.instances:
        instance = Instance(item, parts.runtime, parts.catalogue, parts.memory.processes)
        parts.instances[item.name] = parts.runtime.loaders[item.name] = instance
    await made._schedule()
    yield made
    await made._stop()


def said(service, event, field):
    """Return what the log's lines of an event say."""
    lines = [json.loads(line) for line in service._log._stream.getvalue().splitlines()]
    return [line[field] for line in lines if line["event"] == event]


def test_every_key_is_in_the_tables():
    """A key that is new in the schema must be tried here, and shown to count or to need a restart."""
    assert set(OTHERS) | set(NOT_BUILT) == set(leaves())
    assert set(USED) == set(OTHERS) - RESTART


@pytest.mark.parametrize("leaf", [leaf for leaf in leaves() if leaf in USED])
async def test_a_reload_puts_it_in_force(service, config, tmp_path, leaf):
    """Where it is used it has changed, the log names it, and a reload without a change names none."""
    before = USED[leaf](service)
    other, key = with_other(config, leaf)
    (tmp_path / "proxy.yaml").write_text(yaml.safe_dump(other))
    service._reload()
    after = USED[leaf](service)
    assert after != before
    value = after[0] if isinstance(after, tuple) else after
    expected = OTHERS[leaf]
    assert value in {
        "forwarding.via": [b"via: 1.1 here\r\n"],
        "forwarding.trusted_proxies": [True],
        "models.*.aliases": [["another:latest"]],
    }.get(leaf, [f"{before[0]}.copy", f"{before}.copy"] if expected == "copy" else [expected])
    service._reload()
    assert said(service, "reloaded", "changed") == [[key], []]


@pytest.mark.parametrize("leaf", sorted(RESTART))
async def test_a_reload_says_that_it_takes_a_restart(service, config, tmp_path, leaf):
    """The log names it each time, and the configuration in force is as it was; the rest is applied."""
    before = service._parts.config
    other, key = with_other(config, leaf)
    other["drain_seconds"] = 1
    (tmp_path / "proxy.yaml").write_text(yaml.safe_dump(other))
    for _ in range(2):
        service._reload()
    assert said(service, "reload_needs_restart", "key").count(key) == 2
    assert said(service, "reloaded", "changed") == [["drain_seconds"], []]
    assert service._parts.config.drain_seconds == 1
    for section in ("listen", "admin_listen", "instances", "gpus"):
        assert getattr(service._parts.config, section) == getattr(before, section)


@pytest.mark.parametrize("name", NOT_BUILT)
def test_what_is_not_built_takes_no_value(name, config):
    """So there is nothing that could change."""
    with pytest.raises(ConfigError, match="this version"):
        parse(yaml.safe_dump(config | {name: NOT_BUILT[name]}))


@pytest.mark.parametrize("ends", [False, True])
def test_tls_begins_and_ends_with_a_restart(config, ends):
    """Listeners are made with or without it."""
    without = parse(yaml.safe_dump({key: value for key, value in config.items() if key != "tls"}))
    pair = (parse(yaml.safe_dump(config)), without)
    old, new = pair if ends else pair[::-1]
    found = changes(old, new)
    assert (found.applied, found.waiting, found.config) == ([], ["tls"], old)


async def test_the_files_of_tls_may_go_before_it_ends(service, config, tmp_path):
    """A file that names them no more isn't refused for that: it takes a restart, and they count till then."""
    before = service._public.tls
    for name in config["tls"].values():
        os.unlink(name)  # noqa: PTH108 - no Path in a coroutine
    without = {key: value for key, value in config.items() if key != "tls"}
    (tmp_path / "proxy.yaml").write_text(yaml.safe_dump(without | {"drain_seconds": 1}))

    assert service._reload() == (["drain_seconds"], ["tls"], [])
    assert service._public.tls is before is not None
    (tmp_path / "proxy.yaml").write_text(yaml.safe_dump(config))
    assert len(service._reload().problems) == 3


def test_models_and_instances_that_come_and_go(config):
    """A profile that is new or gone is named as a whole, as is a list that is longer; other keys count."""
    old = parse(yaml.safe_dump(config))
    more = config["instances"] + [{"name": "b", "url": "http://127.0.0.1:8", "gpus": []}]
    new = config | {"models": {"x": {}}, "instances": more, "queue": {"max_waiting": 3}}
    found = changes(old, parse(yaml.safe_dump(new)))
    assert sorted(found.applied) == [f"models.{MODEL}", "models.x:latest", "queue.max_waiting"]
    assert found.waiting == ["instances"]
    assert found.config.instances == old.instances
    assert list(found.config.models) == ["x:latest"]


@pytest.mark.parametrize("name", ["cert", "key", "client_ca"])
def test_the_check_looks_into_the_files_of_tls(config, tmp_path, capsys, name):
    """A file that can't be used is named before the proxy is started with it."""
    file = tmp_path / "proxy.yaml"
    file.write_text(yaml.safe_dump(config))
    assert main(["check", str(file)]) == 0
    Path(config["tls"][name]).write_text("rubbish")
    assert main(["check", str(file)]) == 2
    told = capsys.readouterr().err
    assert config["tls"][name] in told
    assert f"tls.{name}" in told
