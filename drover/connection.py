"""How to reach a host: Ansible's connection variables in pyinfra's words."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class HiddenText(str):
    """A text whose repr doesn't show it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'********'"


def ssh_options(arguments: str) -> dict[str, str]:
    """Return the `-o Key=value` options of ansible_ssh_common_args, keys in lower case."""
    words = shlex.split(arguments)
    found: dict[str, str] = {}
    for index, word in enumerate(words):
        text = ""
        if word == "-o" and index + 1 < len(words):
            text = words[index + 1]
        elif word.startswith("-o") and len(word) > 2:
            text = word[2:]
        key, equals, value = text.partition("=")
        if equals:
            found[key.strip().lower()] = value.strip()
    return found


def _checking(variables: Mapping[str, Any], options: Mapping[str, str]) -> str:
    """Return the policy for host keys: strict unless the fleet says otherwise."""
    for name in ("ansible_ssh_host_key_checking", "ansible_host_key_checking"):
        if name in variables:
            return "yes" if variables[name] else "off"
    named = options.get("stricthostkeychecking")
    if named:
        return {"no": "off", "ask": "yes"}.get(named, named)
    # With a managed known_hosts file, an unknown key is a refusal; without one, the first key is remembered.
    return "yes" if "userknownhostsfile" in options else "accept-new"


def pyinfra_data(variables: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return pyinfra's connection data for one host's Ansible variables."""
    data: dict[str, Any] = {}
    user = variables.get("ansible_user") or variables.get("ansible_ssh_user")
    names = {
        "ssh_hostname": variables.get("ansible_host") or variables.get("ansible_ssh_host"),
        "ssh_port": variables.get("ansible_port") or variables.get("ansible_ssh_port"),
        "ssh_user": user,
    }
    data.update({key: value for key, value in names.items() if value is not None})
    key = variables.get("ansible_ssh_private_key_file") or variables.get("ansible_private_key_file")
    if key:
        data["ssh_key"] = str((folder / Path(key).expanduser()).resolve())
    arguments = " ".join(
        str(variables.get(name, "")) for name in ("ansible_ssh_common_args", "ansible_ssh_extra_args")
    )
    options = ssh_options(arguments)
    if "userknownhostsfile" in options:
        data["ssh_known_hosts_file"] = str(Path(options["userknownhostsfile"]).expanduser())
    data["ssh_strict_host_key_checking"] = _checking(variables, options)
    data["_sudo"] = bool(variables.get("ansible_become", user != "root"))
    if password := variables.get("ansible_become_password"):
        data["_sudo_password"] = HiddenText(password)
    return data
