"""`systemctl restart drover-proxy` on a real host, under load through its door."""

from __future__ import annotations

import json

import pytest

from lab.fleet import read_secrets
from tests.lab.conftest import SUITE_LAB
from tests.proxy.systemd import Traffic
from tests.support import eventually


@pytest.fixture
def host(lab, site):
    """The host with one GPU, whose proxy is as the deploy left it afterwards."""
    assert site["first"].rc == 0, site["first"].output[-4000:]
    return next(host for host in lab.hosts if host.short_name == "c")


def show(host, name, unit="drover-proxy.service"):
    """Return a property of a unit."""
    return host.run(f"systemctl show -p {name} --value {unit}").stdout.strip()


def log_of(host, event):
    """Return the proxy's log lines of one event, of this boot."""
    lines = host.run("journalctl -b -o cat -u drover-proxy.service").stdout.splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return [line for line in found if line["event"] == event]


def test_a_restart_under_load_loses_nothing(host):
    """Requests and streams through the door while it restarts: none is lost or cut, and nobody waits long."""
    traffic = Traffic(8080, host=host.address, key=read_secrets(SUITE_LAB)["use"])
    before = len(log_of(host, "stopped"))
    began = show(host, "MainPID")
    traffic.start(streams=2, tokens=1000)
    try:
        eventually(lambda: len(traffic.answers) > 50)
        for _ in range(3):
            host.run("systemctl restart drover-proxy.service")
            count = len(traffic.answers)
            eventually(lambda count=count: len(traffic.answers) > count + 50, timeout=20)
    finally:
        traffic.stop()

    assert not traffic.faults
    assert set(traffic.streams) == {1001}
    assert max(traffic.answers) < 2
    assert show(host, "MainPID") != began
    assert show(host, "NRestarts") == "0"
    eventually(lambda: host.run("ls /run/drover-proxy").stdout.split() == ["lock"], timeout=60, every=0.5)
    cuts = [line["cut"] for line in log_of(host, "stopped")[before:]]
    assert len(cuts) >= 3
    assert set(cuts) == {0}
    print(f"longest wait {max(traffic.answers):.3f} s of {len(traffic.answers)}")


def test_the_socket_can_be_restarted_too(host):
    """Socket and service restarted together, as by a deploy that changes both: the door opens at once."""
    traffic = Traffic(8080, host=host.address, key=read_secrets(SUITE_LAB)["use"])
    host.run("systemctl restart drover-proxy.socket drover-proxy.service")
    connection = traffic.connection()
    assert traffic.ask(connection, "/api/version")
    connection.close()
    assert not host.failed_units()
