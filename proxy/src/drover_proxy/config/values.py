"""Values that only some keys have: how they are read, and what is said of those that can't be."""

from __future__ import annotations

import ipaddress
from typing import Any

import yaml

from drover_proxy.config.model import Address
from drover_proxy.config.reader import ReadValue, Report, number, text


def address(node: yaml.Node, path: str, report: Report) -> Any:
    """Read `host:port`, `[ipv6]:port` or `unix:/path`."""
    kind = "an address (0.0.0.0:8080, [::]:8080 or unix:/run/drover/proxy.sock)"
    raw = text(kind)(node, path, report)
    if raw is None:
        return None
    if raw.startswith("unix:"):
        if raw[5:].startswith("/"):
            return Address(path=raw[5:])
        report.add(path, f"expected an absolute path after unix:, found {raw!r}", node)
        return None
    host, _, port = raw.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not bare or (":" in bare and bare == host) or not port.isdigit() or not 0 < int(port) < 65536:
        report.add(path, f"expected {kind}, found {raw!r}", node)
        return None
    return Address(host=bare, port=int(port))


def gpu_name(node: yaml.Node, path: str, report: Report) -> Any:
    """Read a GPU's UUID, or its index as a number."""
    if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":int"):
        return str(number("a GPU's index", 0, 1024, whole=True)(node, path, report))
    return text("a GPU's UUID (GPU-...) or index")(node, path, report)


def proxy_network(node: yaml.Node, path: str, report: Report) -> Any:
    """Read an address, a network, or `unix`."""
    kind = "an address, a network (10.0.0.0/8, fd00::/8) or unix"
    raw = text(kind)(node, path, report)
    if raw is None or raw == "unix":
        return raw
    try:
        return str(ipaddress.ip_network(raw))
    except ValueError as error:
        report.add(path, f"expected {kind}, found {raw!r}: {error}", node)
        return None


def not_built(what: str) -> ReadValue:
    """Accept only `{}` or `[]`; say plainly that this version doesn't do it, without showing the value."""

    def read(node: yaml.Node, path: str, report: Report) -> Any:
        if not (isinstance(node, yaml.CollectionNode) and not node.value):
            report.add(path, f"this version of drover-proxy has no {what}: remove the key", node)

    return read
