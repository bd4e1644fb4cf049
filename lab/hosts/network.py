"""The lab's network: a bridge on this machine, a network namespace and a cable for each host, no way out."""

from __future__ import annotations

import ipaddress
import json
import re
from pathlib import Path
from typing import Any

from lab.hosts.errors import LabError
from lab.hosts.spec import HostSpec, LabSpec
from lab.hosts.tools import run

NAMESPACES = Path("/run/netns")


def refuse_if_taken(spec: LabSpec) -> None:
    """Refuse to go on when the lab's bridge, subnet, cables or namespaces are someone else's already."""
    links = [link["ifname"] for link in _ip_json("link", "show")]
    if problem := taken(spec, links, _ip_json("-4", "route", "show", "table", "all"), _namespaces()):
        raise LabError(
            f"lab {spec.name!r}: {problem}\n"
            "  why: two labs, or a lab and this machine's own network, may not mix\n"
            f"  next: python -m lab down --name {spec.name} if it is left over; else choose another --name"
        )


def taken(spec: LabSpec, links: list[str], routes: list[dict[str, Any]], namespaces: list[str]) -> str | None:
    """Return what stands in the way of this lab's network, if anything does."""
    if spec.bridge in links:
        return f"a network link {spec.bridge} is there already"
    if cables := [link for link in links if is_cable(spec.name, link)]:
        return f"a network link {cables[0]} is there already"
    wanted = ipaddress.ip_network(spec.network)
    for route in routes:
        destination = str(route.get("dst", ""))
        if not destination[:1].isdigit():
            continue  # `default` leads everywhere and takes nothing
        if ipaddress.ip_network(destination, strict=False).overlaps(wanted):
            return f"its subnet {spec.network} overlaps {destination} on {route.get('dev', 'this machine')}"
    for host in spec.hosts:
        if spec.namespace(host) in namespaces:
            return f"a network namespace {spec.namespace(host)} is there already"
    return None


def is_cable(lab: str, link: str) -> bool:
    """Whether a link is this machine's end of a cable of that lab."""
    return re.fullmatch(rf"dv{re.escape(lab)}-\d\d", link) is not None


def make_bridge(spec: LabSpec) -> None:
    """Make the bridge with the lab's own address on it."""
    _batch(
        f"link add {spec.bridge} type bridge forward_delay 0",
        f"addr add {spec.gateway}/24 dev {spec.bridge}",
        f"link set {spec.bridge} up",
    )


def connect(spec: LabSpec, host: HostSpec) -> None:
    """Make a host's network namespace, with its address on the interface `host0`, and no route out of it."""
    namespace, cable = spec.namespace(host), spec.veth(host)
    run(["ip", "netns", "add", namespace], f"make the network of {host.name}")
    _batch(
        f"link add {cable} type veth peer name host0 netns {namespace}",
        f"link set {cable} master {spec.bridge} up",
    )
    _batch(
        "link set lo up",
        f"addr add {host.address}/24 dev host0",
        "link set host0 up",
        namespace=namespace,
    )


def remove(lab: str) -> list[str]:
    """Remove every link and namespace of a lab, found by their names; return what was removed."""
    removed = []
    for namespace in _namespaces():
        if namespace.startswith(f"dlab-{lab}-"):
            run(["ip", "netns", "delete", namespace], f"remove the namespace {namespace}")
            removed.append(namespace)
    # A cable goes with its namespace, but the kernel takes its time: ask for what is still there, miss none.
    for link in [link["ifname"] for link in _ip_json("link", "show")]:
        if link == f"dlab-{lab}" or is_cable(lab, link):
            try:
                run(["ip", "link", "delete", link], f"remove the link {link}")
            except LabError:
                if any(entry["ifname"] == link for entry in _ip_json("link", "show")):
                    raise
            removed.append(link)
    return removed


def leftovers(lab: str) -> list[str]:
    """Return the links and namespaces of a lab that are there."""
    links = [link["ifname"] for link in _ip_json("link", "show")]
    return [name for name in _namespaces() if name.startswith(f"dlab-{lab}-")] + [
        link for link in links if link == f"dlab-{lab}" or is_cable(lab, link)
    ]


def _namespaces() -> list[str]:
    return sorted(entry.name for entry in NAMESPACES.iterdir()) if NAMESPACES.is_dir() else []


def _ip_json(*arguments: str) -> list[dict[str, Any]]:
    output = run(["ip", "-json", *arguments], "read this machine's network").stdout
    return json.loads(output) if output.strip() else []


def _batch(*commands: str, namespace: str | None = None) -> None:
    inside = ["-netns", namespace] if namespace else []
    run(["ip", *inside, "-batch", "-"], "set up the lab's network", stdin="\n".join(commands) + "\n")
