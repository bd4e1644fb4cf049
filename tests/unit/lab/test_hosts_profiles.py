"""Profiles: what is accepted, and that every mistake is named with what was meant."""

from __future__ import annotations

import pytest

from lab.hosts import LabError, profiles

MODELS = ["L4", "A100-80G", "RTX4090"]


def problems(**host) -> list[str]:
    """Check a profile of one host."""
    return list(profiles.check({"hosts": [{"name": "a", "gpus": [], **host}]}, MODELS))


@pytest.mark.parametrize("name", ["profiles/mixed.yaml", "profiles/single.yaml"])
def test_shipped_profiles_are_valid(name):
    """The profiles that the project ships pass their own check."""
    assert profiles.load(name).hosts


def test_mixed_has_three_unequal_hosts():
    """mixed.yaml is two L4, four A100 and one RTX 4090, in this order."""
    hosts = profiles.load("profiles/mixed.yaml").first(3)
    assert [(host.name, [gpu["model"] for gpu in host.gpus]) for host in hosts] == [
        ("a", ["L4", "L4"]),
        ("b", ["A100-80G"] * 4),
        ("c", ["RTX4090"]),
    ]


def test_a_host_without_gpus_is_valid():
    """A lab host may have no GPU at all."""
    assert problems() == []


def test_a_wrong_model_is_named_with_the_nearest():
    """A typing mistake in a GPU's model says where, what, and what was probably meant."""
    assert problems(gpus=[{"model": "L4"}, {"model": "A100-80"}]) == [
        "hosts[0].gpus[1].model: unknown GPU model 'A100-80' (did you mean 'A100-80G'?)"
    ]


@pytest.mark.parametrize(
    ("gpu", "said"),
    [
        ({"model": "L4", "memory": 3}, "unknown key 'memory' (did you mean 'memory_mib'?)"),
        ({"model": "L4", "memory_mib": "24"}, "memory_mib: must be of type int, is '24'"),
        ({"model": "L4", "memory_mib": True}, "memory_mib: must be of type int, is True"),
        ({"model": "L4", "memory_mib": 0}, "memory_mib: must be more than 0, is 0"),
        ({"model": "L4", "pci_bus_id": "01:00.0"}, "pci_bus_id: must look like 00000000:01:00.0"),
        ({}, "must be a mapping with `model`"),
        ("L4", "must be a mapping with `model`"),
    ],
)
def test_mistakes_in_a_gpu_are_named(gpu, said):
    """Unknown keys, wrong types and impossible values of a GPU are refused where they stand."""
    found = problems(gpus=[gpu])
    assert len(found) == 1
    assert found[0].startswith("hosts[0].gpus[0]")
    assert said in found[0]


@pytest.mark.parametrize("name", ["A", "", "a-b", "1a", None, "abcdefghijklm"])
def test_a_name_that_can_be_no_host_is_refused(name):
    """Names become host names and parts of interface names: short, lowercase, no dash."""
    assert "hosts[0].name: must be 1 to 12 lowercase letters" in problems(name=name)[0]


def test_all_mistakes_are_named_at_once():
    """One reading names everything that is wrong, twice the same name included."""
    content = {"hosts": [{"name": "a", "gpu": []}, {"name": "a", "gpus": 3}, 7], "host": 1}
    found = list(profiles.check(content, MODELS))
    assert len(found) == 5
    assert "hosts[0]: unknown key 'gpu' (did you mean 'gpus'?)" in found
    assert "hosts[1].name: 'a' is there twice" in found


@pytest.mark.parametrize("content", [None, [], {"hosts": []}, {"hosts": {"a": 1}}, "hosts"])
def test_a_profile_without_hosts_is_refused(content):
    """What isn't a mapping with a list of hosts gets one clear sentence."""
    assert list(profiles.check(content, MODELS)) == [
        "must be a mapping with a list `hosts` of one host or more"
    ]


def test_more_hosts_than_there_are_is_refused():
    """--hosts beyond the profile names the hosts that there are."""
    with pytest.raises(LabError, match=r"--hosts 4: .* has 3 hosts \(a, b, c\)"):
        profiles.load("profiles/mixed.yaml").first(4)
    with pytest.raises(LabError, match="--hosts 0"):
        profiles.load("profiles/mixed.yaml").first(0)


def test_a_missing_profile_names_the_nearest_shipped_one():
    """A wrong file name is answered with the one that was probably meant."""
    with pytest.raises(LabError, match=r"did you mean 'profiles/mixed.yaml'"):
        profiles.find("profiles/mixd.yaml")


def test_broken_yaml_says_where(tmp_path):
    """A profile that is no YAML is refused with the parser's line and column."""
    file = tmp_path / "p.yaml"
    file.write_text("hosts: [\n")
    with pytest.raises(LabError, match=r"not valid YAML(.|\n)*line 2"):
        profiles.load(file)
