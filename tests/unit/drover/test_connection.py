"""Ansible's connection variables in pyinfra's words."""

from __future__ import annotations

from pathlib import Path

import pytest

from drover.connection import HiddenText, pyinfra_data, ssh_options

FOLDER = Path("/fleet")


def test_the_usual_variables_are_mapped():
    """Address, port, user and key reach pyinfra; a user who isn't root works through sudo."""
    data = pyinfra_data(
        {
            "ansible_host": "192.0.2.1",
            "ansible_port": 2222,
            "ansible_user": "ops",
            "ansible_ssh_private_key_file": "keys/id",
        },
        FOLDER,
    )
    assert data["ssh_hostname"] == "192.0.2.1"
    assert data["ssh_port"] == 2222
    assert data["ssh_user"] == "ops"
    assert data["ssh_key"] == "/fleet/keys/id"
    assert data["_sudo"] is True


def test_root_needs_no_sudo():
    """A login as root isn't wrapped in sudo, unless the fleet says so."""
    assert pyinfra_data({"ansible_user": "root"}, FOLDER)["_sudo"] is False
    assert pyinfra_data({"ansible_user": "root", "ansible_become": True}, FOLDER)["_sudo"] is True


def test_a_sudo_password_does_not_show():
    """The password for sudo is handed on, and its repr hides it."""
    data = pyinfra_data({"ansible_become_password": "canary"}, FOLDER)
    assert data["_sudo_password"] == "canary"
    assert isinstance(data["_sudo_password"], HiddenText)
    assert "canary" not in repr(data)


@pytest.mark.parametrize(
    ("variables", "policy"),
    [
        ({}, "accept-new"),
        ({"ansible_ssh_common_args": "-o UserKnownHostsFile=/k"}, "yes"),
        ({"ansible_ssh_common_args": "-oStrictHostKeyChecking=no"}, "off"),
        (
            {"ansible_ssh_extra_args": "-o StrictHostKeyChecking=accept-new -o UserKnownHostsFile=/k"},
            "accept-new",
        ),
        ({"ansible_host_key_checking": False}, "off"),
    ],
)
def test_host_keys(variables, policy):
    """A managed known_hosts file makes the check strict; the fleet's own word wins."""
    assert pyinfra_data(variables, FOLDER)["ssh_strict_host_key_checking"] == policy


def test_known_hosts_file():
    """The known_hosts file of ssh's arguments is pyinfra's too."""
    data = pyinfra_data({"ansible_ssh_common_args": "-o 'UserKnownHostsFile=/a b'"}, FOLDER)
    assert data["ssh_known_hosts_file"] == "/a b"


def test_ssh_options_ignores_other_words():
    """Only -o options are read."""
    assert ssh_options("-4 -o A=b -J jump -oC=d") == {"a": "b", "c": "d"}
