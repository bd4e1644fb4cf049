"""The mirror and the simulated kernel, seen from real hosts: apt's trust, drivers that bind or don't."""

from __future__ import annotations

import pytest
import yaml

from lab.fleet import read_secrets
from lab.hosts import Lab
from lab.mirror import faults
from tests.support import eventually

NAME = "mirr"
PROFILE = {
    "hosts": [
        {"name": "l", "gpus": [{"model": "L4"}, {"model": "L4"}]},
        {"name": "v", "gpus": [{"model": "V100"}]},
        {"name": "r", "gpus": [{"model": "RTX5090"}]},
    ]
}
SETUP = """
set -e
umask 077
printf 'machine http://mirror:8088 login %s password %s\\n' "$1" "$2" > /etc/apt/auth.conf.d/lab.conf
umask 022
install -d /etc/apt/keyrings
curl -sf -u "$1:$2" -o /etc/apt/keyrings/lab.gpg http://mirror:8088/apt/drover-lab.gpg
echo 'deb [signed-by=/etc/apt/keyrings/lab.gpg] http://mirror:8088/apt/ /' > /etc/apt/sources.list.d/lab.list
"""
UPDATE = "apt-get -q -o APT::Update::Error-Mode=any update"
INSTALL = "DEBIAN_FRONTEND=noninteractive apt-get -qy --no-install-recommends install "
OPEN, PROPRIETARY = "nvidia-kernel-open-dkms", "nvidia-kernel-dkms"


@pytest.fixture(scope="module")
def module_lab(tmp_path_factory):
    """A lab of three hosts whose GPUs need different drivers."""
    profile = tmp_path_factory.mktemp("mirror") / "profile.yaml"
    profile.write_text(yaml.safe_dump(PROFILE))
    with Lab(NAME) as lab:
        lab.down()
        yield lab.up(3, profile)


@pytest.fixture
def host(module_lab):
    """Return a fresh host by its name, with the mirror as its only source of packages."""
    known = read_secrets(NAME)
    login = (known["mirror_username"], known["mirror_password"])

    def fresh(name, *, update=True):
        one = module_lab.reset(name)
        one.run(["bash", "-s", *login], stdin=SETUP)
        if update:
            one.run(UPDATE)
        return one

    yield fresh
    faults.set_fault(module_lab.paths.mirror, "clear")


@pytest.fixture
def fault(module_lab):
    """Let the mirror do wrong."""
    return lambda name: faults.set_fault(module_lab.paths.mirror, name)


def install(host, *names, headers=True):
    """Install packages as an operator does; with the running kernel's headers first."""
    if headers:
        host.run(INSTALL + "linux-headers-$(uname -r)")
    return host.run(INSTALL + " ".join(names))


def test_apt_trusts_the_mirror_by_its_key_only(host, module_lab):
    """With key and login the lists are read; with another key, or without the login, they are not."""
    one = host("l")
    assert "nvidia-open" in one.run("apt-cache madison nvidia-open").stdout
    one.run("rm -rf /var/lib/apt/lists/*; mv /etc/apt/auth.conf.d/lab.conf /root/")
    refused = one.run(UPDATE, check=False)
    assert refused.returncode == 100
    assert "401" in refused.stdout + refused.stderr
    one.run("mv /root/lab.conf /etc/apt/auth.conf.d/")
    other = "/usr/share/keyrings/debian-archive-keyring.gpg"
    one.run(f"sed -i 's,signed-by=[^]]*,signed-by={other},' /etc/apt/sources.list.d/lab.list")
    refused = one.run(UPDATE, check=False)
    assert refused.returncode == 100
    assert "NO_PUBKEY" in refused.stdout + refused.stderr


@pytest.mark.parametrize(("kind", "says"), [("tampered", "BADSIG"), ("unsigned", "signed")])
def test_a_repository_that_cannot_be_verified_is_refused(host, fault, kind, says):
    """Changed or unsigned lists end in 100, and the good ones are read again once they are back."""
    one = host("l")
    fault(kind)
    refused = one.run(UPDATE, check=False)
    assert refused.returncode == 100
    assert says in refused.stdout + refused.stderr
    fault("clear")
    assert one.run(UPDATE).returncode == 0


