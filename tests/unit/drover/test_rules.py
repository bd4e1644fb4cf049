"""Rules between variables: what each allows alone and all of them together don't."""

from __future__ import annotations

import pytest

from drover import ollama_env
from drover.schema import load_options
from drover.variables import validate

DIGEST = "a" * 64


def texts(**variables):
    """Return the problems of host `a` with these variables."""
    return [str(problem) for problem in validate(variables, host="a")]


@pytest.mark.parametrize("name", sorted(ollama_env.ABSENT))
def test_settings_that_ollama_lacks_are_refused_by_name(name):
    """Each is refused, and the message says what to use instead."""
    (found,) = texts(ollama_env={name: "1"})
    assert found.startswith(f"a: ollama_env.{name}: expected a setting that Ollama has, got {name}, which ")
    assert f"Next: use {ollama_env.ABSENT[name][1]}" in found


@pytest.mark.parametrize("name", sorted(ollama_env.OWN))
def test_settings_with_a_variable_of_their_own_are_refused(name):
    """What a variable sets isn't set in the environment too; the variable that is named exists."""
    (found,) = texts(ollama_env={name: "1"})
    assert f"Next: set {ollama_env.OWN[name]}" in found
    assert ollama_env.OWN[name] in load_options()


def test_misspelt_settings_name_the_nearest():
    """A name close to one of Ollama's is answered with it; other programs' names pass."""
    (found,) = texts(ollama_env={"OLLAMA_DEBGU": "1"})
    assert "Nearest: OLLAMA_DEBUG." in found
    assert texts(ollama_env={"OLLAMA_DEBUG": "1", "HTTPS_PROXY": "http://p:3128"}) == []


def test_a_release_needs_a_digest_that_is_known():
    """A version outside the catalogue is refused until the fleet names its digest."""
    (found,) = texts(ollama_version="0.99.0")
    assert "set ollama_archive_sha256" in found
    assert texts(ollama_version="0.99.0", ollama_archive_sha256=DIGEST) == []
    assert texts(ollama_version="0.99.0", ollama_archive_checksums={"0.99.0": DIGEST}) == []
    assert "64 hexadecimal digits" in texts(ollama_archive_sha256="abc")[0]


def test_a_quantised_cache_needs_flash_attention():
    """Ollama would fail every load."""
    (found,) = texts(ollama_kv_cache_type="q8_0", ollama_flash_attention="disabled")
    assert found.startswith("a: ollama_kv_cache_type: expected f16")


def test_names_stand_once():
    """Two models, keys or instances of one name can't be told apart."""
    assert "'m' 2 times" in texts(models_list=[{"name": "m"}, {"name": "m"}])[0]
    assert "'n' 2 times" in texts(models_list=[{"name": "m", "aliases": ["n"]}, {"name": "n"}])[0]
    key = {"name": "k", "sha256": DIGEST}
    assert "'k' 2 times" in texts(proxy_keys=[key, key])[0]


def test_a_models_limits():
    """Slots and priority of a model stay within what the host has."""
    found = texts(ollama_num_parallel=2, models_list=[{"name": "m", "slots": 3, "priority": 101}])
    assert found == [
        "a: models_list[m].slots: expected at most ollama_num_parallel (2), got 3.",
        "a: models_list[m].priority: expected a number from -100 to 100, got 101.",
    ]


def test_a_key_in_place_of_its_hash_is_refused_and_not_shown():
    """Who writes the key itself into the fleet is told, and the key stays unseen."""
    (found,) = texts(proxy_keys=[{"name": "k", "sha256": "drv_canary"}])
    assert "proxy_keys[k].sha256" in found
    assert "canary" not in found


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"ssh": f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA{'I' * 44} ann@laptop"}, None),
        ({"certificate": "cn:ann"}, None),
        ({"certificate": f"sha256:{'AB:' * 31}AB"}, None),
        ({}, "proxy_keys[k]: expected one of sha256, ssh, certificate"),
        ({"ssh": "ssh-rsa AAAAB3Nza canary"}, "proxy_keys[k].ssh: expected an ed25519 public key"),
        ({"ssh": "-----BEGIN OPENSSH PRIVATE KEY----- canary"}, "proxy_keys[k].ssh"),
        ({"certificate": "ann-canary"}, "proxy_keys[k].certificate"),
        ({"certificate": "cn:*"}, "proxy_keys[k].certificate"),
    ],
)
def test_what_a_caller_is_known_by(entry, problem):
    """A key's hash, an SSH key or a certificate; what stands there in error is never shown."""
    tls = {"proxy_tls_cert": "PEM", "proxy_tls_key": "PEM", "proxy_tls_client_ca": "PEM"}
    found = texts(proxy_keys=[{"name": "k", **entry}], **tls)

    assert len(found) == (problem is not None)
    assert all(problem in text and "canary" not in text for text in found)


def test_client_certificates_need_tls():
    """Without a certificate of the door's own there is no TLS to ask for one."""
    assert "proxy_tls_cert and proxy_tls_key" in texts(proxy_tls_client_ca="PEM")[0]
    assert "proxy_tls_client_ca too" in texts(proxy_keys=[{"name": "k", "certificate": "cn:ann"}])[0]


def test_the_proxy_leaves_at_least_what_ollama_leaves():
    """A smaller reserve than Ollama's own would let it spill."""
    assert "at least ollama_fit_target_mib" in texts(proxy_reserve_mib=100)[0]


def test_half_of_tls_is_refused():
    """A certificate needs its key."""
    assert "only one of them" in texts(proxy_tls_cert="PEM")[0]
