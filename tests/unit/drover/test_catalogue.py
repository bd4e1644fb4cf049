"""The catalogue of versions: URLs, digests, fingerprints, and the mirror in their place."""

from __future__ import annotations

import re

import pytest

from drover import catalogue
from drover.errors import DroverError


def test_a_pinned_version_has_url_and_digest():
    """A version of the catalogue comes with both."""
    archive = catalogue.ollama_archive("0.33.0")
    assert archive.url.endswith("/v0.33.0/ollama-linux-amd64.tar.zst")
    assert re.fullmatch("[0-9a-f]{64}", archive.sha256)


def test_the_mirror_stands_in_for_the_server_but_not_for_the_digest():
    """An air-gapped fleet installs the same bytes."""
    direct, mirrored = (
        catalogue.ollama_archive("0.33.0"),
        catalogue.ollama_archive("0.33.0", mirror="http://m/"),
    )
    assert mirrored.url == "http://m/ollama/v0.33.0/ollama-linux-amd64.tar.zst"
    assert mirrored.sha256 == direct.sha256


def test_an_unlisted_version_has_no_digest():
    """What nobody has checked isn't trusted: the fleet must name the digest."""
    assert catalogue.ollama_archive("9.9.9").sha256 is None


def test_every_digest_and_fingerprint_is_well_formed():
    """Digests are 64 hexadecimal digits, fingerprints 40, and every URL is https."""
    whole = catalogue.load()
    for version in whole["ollama"].values():
        for entry in version.values():
            assert re.fullmatch("[0-9a-f]{64}", entry["sha256"])
            assert entry["url"].startswith("https://")
    for layer in ("nvidia_driver", "container_toolkit"):
        for entry in whole[layer]["repositories"].values():
            assert re.fullmatch("[0-9A-F]{40}", entry["fingerprint"])
            assert entry["url"].startswith("https://")


def test_vendor_repositories():
    """The vendors' names of architectures are theirs, not Debian's."""
    assert catalogue.apt_repository("nvidia_driver", "debian12", "arm64").url.endswith("/debian12/sbsa/")
    assert catalogue.apt_repository("container_toolkit", "debian12", "amd64").url.endswith("/deb/amd64/")


def test_an_unknown_distribution_says_what_to_set():
    """Where the catalogue has no repository, the message names the variables that stand in."""
    with pytest.raises(DroverError, match="nvidia_driver_apt_url"):
        catalogue.apt_repository("nvidia_driver", "slackware15", "amd64")
