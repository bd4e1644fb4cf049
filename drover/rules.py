"""Rules between variables that no schema can say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from drover.checks import Finding


def cross_checks(merged: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is wrong between variables; called only when each alone is right."""
    yield from _mirror(merged)
    yield from _driver(merged)


def _mirror(merged: Mapping[str, Any]) -> Iterator[Finding]:
    url = merged.get("mirror_url", "")
    if url and not url.startswith(("http://", "https://")):
        yield Finding("mirror_url", "a URL that starts with http:// or https://", repr(url))
    if "@" in url.partition("://")[2].partition("/")[0]:
        yield Finding(
            "mirror_url",
            "a URL without a user or a password in it",
            "a URL with credentials (hidden)",
            next_command="put them into mirror_username and mirror_password (in the vault)",
        )
    if bool(merged.get("mirror_username")) != bool(merged.get("mirror_password")):
        yield Finding("mirror_username", "mirror_username and mirror_password together", "only one of them")


def _driver(merged: Mapping[str, Any]) -> Iterator[Finding]:
    branch, version = merged.get("nvidia_driver_branch", ""), merged.get("nvidia_driver_version", "")
    if version and not version.startswith(f"{branch}."):
        yield Finding(
            "nvidia_driver_version",
            f"a version of branch {branch}",
            repr(version),
            next_command=f'set nvidia_driver_branch: "{version.partition(".")[0]}" as well',
        )
    if merged.get("nvidia_driver_flavour") == "proprietary" and branch.isdigit() and int(branch) >= 615:
        yield Finding(
            "nvidia_driver_flavour",
            "open (from branch 615 on there are only open modules)",
            "proprietary",
        )
