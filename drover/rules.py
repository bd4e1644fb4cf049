"""Rules between variables that no schema can say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from drover import catalogue
from drover.checks import Finding
from drover.serving_rules import serving_checks

DIGEST = re.compile("[0-9a-f]{64}")
SSH_KEY = re.compile(r"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA[A-Za-z0-9+/]{44}( .*)?")
CERTIFICATE = re.compile(r"sha256:([0-9a-fA-F]{2}:?){32}|(cn|dns|uri|email):[^*]+")


def cross_checks(merged: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is wrong between variables; called only when each alone is right."""
    for rule in (_mirror, _driver, _ollama, _models, _proxy, serving_checks):
        yield from rule(merged)


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


def _ollama(merged: Mapping[str, Any]) -> Iterator[Finding]:
    if not merged.get("ollama_enabled"):
        return
    version, digest = merged["ollama_version"], merged["ollama_archive_sha256"]
    checksums = merged["ollama_archive_checksums"]
    if not (digest or checksums.get(version) or catalogue.load()["ollama"].get(version)):
        listed = ", ".join(catalogue.load()["ollama"])
        yield Finding(
            "ollama_version",
            f"a version whose digest is known (versions.yml has {listed})",
            repr(version),
            next_command="set ollama_archive_sha256 from sha256sum.txt of its release",
        )
    named = [(f"ollama_archive_checksums.{key}", value) for key, value in checksums.items()]
    for path, value in (("ollama_archive_sha256", digest), *named):
        if value and not DIGEST.fullmatch(str(value)):
            yield Finding(path, "64 hexadecimal digits in lower case", repr(value))
    if merged["ollama_kv_cache_type"] != "f16" and merged["ollama_flash_attention"] == "disabled":
        yield Finding(
            "ollama_kv_cache_type",
            "f16 where flash attention is disabled (a quantised cache needs it)",
            repr(merged["ollama_kv_cache_type"]),
        )
    yield from _twice("ollama_instances", [entry["name"] for entry in merged["ollama_instances"]])
    yield from _twice("ollama_instances", [str(entry["port"]) for entry in merged["ollama_instances"]])


def _twice(path: str, values: list[str]) -> Iterator[Finding]:
    """Find what stands twice in a list where each entry must differ."""
    for value in sorted({value for value in values if values.count(value) > 1}):
        yield Finding(path, "each entry once", f"{value!r} {values.count(value)} times")


def _models(merged: Mapping[str, Any]) -> Iterator[Finding]:
    models = merged.get("models_list") or []
    aliases = [alias for entry in models for alias in entry.get("aliases") or []]
    yield from _twice("models_list", [*(entry["name"] for entry in models), *aliases])
    most = merged.get("ollama_num_parallel")
    for entry in models:
        path = f"models_list[{entry['name']}]"
        if most is not None and (entry.get("slots") or 0) > most:
            yield Finding(f"{path}.slots", f"at most ollama_num_parallel ({most})", str(entry["slots"]))
        if not -100 <= (entry.get("priority") or 0) <= 100:
            yield Finding(f"{path}.priority", "a number from -100 to 100", str(entry["priority"]))


def _key(entry: Mapping[str, Any]) -> Iterator[Finding]:
    """Check what a caller is known by; what stands there in error may be a secret, and isn't shown."""
    shapes = {
        "sha256": (DIGEST, "the SHA-256 of the key, 64 hexadecimal digits in lower case"),
        "ssh": (SSH_KEY, "an ed25519 public key: ssh-ed25519 AAAA..., as in id_ed25519.pub"),
        "certificate": (CERTIFICATE, "sha256:DIGEST, cn:NAME, dns:NAME, uri:URI or email:ADDRESS"),
    }
    where = f"proxy_keys[{entry['name']}]"
    if not any(entry.get(field) for field in shapes):
        yield Finding(
            where, f"one of {', '.join(shapes)}", "none of them", next_command="drover-proxy keys add"
        )
    for field, (shape, expected) in shapes.items():
        if entry.get(field) and not shape.fullmatch(entry[field]):
            command = "drover-proxy keys import-ssh" if field == "ssh" else "drover-proxy keys add"
            yield Finding(f"{where}.{field}", expected, "something else (hidden)", next_command=command)


def _proxy(merged: Mapping[str, Any]) -> Iterator[Finding]:
    keys = merged.get("proxy_keys") or []
    yield from _twice("proxy_keys", [entry["name"] for entry in keys])
    for entry in keys:
        yield from _key(entry)
    authority = merged.get("proxy_tls_client_ca")
    if not authority and (named := [entry["name"] for entry in keys if entry.get("certificate")]):
        expected = "proxy_tls_client_ca too: without it, no client is asked for a certificate"
        yield Finding(f"proxy_keys[{named[0]}].certificate", expected, "none")
    if authority and not merged.get("proxy_tls_cert"):
        yield Finding("proxy_tls_client_ca", "proxy_tls_cert and proxy_tls_key beside it", "neither of them")
    if bool(merged.get("proxy_tls_cert")) != bool(merged.get("proxy_tls_key")):
        yield Finding("proxy_tls_cert", "proxy_tls_cert and proxy_tls_key together", "only one of them")
    reserve, target = merged.get("proxy_reserve_mib"), merged.get("ollama_fit_target_mib")
    if reserve is not None and target is not None and reserve < target:
        yield Finding("proxy_reserve_mib", f"at least ollama_fit_target_mib ({target})", str(reserve))
