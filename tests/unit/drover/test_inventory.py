"""A fleet's folder is read as Ansible reads it, secrets included, and nothing of a secret is ever shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ansible.parsing.vault import VaultLib, VaultSecret

from drover.errors import FleetError
from drover.inventory import Fleet, pyinfra_groups

PASSWORD = b"correct horse"
TREE = """
all:
  vars: {v_inline: all}
  hosts: {alone: {}}
  children:
    outer:
      vars: {v_inline: outer, v_group: inline}
      children:
        inner:
          hosts:
            a: {v_host: line, ansible_host: 192.0.2.1}
            "b[01:02]": {}
    zeta:
      hosts: {a: {}}
      vars: {ansible_group_priority: 1}
"""


def encrypt(text: str) -> str:
    """Return a text as ansible-vault writes it."""
    return VaultLib([("default", VaultSecret(PASSWORD))]).encrypt(text).decode()


def give_password(folder, mode=0o600):
    """Put the vault's password where a fleet keeps it."""
    path = folder.path / ".vault-password"
    path.write_bytes(PASSWORD + b"\n")
    path.chmod(mode)
    return path


def inline(name: str, text: str) -> str:
    """Return a YAML line with an encrypted value."""
    body = "\n".join("  " + line for line in encrypt(text).splitlines())
    return f"{name}: !vault |\n{body}\n"


@pytest.fixture
def tree(folder):
    """Return a fleet with nested groups and variables at every level."""
    folder.write("hosts.yml", TREE)
    folder.write("group_vars/all/main.yml", "v_all: all\nv_group: all\nv_host: all\n")
    folder.write("group_vars/all/more.yml", "v_all: more\n")
    folder.write("group_vars/outer.yml", "v_group: outer\nv_depth: outer\n")
    folder.write("group_vars/inner/x.yaml", "v_depth: inner\nv_host: inner\n")
    folder.write("group_vars/zeta.yml", "v_depth: zeta\nv_zeta: 1\n")
    folder.write("host_vars/b01.yml", "v_host: b01\nv_list: [1]\n")
    return folder


def test_hosts_and_groups(tree):
    """Groups hold their children's hosts, ranges are expanded, and a host without a group is ungrouped."""
    fleet = Fleet.load(tree.path)
    assert set(fleet.hosts) == {"a", "b01", "b02", "alone"}
    assert set(fleet.groups["outer"]) == {"a", "b01", "b02"}
    assert fleet.groups["ungrouped"] == ["alone"]


