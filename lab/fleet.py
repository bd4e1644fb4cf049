"""Writes the fleet of a running lab: addresses, the mirror, secrets in a vault. `down` removes it again."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

import yaml
from ansible.parsing.vault import VaultLib, VaultSecret

from lab.hosts.errors import LabError
from lab.hosts.lab import Lab
from lab.hosts.paths import LabPaths
from lab.hosts.spec import LabSpec

HOSTS = "hosts.yml"
VARIABLES = "group_vars/all/lab.yml"
VAULT = "group_vars/all/vault.yml"
VAULT_PASSWORD = ".vault-password"  # noqa: S105 - a file name
MIRROR_USERNAME = "lab"
HEADER = "# Written by `python -m lab up` for the lab {name!r}; removed by `python -m lab down`.\n"


def make_secrets(paths: LabPaths) -> dict[str, str]:
    """Make the lab's secrets and keep them in its state folder, readable for root only."""
    made = {
        "use": f"drv_{secrets.token_urlsafe(32)}",
        "admin": f"drv_{secrets.token_urlsafe(32)}",
        "mirror_username": MIRROR_USERNAME,
        "mirror_password": secrets.token_urlsafe(24),
        "vault_password": secrets.token_urlsafe(32),
    }
    write_private(paths.secrets, json.dumps(made, indent=2) + "\n")
    write_private(paths.mirror_auth, f"{made['mirror_username']}:{made['mirror_password']}\n")
    return made


def read_secrets(name: str) -> dict[str, str]:
    """Return a running lab's secrets: the API keys `use` and `admin`, two logins."""
    try:
        content: dict[str, str] = json.loads(LabPaths(name).secrets.read_text())
    except FileNotFoundError:
        raise LabError(
            f"lab {name!r}: isn't up, so it has no secrets\n  next: python -m lab up --name {name}"
        ) from None
    return content


def write(lab: Lab, into: Path) -> None:
    """Write the lab's hosts, variables and vault into a fleet folder."""
    spec, known = lab.spec, read_secrets(lab.name)
    (into / "group_vars/all").mkdir(parents=True, exist_ok=True)
    header = HEADER.format(name=lab.name)
    _write(into / HOSTS, header + _yaml(hosts(spec, lab.paths)))
    _write(into / VARIABLES, header + _yaml(variables(spec)))
    vault = VaultLib([("default", VaultSecret(known["vault_password"].encode()))])
    encrypted = vault.encrypt(_yaml(secret_variables(known)))
    write_private(into / VAULT, encrypted.decode() if isinstance(encrypted, bytes) else str(encrypted))
    write_private(into / VAULT_PASSWORD, known["vault_password"] + "\n")


def remove(into: Path, name: str) -> None:
    """Remove what `write` wrote for this lab; a folder that another lab has written since stays as it is."""
    try:
        owner = (into / HOSTS).read_text().partition("\n")[0] + "\n"
    except FileNotFoundError:
        return
    if owner == HEADER.format(name=name):
        for file in (VAULT_PASSWORD, VAULT, VARIABLES, HOSTS):
            (into / file).unlink(missing_ok=True)


def hosts(spec: LabSpec, paths: LabPaths) -> dict[str, Any]:
    """Return the inventory in Ansible's layout."""
    options = f"-o UserKnownHostsFile={paths.known_hosts} -o StrictHostKeyChecking=yes -o IdentitiesOnly=yes"
    return {
        "all": {
            "hosts": {host.name: {"ansible_host": host.address} for host in spec.hosts},
            "vars": {
                "ansible_user": "ops",
                "ansible_become": True,
                "ansible_ssh_private_key_file": str(paths.ssh_key),
                "ansible_ssh_common_args": options,
                "ansible_python_interpreter": "/usr/bin/python3",
            },
        }
    }


def variables(spec: LabSpec) -> dict[str, Any]:
    """Return what the fleet must know of this lab and isn't secret."""
    if not spec.mirror_root:
        return {"lab_name": spec.name}
    facts = Path(spec.mirror_root) / "mirror.json"
    known = json.loads(facts.read_text()) if facts.is_file() else {}
    found: dict[str, Any] = {"mirror_url": spec.mirror_url, "mirror_username": MIRROR_USERNAME}
    found.update(known.get("fleet_variables", {}))
    return found


def secret_variables(known: dict[str, str]) -> dict[str, Any]:
    """Return what goes into the vault: keys as their hashes, since a host has no use for more."""
    return {
        "mirror_password": known["mirror_password"],
        "proxy_keys": [
            {"name": "demo", "sha256": _sha256(known["use"]), "scopes": ["use"], "models": ["*"]},
            {"name": "admin", "sha256": _sha256(known["admin"]), "scopes": ["use", "admin"], "models": ["*"]},
        ],
    }


def write_private(path: Path, content: str) -> None:
    """Write a file that only its owner can read from its first moment on, whole or not at all."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(content)
    new.replace(path)


def _write(path: Path, content: str) -> None:
    new = path.with_name(f"{path.name}.new")
    new.write_text(content)
    new.replace(path)


def _yaml(content: Any) -> str:
    return str(yaml.safe_dump(content, sort_keys=False))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
