"""No secret may be seen by anyone it isn't meant for: output, diffs, journals, process lists, readable files.

Every secret of the session's fleet is random and stands nowhere else, so each is its own canary. They are
searched for as they are and as base64, on the controller and on every host.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest
import yaml
from ansible.parsing.vault import VaultLib, VaultSecret
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

PROJECT = Path(__file__).resolve().parents[2]
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]

# Runs as nobody and reads the canaries from its standard input: prints each readable file that holds one.
SEARCH = r"""
import json, os, sys
wanted, roots = json.load(sys.stdin)
wanted = [w.encode() for w in wanted]
for root in roots:
    for folder, folders, files in os.walk(root):
        if folder.startswith(("/proc", "/sys", "/dev/")) and not folder.startswith("/dev/shm"):
            folders[:] = []
            continue
        for name in files:
            path = os.path.join(folder, name)
            try:
                if not os.path.isfile(path) or os.path.islink(path) or os.path.getsize(path) > 4_000_000:
                    continue
                with open(path, "rb") as file:
                    text = file.read()
            except OSError:
                continue
            if any(w in text for w in wanted):
                print(path)
"""


def spellings(secret: str) -> list[str]:
    """Return how a secret may stand in a text: plain, and inside base64 at each of its three alignments."""
    found = [secret]
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + secret.encode()).decode().rstrip("=")
        # The first and last characters depend on the neighbours.
        found.append(encoded[4 : len(encoded) - 2])
    return found


@pytest.fixture
def canaries(lab, fleet_dir) -> dict[str, str]:
    """Every secret of the fleet and of its users, by name."""
    from drover.inventory import Fleet
    from lab.fleet import read_secrets

    known = read_secrets(lab.name)
    variables = Fleet.load(fleet_dir).host_vars(lab.hosts[0].name)
    found = {
        "key of a user": known["use"],
        "key of an admin": known["admin"],
        "password of the vault": known["vault_password"],
        "password of the mirror": variables["mirror_password"],
    }
    found |= {f"hash of the key {key['name']}": key["sha256"] for key in variables["proxy_keys"]}
    assert all(len(value) > 20 for value in found.values())
    return found


@pytest.fixture
def tls_host(site, lab, fleet_dir, run_pyinfra, canaries) -> Iterator[object]:
    """The last host, whose fleet entry gives its door a certificate and, in the vault, a private key."""
    host = lab.hosts[-1]
    certificate, key = self_signed(host.address)
    canaries["private key of the door"] = key.splitlines()[2]
    vault = VaultLib([("default", VaultSecret(canaries["password of the vault"].encode()))])
    file = fleet_dir / "host_vars" / f"{host.name}.yml"
    file.parent.mkdir(exist_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as written:
        written.write(vault.encrypt(yaml.safe_dump({"proxy_tls_cert": certificate, "proxy_tls_key": key})))
    yield host
    file.unlink()
    assert run_pyinfra("--limit", host.name).rc == 0


def self_signed(address: str) -> tuple[str, str]:
    """Return a certificate for an address and its private key, in PEM."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, address)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode()


@contextmanager
def watched_processes() -> Iterator[set[str]]:
    """Collect the command line of every process while the block runs, those of the lab's hosts included."""
    seen: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit():
                    with suppress(OSError):
                        words = (entry / "cmdline").read_bytes()
                        seen.add(words.replace(b"\0", b" ").decode(errors="replace"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        done.set()
        watcher.join()


def leaked(canaries: dict[str, str], text: str) -> list[str]:
    """Return the names of the secrets that stand in a text."""
    return [name for name, secret in canaries.items() if any(form in text for form in spellings(secret))]


def readable_by_nobody(canaries: dict[str, str], roots: list[str], run) -> list[str]:
    """Return the files under `roots` that everybody may read and that hold a secret."""
    forms = [form for secret in canaries.values() for form in spellings(secret)]
    return run(json.dumps([forms, roots])).splitlines()


@pytest.mark.timeout(900)
def test_no_secret_can_be_seen(tls_host, lab, fleet_dir, run_pyinfra, canaries):
    """A run that lays every secret anew, as talkative as pyinfra can be, shows none of them to anyone."""
    user, wrong = canaries["key of a user"], f"drv_{secrets.token_urlsafe(32)}"
    canaries["a wrong key"] = wrong
    for host in lab.hosts:
        host.run("rm -f /etc/drover/keys.yaml /etc/apt/auth.conf.d/*drover*")

    with watched_processes() as processes:
        planned = run_pyinfra("--dry", "--diff", "-vvv", yes=False)
        done = run_pyinfra("--diff", "-vvv", "--json")
        for host in lab.hosts:
            door = f"{'https' if host == tls_host else 'http'}://{host.address}:8080/api/tags"
            with httpx.Client(verify=host != tls_host) as client:
                assert client.get(door, headers={"Authorization": f"Bearer {user}"}).status_code == 200
                assert client.get(door, headers={"x-api-key": wrong}).status_code == 401

    assert done.rc == 0, done.output
    assert json.loads(done.stdout)["results"]["totals"]["success"] >= 2 * len(lab.hosts)
    assert leaked(canaries, planned.output) == []
    assert leaked(canaries, done.output) == []
    assert leaked(canaries, "\n".join(processes)) == []
    for host in lab.hosts:
        journal = host.run("journalctl --no-pager --all --output=export").stdout
        assert len(journal) > 10_000
        assert leaked(canaries, journal) == [], host.name

        found = readable_by_nobody(canaries, ["/"], lambda text, at=host: on_host(at, text))
        assert found == [], host.name
    here = [str(PROJECT), str(fleet_dir), "/tmp", "/var/tmp", "/var/lib/drover-lab", str(Path.home())]
    assert readable_by_nobody(canaries, here, on_controller) == []


def on_host(host, text: str) -> str:
    """Run the search on a host as nobody."""
    return host.run([*NOBODY, "python3", "-c", SEARCH], stdin=text, timeout=120).stdout


def on_controller(text: str) -> str:
    """Run the search on this machine as nobody."""
    command = [*NOBODY, "/usr/bin/python3", "-c", SEARCH]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