def test_a_spoiled_archive_does_not_match_its_checksum(host, fault):
    """The release that is served differs from its sha256sum.txt, and only while the fault is on."""
    one = host("v")
    check = (
        "cd /tmp && for f in ollama-linux-amd64.tar.zst sha256sum.txt; do "
        "curl -sf --netrc-file <(sed 's,http://,,;s,:8088,,' /etc/apt/auth.conf.d/lab.conf) -O "
        "http://mirror:8088/ollama/v0.33.0/$f || exit 9; done; sha256sum -c sha256sum.txt"
    )
    assert one.run(["bash", "-c", check]).returncode == 0
    fault("corrupt-ollama")
    assert one.run(["bash", "-c", check], check=False).returncode == 1


def test_a_driver_that_fits_binds_and_comes_back_after_a_reboot(host):
    """Module, device nodes, nvidia-smi and persistence; after a boot the module is loaded by itself."""
    one = host("l")
    install(one, "nvidia-driver-pinning-580")
    install(one, "nvidia-driver-cuda", OPEN, "nvidia-persistenced")
    assert ": installed" in one.run("dkms status").stdout
    one.run("modprobe nvidia && modprobe nvidia-uvm")
    assert one.run("nvidia-smi -L").stdout.count("NVIDIA L4") == 2
    assert one.run("cat /sys/module/nvidia/version").stdout == "580.159.03\n"
    one.run("test -c /dev/nvidia1 && test -c /dev/nvidiactl && test -c /dev/nvidia-uvm")
    one.run("systemctl reset-failed nvidia-persistenced && systemctl restart nvidia-persistenced")
    one.run("nvidia-smi -pm 1")
    query = "nvidia-smi --query-gpu=persistence_mode --format=csv,noheader"
    assert one.run(query).stdout == "Enabled\nEnabled\n"
    one.reboot()
    assert one.run("nvidia-smi -L").stdout.count("NVIDIA L4") == 2
    assert one.run("test -e /dev/nvidia-uvm", check=False).returncode == 1  # nobody asked for it at boot
    assert eventually(
        lambda: "active" in one.run("systemctl is-active nvidia-persistenced", check=False).stdout
    )


@pytest.mark.parametrize(
    ("name", "wrong", "right", "says"),
    [
        ("v", OPEN, PROPRIETARY, "is not supported by open"),
        ("r", PROPRIETARY, OPEN, "requires use of the NVIDIA open kernel modules"),
    ],
)
def test_the_wrong_flavour_installs_and_does_not_bind(host, name, wrong, right, says):
    """Apt is content, the kernel isn't, nvidia-smi ends with 9; the right flavour in its place works."""
    one = host(name)
    install(one, "nvidia-driver-pinning-580")
    assert install(one, "nvidia-driver-cuda", wrong).returncode == 0
    assert ": installed" in one.run("dkms status").stdout
    loading = one.run("modprobe nvidia", check=False)
    assert loading.returncode == 1
    assert "No such device" in loading.stderr
    assert says in one.run("dmesg").stdout
    smi = one.run("nvidia-smi", check=False)
    assert smi.returncode == 9
    assert "couldn't communicate with the NVIDIA driver" in smi.stdout
    assert one.run("ls /dev/nvidia0", check=False).returncode != 0
    install(one, right, f"{wrong}-")
    one.run("modprobe nvidia")
    assert one.run("nvidia-smi -L").stdout.startswith("GPU 0: ")


def test_without_headers_apt_succeeds_and_nothing_is_built(host):
    """The trap of DKMS: exit code 0 and no module; the headers mend it."""
    one = host("l")
    done = install(one, "nvidia-driver-cuda", OPEN, headers=False)
    assert done.returncode == 0
    assert "headers for this kernel do not seem to be installed" in done.stdout
    assert one.run("dkms status").stdout.strip().endswith(": added")
    assert one.run("modinfo nvidia", check=False).returncode == 1
    install(one)
    assert ": installed" in one.run("dkms status").stdout


