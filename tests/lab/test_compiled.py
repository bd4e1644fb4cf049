"""The proxy as machine code on a real host: what serves, switching there and back, a broken build."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import zipfile
from contextlib import contextmanager

import pytest

from deploys.lib import compiled, wheelhouse
from lab.fleet import read_secrets
from tests.lab.conftest import SUITE_LAB
from tests.lab.test_restart import log_of
from tests.lab.test_site import WARM, Door, changes_of, host_vars
from tests.proxy.systemd import Traffic
from tests.support import eventually

# A switch lays a release or finds it, points to it, and restarts what runs from the other one.
SWITCHING = {
    "Have the release, installed offline",
    "Point to the release",
    "Open the door",
    "Record what is there",
}
LIBRARY = "drover_proxy__mypyc"


def target_of(host):
    """Return what the compiled proxy has to be for this host, and what keeps this machine from making it."""
    python = host.run("python3 -c 'import sys; print(\"%d.%d\" % sys.version_info[:2])'").stdout.strip()
    libc = host.run("getconf GNU_LIBC_VERSION").stdout.removeprefix("glibc").strip()
    target = wheelhouse.Target(python, host.run("dpkg --print-architecture").stdout.strip(), compiled=True)
    return target, compiled.lacking(python, target.machine, libc)


def build_of(host):
    """Return the build that the proxy says it is, having seen that its server has just that mapped."""
    build = json.loads(host.run("curl -fs http://127.0.0.1:8081/drover/v1/state").stdout)["build"]
    main = host.run("systemctl show -p MainPID --value drover-proxy").stdout.strip()
    server = host.run(f"pgrep -P {main}").stdout.split()
    assert len(server) == 1, "the one that serves"
    mapped = host.run(f"cat /proc/{server[0]}/maps").stdout
    assert "uvloop" in mapped
    assert (LIBRARY in mapped) == (build == "compiled"), mapped
    assert json.loads(host.run("cat /var/lib/drover/record/proxy.json").stdout)["build"] == build
    return build


@pytest.fixture
def host(lab, site):
    """The host with one GPU, for which this machine can compile."""
    assert site["first"].rc == 0, site["first"].output[-4000:]
    found = next(host for host in lab.hosts if host.short_name == "c")
    if reason := target_of(found)[1]:
        pytest.skip(f"this machine can't compile for the lab's hosts: {reason}")
    return found


@pytest.fixture
def deploy(host, run_pyinfra):
    """Run a deploy on that host, and return the names of the operations that changed something."""

    def run(file="deploys/proxy.py"):
        done = run_pyinfra("--limit", host.name, deploy=file)
        assert done.rc == 0, done.output[-4000:]
        return {line.rpartition(" | ")[2].split("...")[0].strip() for line in changes_of(done)}

    return run


def chat(host):
    """Chat through the host's door; return the status."""
    return Door(host.address, read_secrets(SUITE_LAB)["use"]).chat(WARM)[0]


def test_the_default_is_machine_code_wherever_it_can_be_made(lab, site):
    """Elsewhere it is the pure wheel, and the run says so in one line; a dry run compiles nothing."""
    first, plan = site["first"], site["plan"]
    assert first.rc == 0, first.output[-4000:]
    for host in lab.hosts:
        reason = target_of(host)[1]
        assert build_of(host) == ("interpreted" if reason else "compiled")
        for done in (plan, first):
            assert done.output.count("The proxy isn't compiled for") == bool(reason)
        assert chat(host) == 200
    assert "compiling the proxy" not in plan.output


