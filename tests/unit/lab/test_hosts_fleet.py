"""The fleet folder of a running lab: inventory, vault, who may read what, and its removal."""

from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace

import pytest
import yaml
from ansible.parsing.vault import VaultLib, VaultSecret

from lab import fleet
from lab.hosts import LabError, spec
from lab.hosts.paths import LabPaths
from lab.hosts.profiles import ProfileHost


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A fleet folder written for a lab that has a state folder but doesn't run."""
    monkeypatch.setattr("lab.hosts.paths.STATE", tmp_path / "state")
    paths = LabPaths("lab")
    paths.state.mkdir(parents=True)
    (tmp_path / "mirror").mkdir()
    facts = {"fleet_variables": {"mirror_apt_key_fingerprint": "ABCD"}}
    (tmp_path / "mirror/mirror.json").write_text(json.dumps(facts))
    made = spec.make("lab", tmp_path, (ProfileHost("a", ()),), mirror_root=str(tmp_path / "mirror"))
    secrets = fleet.make_secrets(paths)
    folder = tmp_path / "fleet"
    fleet.write(SimpleNamespace(spec=made, name="lab", paths=paths), folder)
    return SimpleNamespace(folder=folder, secrets=secrets, spec=made, paths=paths)


def vault(written) -> dict:
    """Decrypt the fleet's vault with its password file."""
    password = (written.folder / ".vault-password").read_text().strip().encode()
    lib = VaultLib([("default", VaultSecret(password))])
    return yaml.safe_load(lib.decrypt((written.folder / "group_vars/all/vault.yml").read_text()))


def test_hosts_are_in_ansibles_layout_with_strict_host_keys(written):
    """Each host has its address; the key and the known hosts are the lab's own, and are checked."""
    content = yaml.safe_load((written.folder / "hosts.yml").read_text())["all"]
    assert content["hosts"] == {"lab-a": {"ansible_host": written.spec.hosts[0].address}}
    assert content["vars"]["ansible_user"] == "ops"
    assert f"UserKnownHostsFile={written.paths.known_hosts}" in content["vars"]["ansible_ssh_common_args"]
    assert "StrictHostKeyChecking=yes" in content["vars"]["ansible_ssh_common_args"]


def test_the_mirrors_facts_become_variables(written):
    """What the mirror's build says about itself reaches the fleet."""
    content = yaml.safe_load((written.folder / "group_vars/all/lab.yml").read_text())
    assert content["mirror_url"] == f"http://{written.spec.gateway}:8088"
    assert content["mirror_apt_key_fingerprint"] == "ABCD"


def test_the_vault_holds_hashes_of_keys_and_the_mirrors_password(written):
    """Hosts get what they need to check a key, never the key."""
    content = vault(written)
    assert content["mirror_password"] == written.secrets["mirror_password"]
    by_name = {key["name"]: key for key in content["proxy_keys"]}
    assert by_name["demo"]["sha256"] == hashlib.sha256(written.secrets["use"].encode()).hexdigest()
    assert by_name["demo"]["scopes"] == ["use"]
    assert "admin" in by_name["admin"]["scopes"]
    assert written.secrets["use"] not in json.dumps(content)


def test_no_secret_stands_in_a_readable_file(written):
    """Secrets are in files for the owner alone, and in the fleet folder only encrypted."""
    for path in (written.paths.secrets, written.paths.mirror_auth, written.folder / ".vault-password"):
        assert path.stat().st_mode & 0o777 == 0o600, path
    values = [value for key, value in written.secrets.items() if key != "mirror_username"]
    for path in written.folder.rglob("*"):
        if path.is_file() and path.name != ".vault-password":
            assert not [value for value in values if value in path.read_text()], path


def test_keys_look_like_drovers_and_are_new_each_time(written):
    """Raw keys have the prefix that drover's keys have, and no lab has those of another."""
    assert written.secrets["use"].startswith("drv_")
    assert len(written.secrets["use"]) >= 36
    again = fleet.make_secrets(written.paths)
    assert again["use"] != written.secrets["use"]
    assert fleet.read_secrets("lab") == again


def test_remove_takes_what_was_written_and_nothing_else(written):
    """Files that the fleet had of its own stay; those of another lab too."""
    own = written.folder / "group_vars/all/main.yml"
    own.write_text("a: 1\n")
    fleet.remove(written.folder, "other")
    assert (written.folder / "hosts.yml").exists()
    fleet.remove(written.folder, "lab")
    assert [path.name for path in written.folder.rglob("*") if path.is_file()] == ["main.yml"]
    fleet.remove(written.folder, "lab")


def test_secrets_of_a_lab_that_is_not_up(written):
    """Asking for them says how to get them."""
    with pytest.raises(LabError, match=r"has no secrets(.|\n)*lab up --name gone"):
        fleet.read_secrets("gone")
