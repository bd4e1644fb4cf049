"""apt: versions that must fit, pins that must hold, keys that must match."""

from __future__ import annotations

import base64
import hashlib

import pytest

from deploys.lib import apt
from deploys.lib.facts import AptPackage, AptState, Lines
from deploys.lib.templates import render
from drover import openpgp
from drover.errors import DroverError
from tests.unit.deploys.support import commands_of, refusal_of, text_of


@pytest.mark.parametrize(
    ("version", "wanted", "expected"),
    [
        ("580.159.03-1", "580", True),
        ("580.159.03-1", "580.159.03", True),
        ("580.159.03-1", "580.159", True),
        ("580.159.03-1", "580.15", False),
        ("595.10-1", "580", False),
        ("3:580.1-1", "580", True),
        ("1.20.0-1", "1.20.0", True),
        ("1.20.01-1", "1.20.0", False),
        ("7", "", True),
        ("", "", False),
        ("", "580", False),
    ],
)
def test_versions_fit_by_whole_parts(version, wanted, expected):
    """580 fits 580.x and 580.15 doesn't fit 580.159."""
    assert apt.fits(version, wanted) is expected


def state(**packages):
    """Return what AptState finds; underscores in names stand for hyphens."""
    return {name.replace("_", "-"): AptPackage(*versions) for name, versions in packages.items()}


def test_installed_as_wanted_is_left_alone(scripted):
    """A newer candidate isn't installed as long as what is there fits."""
    scripted.facts[AptState] = state(a=("580.1-1", "580.2-1"))
    assert commands_of(apt.packages, wanted={"a": "580"}) == []


def test_missing_packages_are_installed_together(scripted):
    """One apt run takes them all, and allows a step back."""
    scripted.facts[AptState] = state(a=("", "580.2-1"), b=("595.1-1", "580.2-1"), c=("580.2-1", "580.2-1"))
    (command,) = commands_of(apt.packages, wanted={"a": "580", "b": "580", "c": "580"})
    text = text_of(command)
    assert text.endswith("--allow-downgrades install a b")
    assert "DPkg::Lock::Timeout=300" in text


def test_the_other_flavour_goes_in_the_same_step(scripted):
    """What must go is removed by the same apt run, then purged."""
    scripted.facts[AptState] = state(open=("", "580.2-1"), closed=("580.1-1", "580.2-1"))
    install, purge = commands_of(apt.packages, wanted={"open": "580"}, purge=["closed", "never-there"])
    assert text_of(install).endswith("install open closed-")
    assert text_of(purge).endswith("purge closed")


def test_stale_lists_are_read_again_before_giving_up(scripted):
    """A version that the lists don't hold is looked for once more; then the message says what apt offers."""
    scripted.facts[AptState] = state(a=("", "595.1-1"))
    read, refused = commands_of(apt.packages, wanted={"a": "580"})
    assert "Error-Mode=any update" in text_of(read)
    assert "a: wanted 580, apt offers 595.1-1" in refusal_of(refused)


def test_lists_are_read_once_for_the_same_sources(scripted):
    """The stamp tells for which sources the lists were read."""
    scripted.facts[Lines] = ["digest"]
    assert commands_of(apt.update, stamp="/s", digest="digest") == []
    read, _stamp = commands_of(apt.update, stamp="/s", digest="other")
    assert "APT::Update::Error-Mode=any" in text_of(read)


def packet(body: bytes, tag: int = 6) -> bytes:
    """Return an OpenPGP packet in the new format."""
    return bytes([0xC0 | tag, len(body)]) + body


KEY = packet(b"\x04" + b"\x00\x00\x00\x01" + b"\x16" + b"x" * 40)
PRINT = hashlib.sha1(b"\x99\x00\x2e" + KEY[2:]).hexdigest().upper()  # noqa: S324 - what OpenPGP v4 prescribes


def armour(data: bytes) -> bytes:
    """Return a key in ASCII armour."""
    body = base64.encodebytes(data).decode()
    return f"{openpgp.BEGIN}\nVersion: x\n\n{body}=abcd\n{openpgp.END}\n".encode()


@pytest.mark.parametrize("data", [KEY, armour(KEY), armour(KEY) + armour(KEY)])
def test_keys_are_checked_armoured_and_binary(data):
    """The fingerprint is computed from the key itself, whatever its form; spaces don't count."""
    spaced = " ".join(PRINT[i : i + 4] for i in range(0, 40, 4)).lower()
    assert openpgp.check(data, spaced, "k").startswith(KEY)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (packet(b"\x04other"), "expected the key"),
        (KEY + packet(b"\x04other"), "expected the key"),
        (KEY[:-1], "the key is cut off"),
        (b"\xc6", "the key is cut off"),
        (b"hello", "not an OpenPGP key"),
        (packet(b"user", 13), "no OpenPGP public key"),
        (f"{openpgp.BEGIN}\n\n!!!\n{openpgp.END}".encode(), "armour of the key is damaged"),
    ],
)
def test_other_keys_are_refused(data, message):
    """A key that isn't the expected one, or one beside it, is refused."""
    with pytest.raises(DroverError, match=message):
        openpgp.check(data, PRINT, "k")


def test_the_repository_is_trusted_by_its_own_key_only():
    """The source names the one keyring that may sign it."""
    text = render("common", "repository.sources.j2", {"apt_url": "http://m/apt/", "apt_keyring": "/k.gpg"})
    assert "URIs: http://m/apt/\nSuites: /\nSigned-By: /k.gpg\n" in text