@pytest.mark.timeout(300)
def test_switching_there_and_back_loses_no_request(host, fleet_dir, deploy):
    """The door is handed over under load; afterwards no layer has anything to change, insisting or not."""
    target, _ = target_of(host)
    pure = wheelhouse.Target(target.python, target.architecture, compiled=False)
    # Another test may have laid it already: none of them has a place in the order.
    host.run(f"rm -rf /opt/drover/proxy/{wheelhouse.release_name(pure)}")
    traffic = Traffic(8080, host=host.address, key=read_secrets(SUITE_LAB)["use"])
    traffic.start(streams=2, tokens=1000)
    try:
        with host_vars(fleet_dir, host, proxy_compiled=False):
            assert deploy() == SWITCHING
            assert build_of(host) == "interpreted"
            assert chat(host) == 200
            assert deploy() == set()
        assert deploy() == SWITCHING - {"Have the release, installed offline"}, "it was still there"
    finally:
        traffic.stop()

    assert not traffic.faults, log_of(host, "instance_down")
    assert set(traffic.streams) == {1001}
    assert host.run("systemctl show -p NRestarts --value drover-proxy").stdout.strip() == "0"
    assert build_of(host) == "compiled"
    assert chat(host) == 200
    with host_vars(fleet_dir, host, proxy_compiled=True):
        assert deploy("deploys/site.py") == set(), "what auto chose"


@pytest.mark.timeout(300)
def test_a_build_that_doesnt_start_is_never_switched_to(host, fleet_dir, deploy, run_pyinfra):
    """Where its library can't be loaded, the old proxy serves on and nothing of the new one stays."""
    target, _ = target_of(host)
    release = f"/opt/drover/proxy/{wheelhouse.release_name(target)}"
    with host_vars(fleet_dir, host, proxy_compiled=False):
        deploy()
    host.run(f"rm -r {release}")
    life = "systemctl show -p MainPID,NRestarts drover-proxy"
    before = host.run(life).stdout

    for harm, words in ((overwritten, "invalid ELF header"), (of_another_python, "it is drover-proxy")):
        host.run(f"rm -f {release}.failed")
        with damaged(wheelhouse.bundle(target), harm):
            done = run_pyinfra("--limit", host.name, deploy="deploys/proxy.py")
        assert done.rc != 0
        assert words in done.output, done.output[-3000:]
        assert "compiled, doesn't start on this host; the one before stays" in done.output
        assert "Next: run again, and this host gets the pure wheel" in done.output
        assert words in host.run(f"cat {release}.failed").stdout
        assert host.run(life).stdout == before
        assert build_of(host) == "interpreted"
        assert chat(host) == 200
        assert host.run(f"ls -d {release}", check=False).returncode != 0

    again = run_pyinfra("--limit", host.name, deploy="deploys/proxy.py")
    assert again.rc == 0, again.output[-3000:]
    assert again.output.count(f"The proxy isn't compiled for {host.name} (it didn't start there") == 1
    assert changes_of(again) == [], "it has the pure wheel"

    host.run(f"rm {release}.failed")
    assert deploy() == SWITCHING, "the pure build of the same sources isn't what is wanted"
    assert build_of(host) == "compiled"
    assert host.run(f"ls {release}.failed", check=False).returncode != 0
    assert eventually(lambda: chat(host) == 200)


def overwritten(name, data):
    """Leave something in the library's place that is none."""
    return name, b"harmed " * 1000 if LIBRARY in name else data


def of_another_python(name, data):
    """Give machine code the names that another Python's has, so that this one passes it over."""
    return name.replace(".cpython-3", ".cpython-2"), data


@contextmanager
def damaged(bundle, harm):
    """Have a bundle whose wheel is harmed, with the digest that fits it, for a while."""
    kept = bundle.with_suffix(".kept")
    shutil.copy2(bundle, kept)
    try:
        with tarfile.open(kept) as old, tarfile.open(bundle, "w") as new:
            members = sorted(old.getmembers(), key=lambda member: member.name == "requirements.txt")
            for member in members:
                data = old.extractfile(member).read()
                if member.name.startswith("drover_proxy-"):
                    was = hashlib.sha256(data).hexdigest()
                    data = harmed(data, harm)
                    now = hashlib.sha256(data).hexdigest()
                if member.name == "requirements.txt":
                    data = data.replace(was.encode(), now.encode())
                member.size = len(data)
                new.addfile(member, io.BytesIO(data))
        yield
    finally:
        kept.replace(bundle)


def harmed(wheel, harm):
    """Return a wheel with each of its shared libraries harmed."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(wheel)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(*(harm(name, old.read(name)) if name.endswith(".so") else (name, old.read(name))))
    return made.getvalue()