def test_an_upgrade_needs_a_reload_and_a_reboot_is_one(host):
    """New library over the old module is error 18; a pin chooses the version, and holds it."""
    one = host("l")
    install(one, "nvidia-driver-pinning-580.126.20")
    install(one, "nvidia-driver-cuda", OPEN)
    one.run("modprobe nvidia")
    assert one.run("cat /sys/module/nvidia/version").stdout == "580.126.20\n"
    held = one.run(INSTALL + "nvidia-driver-cuda=595.45.04-1", check=False)
    assert held.returncode == 100
    install(one, "nvidia-driver-pinning-595", "nvidia-driver-pinning-580.126.20-")
    install(one, "nvidia-driver-cuda", OPEN)
    assert one.run("modinfo -F version nvidia").stdout == "595.45.04\n"
    smi = one.run("nvidia-smi", check=False)
    assert smi.returncode == 18
    assert "Driver/library version mismatch" in smi.stdout
    one.reboot()
    query = "nvidia-smi --query-gpu=driver_version --format=csv,noheader"
    assert one.run(query).stdout == "595.45.04\n" * 2


def test_a_driver_in_use_is_not_unloaded(host):
    """As long as a process holds GPU memory, rmmod refuses."""
    one = host("l")
    install(one, "nvidia-driver-cuda", OPEN)
    one.run("modprobe nvidia")
    one.run("systemd-run --unit=holder sleep infinity")
    pid = one.run("systemctl show -P MainPID holder").stdout.strip()
    claim = f"import state; state.claim(None, 0, {pid}, 1 << 30)"
    one.run(["python3", "-B", "-c", f"import sys; sys.path.insert(0, '/usr/lib/labgpu'); {claim}"])
    assert (
        one.run("nvidia-smi --query-compute-apps=used_gpu_memory --format=csv,noheader").stdout
        == "1024 MiB\n"
    )
    refused = one.run("rmmod nvidia", check=False)
    assert refused.returncode == 1
    assert "Module nvidia is in use" in refused.stderr
    one.run("systemctl kill -s KILL holder")
    eventually(lambda: one.run("rmmod nvidia", check=False).returncode == 0)


def test_the_toolkit_comes_at_one_version_and_describes_the_gpus(host):
    """Four packages that depend on each other exactly; CDI names every GPU."""
    one = host("l")
    install(one, "nvidia-driver-cuda", OPEN)
    one.run("modprobe nvidia")
    install(one, "nvidia-container-toolkit=1.19.1-1", *(
        f"{name}=1.19.1-1"
        for name in ("nvidia-container-toolkit-base", "libnvidia-container-tools", "libnvidia-container1")
    ))  # fmt: skip
    assert "version 1.19.1" in one.run("nvidia-ctk --version").stdout
    partial = one.run(
        INSTALL + "nvidia-container-toolkit-base=1.20.0-1 nvidia-container-toolkit=1.19.1-1", check=False
    )
    assert partial.returncode == 100
    one.run("nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml")
    names = one.run("nvidia-ctk cdi list").stdout.split()
    assert {"nvidia.com/gpu=0", "nvidia.com/gpu=1", "nvidia.com/gpu=all"} <= set(names)
    assert len([name for name in names if name.startswith("nvidia.com/gpu=GPU-")]) == 2
    content = yaml.safe_load(one.run("cat /etc/cdi/nvidia.yaml").stdout)
    assert (content["cdiVersion"], content["kind"], len(content["devices"])) == ("0.7.0", "nvidia.com/gpu", 5)


def test_faults_reach_programs_on_the_host(host):
    """A GPU falls off the bus: nvidia-smi ends with 15, the kernel logs the XID."""
    one = host("l")
    install(one, "nvidia-driver-cuda", OPEN)
    one.run("modprobe nvidia && labgpu-fault gpu1 lost")
    assert one.run("nvidia-smi -L", check=False).returncode == 15
    assert "NVRM: Xid (PCI:0000:11:00): 79" in one.run("dmesg").stdout
    one.run("labgpu-fault all clear")
    assert one.run("nvidia-smi -L").returncode == 0
    one.run("labgpu-fault gpu1 xid=31")
    assert "Xid (PCI:0000:11:00): 31" in one.run("dmesg").stdout
