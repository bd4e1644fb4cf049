"""What follows from a lab's name: subnet, addresses, the names of links and namespaces."""

from __future__ import annotations

import pytest

from lab.hosts import LabError, network, spec
from lab.hosts.paths import LabPaths
from lab.hosts.profiles import ProfileHost
from lab.hosts.supervisor import children_of, mirror_command

HOSTS = (ProfileHost("a", ({"model": "L4"},)), ProfileHost("b", ()))


@pytest.fixture
def two(tmp_path):
    """A lab of two hosts."""
    return spec.make("lab", tmp_path / "base", HOSTS, mirror_root="/srv/mirror")


@pytest.mark.parametrize("name", ["lab", "mol", "a", "a123456789"])
def test_names_that_can_be_a_lab(name):
    """One to ten lowercase letters and digits."""
    assert spec.check_name(name) == name


@pytest.mark.parametrize("name", ["", "Lab", "a-b", "1a", "a1234567890", "a/b", ".."])
def test_names_that_can_be_no_lab(name):
    """A name that would not fit into an interface's name, or would leave the state folder, is refused."""
    with pytest.raises(LabError, match="a lab's name is 1 to 10"):
        spec.check_name(name)


def test_interface_names_fit(tmp_path):
    """The longest name of a lab with as many hosts as a profile may have stays within 15 characters."""
    many = tuple(ProfileHost(f"h{index}", ()) for index in range(80))
    lab = spec.make("a123456789", tmp_path, many)
    assert max(len(name) for name in [lab.bridge, *map(lab.veth, lab.hosts)]) <= 15
    assert all(network.is_cable(lab.name, lab.veth(host)) for host in lab.hosts)


def test_the_subnet_follows_from_the_name():
    """The same name has always the same subnet, within what 10.87.n.0/24 can be."""
    assert spec.subnet_of("lab") == spec.subnet_of("lab")
    subnets = {spec.subnet_of(f"l{index}") for index in range(500)}
    assert min(subnets) >= 1
    assert max(subnets) <= 254
    assert len(subnets) > 150


def test_addresses_and_identities(two):
    """Hosts count from .11, have the lab's name in front, and machine ids of their own."""
    assert [host.name for host in two.hosts] == ["lab-a", "lab-b"]
    assert [host.address.rsplit(".", 1)[1] for host in two.hosts] == ["11", "12"]
    assert two.gateway.endswith(".1")
    assert len({host.machine_id for host in two.hosts}) == 2
    assert all(len(host.machine_id) == 32 for host in two.hosts)


def test_a_spec_survives_being_written(two, tmp_path, monkeypatch):
    """What is read back is what was written."""
    monkeypatch.setattr("lab.hosts.paths.STATE", tmp_path)
    paths = LabPaths("lab")
    paths.state.mkdir()
    two.save(paths)
    assert spec.load("lab") == two


def test_a_lab_that_is_not_up_says_how_to_boot_it(tmp_path, monkeypatch):
    """Asking for a lab that isn't there names the command that makes it."""
    monkeypatch.setattr("lab.hosts.paths.STATE", tmp_path)
    with pytest.raises(LabError, match=r"isn't up(.|\n)*python -m lab up --name gone"):
        spec.load("gone")


def test_hosts_are_found_by_both_names(two):
    """`a` and `lab-a` are the same host; another name is answered with those there are."""
    assert two.host("a") is two.host("lab-a")
    with pytest.raises(LabError, match="host 'x': not in the lab 'lab', which has lab-a, lab-b"):
        two.host("x")


@pytest.mark.parametrize(
    ("links", "routes", "namespaces", "said"),
    [
        (["lo", "dlab-lab"], [], [], "link dlab-lab is there"),
        (["dvlab-11"], [], [], "link dvlab-11 is there"),
        ([], [{"dst": "10.0.0.0/8", "dev": "tun0"}], [], "overlaps 10.0.0.0/8 on tun0"),
        ([], [{"dst": "10.87.166.44", "dev": "eth9"}], [], "overlaps 10.87.166.44 on eth9"),
        ([], [], ["dlab-lab-b"], "namespace dlab-lab-b is there"),
    ],
)
def test_what_is_taken_is_named(two, links, routes, namespaces, said):
    """A link, a subnet or a namespace that someone has already stands in the way, and is named."""
    assert said in network.taken(two, links, routes, namespaces)


def test_what_is_free_is_not_refused(two):
    """Other labs, other subnets and the default route don't stand in the way."""
    routes = [{"dst": "default", "dev": "eth0"}, {"dst": "192.168.0.0/16"}, {"dst": "10.87.1.0/24"}]
    assert network.taken(two, ["lo", "dlab-la", "dvla-11", "dvlab2-11"], routes, ["dlab-lab2-a"]) is None


def test_boot_commands(two):
    """Each host boots from its own folder into its own namespace; under systemd, in a scope of its own."""
    paths = LabPaths("lab")
    plain = children_of(two, paths, under_systemd=False)
    assert list(plain) == ["mirror", "lab-a", "lab-b"]
    command = plain["lab-a"].command
    assert command[0] == "systemd-nspawn"
    assert "--network-namespace-path=/run/netns/dlab-lab-a" in command
    assert f"--directory={paths.root('lab-a')}" in command
    scoped = children_of(two, paths, under_systemd=True)["lab-a"].command
    assert scoped[:2] == ["systemd-run", "--scope"]
    assert scoped[-len(command) :] == command


def test_the_mirror_listens_on_the_labs_address_only(two):
    """The mirror binds to the bridge's address and gets its password by file, not on its command line."""
    command = mirror_command(two, LabPaths("lab"))
    assert command[command.index("--bind") + 1] == two.gateway
    assert command[command.index("--auth-file") + 1].endswith("mirror.auth")
