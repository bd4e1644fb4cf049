"""A deploy that changes what the proxy reads: a reload where that does, a restart where it doesn't."""

from __future__ import annotations

import ssl

import httpx
import pytest

from lab.fleet import read_secrets
from tests.lab.conftest import SUITE_LAB
from tests.lab.test_leaks import self_signed
from tests.lab.test_site import WARM, Door, changes_of, host_vars

LIFE = "systemctl show -p MainPID,NRestarts,ActiveEnterTimestampMonotonic drover-proxy"
PROXY = "deploys/proxy.py"


@pytest.fixture
def host(lab, site):
    """The host with one GPU."""
    assert site["first"].rc == 0, site["first"].output[-4000:]
    return next(host for host in lab.hosts if host.short_name == "c")


@pytest.fixture
def deploy(host, run_pyinfra):
    """Deploy the proxy of that host; return the names of the operations that changed something."""

    def run():
        done = run_pyinfra("--limit", host.name, deploy=PROXY)
        assert done.rc == 0, done.output[-4000:]
        return {line.rpartition(" | ")[2].split("...")[0].strip() for line in changes_of(done)}

    yield run
    run()


def test_a_changed_model_or_limit_is_a_reload(host, fleet_dir, deploy):
    """The same process answers by the new settings as soon as the deploy has ended; then nothing changes."""
    door = Door(host.address, read_secrets(SUITE_LAB)["use"])
    assert door.chat("by-another-name")[0] == 404
    life = host.run(LIFE).stdout
    models = [{"name": WARM, "warm": True, "aliases": ["by-another-name"]}]
    with host_vars(fleet_dir, host, models_list=models, proxy_max_body_mib=1):
        assert deploy() == {"Place the settings, checked", "Open the door"}
        assert door.chat("by-another-name")[0] == 200
        assert door.ask("/api/generate", {"model": WARM, "prompt": "x" * (1 << 20)})[0] == 413
        assert deploy() == set()
        host.run("systemctl reload drover-proxy")
        assert deploy() == set()
    assert deploy() == {"Place the settings, checked", "Open the door"}
    assert door.chat("by-another-name")[0] == 404
    assert host.run(LIFE).stdout == life


def test_tls_begins_with_a_restart_and_a_broken_certificate_closes_no_door(
    host, fleet_dir, deploy, run_pyinfra
):
    """What the proxy refuses fails the deploy in its words, each time, and it serves on as it was."""
    certificate, key = self_signed(host.address)
    renewed, renewed_key = self_signed(host.address)
    life = host.run(LIFE).stdout

    def shown():
        return ssl.get_server_certificate((host.address, 8080), timeout=10).strip()

    with host_vars(fleet_dir, host, proxy_tls_cert=certificate, proxy_tls_key=key):
        assert "Open the door" in deploy()
        assert deploy() == set()
    assert shown() == certificate.strip()
    assert host.run(LIFE).stdout != life
    life = host.run(LIFE).stdout

    with host_vars(fleet_dir, host, proxy_tls_cert=renewed, proxy_tls_key=key):
        for _ in range(2):
            done = run_pyinfra("--limit", host.name, deploy=PROXY)
            assert done.rc != 0
            assert "/etc/drover/tls/cert.pem, /etc/drover/tls/key.pem: tls.cert, tls.key: " in done.output
            assert "nothing was changed: the last good configuration stays" in done.output
            by_hand = host.run("systemctl reload drover-proxy", check=False)
            assert by_hand.returncode != 0
            assert "nothing was changed" in host.run("journalctl -b -o cat -u drover-proxy | tail").stdout
    assert shown() == certificate.strip()
    with host_vars(fleet_dir, host, proxy_tls_cert=renewed, proxy_tls_key=renewed_key):
        assert deploy() == {"Place the certificate's key", "Open the door"}
        assert shown() == renewed.strip()
        assert deploy() == set()
    assert host.run(LIFE).stdout == life

    with host_vars(fleet_dir, host, proxy_tls_cert=renewed, proxy_tls_key=key):
        host.run("echo another >/run/drover/started/drover-proxy.service")  # as one of an older release
        done = run_pyinfra("--limit", host.name, deploy=PROXY)
        assert done.rc != 0
        assert "tls.cert, tls.key: " in done.output
        assert "not restarted: " in done.output
    assert shown() == renewed.strip()
    assert host.run(LIFE).stdout == life

    assert "Open the door" in deploy()
    assert host.run(LIFE).stdout != life
    assert httpx.get(f"http://{host.address}:8080/api/tags").status_code == 401