def test_precedence_is_ansibles(tree):
    """Every host's merged variables equal those that ansible-inventory prints."""
    fleet = Fleet.load(tree.path)
    command = [
        str(Path(sys.executable).with_name("ansible-inventory")),
        "-i",
        str(tree.path / "hosts.yml"),
        "--list",
    ]
    environment = {**os.environ, "ANSIBLE_LOCALHOST_WARNING": "false", "HOME": str(tree.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    theirs = json.loads(done.stdout)["_meta"]["hostvars"]
    for name, host in fleet.hosts.items():
        assert host.variables == theirs.get(name, {}), name


def test_each_value_knows_its_file(tree):
    """The source of a variable is the file that won."""
    sources = Fleet.load(tree.path).hosts["b01"].sources
    assert sources["v_host"] == "host_vars/b01.yml"
    assert sources["v_depth"] == "group_vars/inner/x.yaml"
    assert sources["v_inline"] == "hosts.yml, group outer"


def test_defaults_lie_under_the_fleets_variables(folder):
    """A host's variables are the defaults, with the fleet's over them."""
    folder.write("host_vars/a.yml", 'nvidia_driver_branch: "595"\n')
    values = Fleet.load(folder.path).host_vars("a")
    assert values["nvidia_driver_branch"] == "595"
    assert values["nvidia_driver_flavour"] == "auto"


def test_vault_values_and_files_are_decrypted(folder):
    """A single encrypted value and a wholly encrypted file are both read."""
    give_password(folder)
    folder.write("group_vars/all/vault.yml", encrypt("mirror_password: canary-one\n"))
    folder.write("host_vars/a.yml", inline("mirror_username", "canary-two"))
    values = Fleet.load(folder.path).host_vars("a")
    assert values["mirror_password"] == "canary-one"
    assert values["mirror_username"] == "canary-two"


def test_nothing_encrypted_is_ever_shown(folder):
    """Neither repr nor JSON of a host's variables holds what was encrypted, whatever its name."""
    give_password(folder)
    folder.write("group_vars/all/vault.yml", encrypt("mirror_password: canary-one\nmy_token: canary-three\n"))
    folder.write(
        "host_vars/a.yml", inline("mirror_username", "canary-two") + "ansible_become_password: canary-four\n"
    )
    fleet = Fleet.load(folder.path)
    values = fleet.host_vars("a")
    assert values["my_token"] == "canary-three"
    assert "canary" not in repr(values) + json.dumps(values.to_json()) + repr(fleet)


def test_the_environment_names_the_password_file(folder, tmp_path, monkeypatch):
    """ANSIBLE_VAULT_PASSWORD_FILE is honoured as Ansible does."""
    path = tmp_path / "elsewhere"
    path.write_bytes(PASSWORD)
    path.chmod(0o600)
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", str(path))
    folder.write("host_vars/a.yml", inline("mirror_username", "x"))
    assert Fleet.load(folder.path).host_vars("a")["mirror_username"] == "x"


def test_an_executable_password_file_is_run(folder):
    """A password file that can be executed prints the password, as with Ansible."""
    path = give_password(folder)
    path.write_text(f"#!/bin/sh\necho '{PASSWORD.decode()}'\n")
    path.chmod(0o700)
    folder.write("host_vars/a.yml", inline("mirror_username", "x"))
    assert Fleet.load(folder.path).host_vars("a")["mirror_username"] == "x"


def test_a_missing_password_file_is_named(folder):
    """Without the password the message names the file and what to do."""
    folder.write("host_vars/a.yml", inline("mirror_username", "x"))
    with pytest.raises(FleetError, match=r"\.vault-password: no such file.*ANSIBLE_VAULT_PASSWORD_FILE"):
        Fleet.load(folder.path)


def test_a_wrong_password_is_named_without_the_value(folder):
    """A password that doesn't fit names the place of the value."""
    give_password(folder).write_bytes(b"wrong")
    folder.write("host_vars/a.yml", inline("mirror_username", "canary"))
    with pytest.raises(FleetError, match=r"a\.yml:1: can't be decrypted") as caught:
        Fleet.load(folder.path)
    assert "canary" not in str(caught.value)


def test_a_password_file_that_others_may_read_is_refused(folder):
    """The vault's password is guarded like a key."""
    give_password(folder, 0o644)
    folder.write("host_vars/a.yml", inline("mirror_username", "x"))
    with pytest.raises(FleetError, match="others may read"):
        Fleet.load(folder.path)


def test_braces_marked_unsafe_are_literal(folder):
    """!unsafe keeps a template of another program as it stands."""
    folder.write("host_vars/a.yml", 'mirror_username: !unsafe "{{ .System }}"\nmirror_password: p\n')
    fleet = Fleet.load(folder.path)
    assert fleet.problems() == []
    assert fleet.host_vars("a")["mirror_username"] == "{{ .System }}"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("hosts.yml", "all: {hosts: {a: {}}}\n  x: 1", r"hosts\.yml:\d+: not valid YAML"),
        ("hosts.yml", "all: {host: {a: {}}}", "group all: expected only the keys hosts, vars and children"),
        ("hosts.yml", "all: {}", "no hosts in it"),
        ("hosts.yml", "[]", "no hosts in it"),
        ("hosts.yml", "[a]", "expected a mapping"),
        ("hosts.yml", "x: {children: {y: {children: {x: {}}}, }, hosts: {a: {}}}", "contain each other"),
        ("host_vars/a.yml", "x: 1\nx: 2\n", "the key 'x' stands twice"),
        ("host_vars/a.yml", "[1]", "expected a mapping of variables"),
        ("host_vars/aa.yml", "x: 1", r"hosts\.yml has no host of this name\. Nearest: a\."),
        ("group_vars/al.yml", "x: 1", r"hosts\.yml has no group of this name\. Nearest: all\."),
    ],
)
def test_a_fleet_that_cannot_be_read_is_explained(folder, name, text, message):
    """Each malformed file is named with what is wrong in it."""
    folder.write(name, text)
    with pytest.raises(FleetError, match=message):
        Fleet.load(folder.path)


def test_pyinfra_gets_hosts_with_data_and_groups(tree):
    """The groups for pyinfra hold every host once with its connection and its variables."""
    groups = pyinfra_groups(tree.path)
    by_name = dict(groups["all"])
    assert by_name["a"]["ssh_hostname"] == "192.0.2.1"
    assert by_name["a"]["drover"]["v_zeta"] == 1
    assert groups["zeta"] == ["a"]


def test_a_bad_variable_stops_pyinfra_before_it_connects(folder, capsys):
    """The inventory exits with a message that names host, key, file and the nearest name."""
    folder.write("host_vars/a.yml", "nvidia_driver_brnch: x\n")
    with pytest.raises(SystemExit) as caught:
        pyinfra_groups(folder.path)
    assert caught.value.code == 1
    text = capsys.readouterr().err
    assert "a: nvidia_driver_brnch (set in host_vars/a.yml)" in text
    assert "Nearest: nvidia_driver_branch." in text
    assert "No host was touched." in text


def test_the_example_fleet_is_valid():
    """The fleet that people copy has no problem."""
    root = Path(__file__).resolve().parents[3]
    assert Fleet.load(root / "inventories/example").problems() == []
