"""The configuration: what is accepted, and how mistakes are told."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from drover_proxy.config import Address, ConfigError, ForwardingConfig, load, parse
from drover_proxy.config.page import page
from drover_proxy.config.schema import ROOT
from hypothesis import given
from hypothesis import strategies as st

MINIMAL = "instances: [{name: gpu0, url: 'http://127.0.0.1:11434', gpus: [0]}]\n"
PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "proxy-config.md"


def problems(text: str) -> list[str]:
    """Return the problems of a configuration as lines."""
    with pytest.raises(ConfigError) as found:
        parse(text, "proxy.yaml")
    return str(found.value).splitlines()


def test_a_minimal_file_gets_every_default():
    """One instance is all that must be there."""
    config = parse(MINIMAL)

    assert config.listen == (Address("0.0.0.0", 8080),)
    assert config.admin_listen == (Address("127.0.0.1", 8081),)
    assert config.instances[0].gpus == ("0",)
    assert (config.instances[0].host, config.instances[0].port) == ("127.0.0.1", 11434)
    assert config.queue.max_waiting == 512
    assert config.loads.reserve_bytes == 1 << 30
    assert config.auth.keys_file is None
    assert config.gpus == "nvml"
    assert config.forwarding == ForwardingConfig("none", None, ())


def test_everything_at_once():
    """All the keys of the design are read."""
    config = parse(
        MINIMAL
        + """
listen: ["[::]:8080", unix:/run/drover/proxy.sock]
auth: {keys_file: /etc/drover/keys.yaml}
gpus: [{uuid: GPU-a, total_bytes: 24GiB}]
models:
  llama3.2: {context: 8192, slots: 2, pin: true, aliases: [gpt-4o], priority: 3}
queue: {max_waiting: 4, max_wait_seconds: 1.5}
prefetch: {}
peers: []
forwarding: {x_forwarded: append, via: drover, trusted_proxies: [10.0.0.0/8, "::1", unix]}
drain_seconds: 0
"""
    )

    assert [str(address) for address in config.listen] == ["[::]:8080", "unix:/run/drover/proxy.sock"]
    assert config.gpus[0].total_bytes == 24 << 30
    assert config.models["llama3.2:latest"].aliases == ("gpt-4o:latest",)
    assert config.queue.max_wait_seconds == 1.5
    assert config.forwarding.trusted_proxies == ("10.0.0.0/8", "::1/128", "unix")


def test_several_mistakes_are_told_at_once_with_their_places():
    """Each problem names file, line, key, what was expected, and the nearest name."""
    told = problems(
        """instances:
  - {name: gpu0, url: http://127.0.0.1:11434, gpu: [0], slots: many}
modles: {}
queue: {max_waitng: 3, max_wait_seconds: -1}
log: {level: loud}
"""
    )

    assert told == [
        "proxy.yaml: line 2: instances[0].gpu: unknown key; did you mean 'gpus'?",
        "proxy.yaml: line 2: instances[0].slots: expected a whole number, found 'many'",
        "proxy.yaml: line 2: instances[0].gpus: missing; expected list of GPU UUIDs or indexes",
        "proxy.yaml: line 3: modles: unknown key; did you mean 'models'?",
        "proxy.yaml: line 4: queue.max_waitng: unknown key; did you mean 'max_waiting'?",
        "proxy.yaml: line 4: queue.max_wait_seconds: expected a number of seconds of 0.001 or more, found -1",
        "proxy.yaml: line 5: log.level: expected one of debug, info, warning, error, found 'loud'",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("[", "is not YAML"),
        ("- a", "expected a mapping, found a list"),
        ("listen: 0.0.0.0:8080", "instances: missing"),
        (MINIMAL + "listen: 8080", "listen: expected an address"),
        (MINIMAL + "listen: 'host:99999'", "listen: expected an address"),
        (MINIMAL + "listen: unix:relative", "expected an absolute path"),
        (MINIMAL + "listen: []", "listen: expected at least one address"),
        (MINIMAL + "listen: 127.0.0.1:8081", "asks for no key"),
        (MINIMAL + "drain_seconds: yes", "expected a number of seconds, found 'yes'"),
        (MINIMAL + "models: {a: {pin: 1}}", "models.a.pin: expected true or false"),
        (MINIMAL + "models: {a: {aliases: [b]}, B: {}}", "'B' names the same as models.a.aliases[0]"),
        (MINIMAL + "models: {'a/b/c/d': {}}", "is no model name"),
        (MINIMAL + "models: {'a:cloud': {}}", "cloud model"),
        (
            MINIMAL + "gpus: [{uuid: GPU-a, total_bytes: 1}, {uuid: GPU-a, total_bytes: 1}]",
            "is there already",
        ),
        (MINIMAL + "gpus: cuda", "expected one of nvml"),
        (MINIMAL + "limits: {body_bytes: 64MB}", "expected bytes"),
        (MINIMAL + "forwarding: {x_forwarded: all}", "expected one of none, append, replace"),
        (MINIMAL + "forwarding: {via: a b}", "expected a name"),
        (MINIMAL + "forwarding: {trusted_proxies: [proxy.lan]}", "expected an address, a network"),
        (MINIMAL + "forwarding: {trusted_proxies: [10.0.0.1/8]}", "has host bits set"),
        (MINIMAL + "queue: {max_waiting: 1}\nqueue: {}", "this key stands here twice"),
        (MINIMAL + "peers: [http://x]", "has no peers"),
        (MINIMAL.replace("http:", "https:"), "expected a URL"),
        (MINIMAL.replace("11434", "0"), "expected a port"),
    ],
)
def test_mistakes_are_named(text, expected):
    """Every kind of mistake is refused with a message that says what was expected."""
    assert expected in "\n".join(problems(text))


def test_two_instances_may_not_share_a_name_or_url():
    """Names are what metrics and headers use; two instances at one URL would count memory twice."""
    one = "{name: a, url: 'http://127.0.0.1:1', gpus: [0]}"
    told = problems(f"instances: [{one}, {one}]")

    assert [line.split(": ")[1] for line in told] == ["instances[1].name", "instances[1].url"]


def test_a_secret_is_never_shown():
    """redis_url may carry a password: the message leaves it out."""
    assert "hunter2" not in "\n".join(problems(MINIMAL + "redis_url: redis://:hunter2@host/0"))


def test_files_that_are_named_must_be_there(tmp_path):
    """A certificate that can't be read is found at the check, not at the first connection."""
    file = tmp_path / "proxy.yaml"
    file.write_text(MINIMAL + "tls: {cert: /nowhere/cert.pem, key: /nowhere/key.pem}")
    with pytest.raises(ConfigError, match=r"tls\.cert: /nowhere/cert\.pem can't be read: no such file"):
        load(file)
    with pytest.raises(ConfigError, match="can't be read"):
        load(tmp_path / "absent.yaml")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*ROOT, "name", "url", "x"]), inner, max_size=3)
        ),
        max_leaves=12,
    )
)
def test_no_input_breaks_the_reader(value):
    """Whatever YAML says, the answer is a configuration or a list of problems, never another error."""
    try:
        parse(yaml.safe_dump(value))
    except ConfigError as error:
        told = error.problems
        assert told  # noqa: PT017 - either way is right, but never an empty complaint


def test_the_reference_page_is_current():
    """docs/reference/proxy-config.md is what the schema says."""
    assert PAGE.read_text() == page()
