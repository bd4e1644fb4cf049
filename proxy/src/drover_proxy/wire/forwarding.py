"""What upstreams are told of a request's way: X-Forwarded-*, Via; and whose word about it counts."""

from __future__ import annotations

import enum
import ipaddress
from dataclasses import dataclass
from functools import lru_cache

from drover_proxy.wire.fields import Fields

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

FORWARDED = frozenset(
    (
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-proto",
        b"x-real-ip",
    )
)
"""Fields by which a client could pass for another. None of them goes through as it came."""

KEPT_HOPS = 16
"""Addresses of an X-Forwarded-For that are looked at, and passed on; nobody has that many proxies."""

IPV6_NETWORK_BITS = 64
"""What one customer of a provider has: addresses within it cost nothing."""


class Mode(enum.Enum):
    """What upstreams are told of a request's client."""

    NONE = "none"
    """Nothing: Ollama has no use for it but in its log."""
    APPEND = "append"
    """What a trusted proxy said, and that proxy's own address behind it."""
    REPLACE = "replace"
    """The client's address, and no word of the proxies between."""


@dataclass(frozen=True, slots=True)
class Forwarding:
    """What is added to forwarded requests, and which peers are proxies whose own additions are believed."""

    mode: Mode = Mode.NONE
    via: str = ""
    """Our name in Via, added to requests and answers; none is added where this is empty."""
    trusted: tuple[Network, ...] = ()
    trust_unix: bool = False
    """Whoever comes over a Unix socket is a trusted proxy."""

    @property
    def adds(self) -> bool:
        """Whether a forwarded head needs anything of this."""
        return self.mode is not Mode.NONE or bool(self.via)

    @property
    def via_line(self) -> bytes:
        """The line that goes into the head of each answer."""
        return b"via: 1.1 %b\r\n" % self.via.encode() if self.via else b""

    def trusts(self, peer: str) -> bool:
        """Say whether this address is a trusted proxy's."""
        if peer == "unix":
            return self.trust_unix
        if not self.trusted:
            return False
        address = _address(peer)
        return address is not None and any(address in network for network in self.trusted)

    def client(self, peer: str, fields: Fields) -> str:
        """Find whom a request of a trusted proxy is from: the last address that isn't a trusted proxy's."""
        client = peer
        for hop in reversed(_hops(fields)):
            address = _address(hop)
            if address is None:
                break  # "unknown", or rubbish: nobody knows who is behind it
            client = str(address)
            if not self.trusts(client):
                break
        return client

    def lines(self, peer: str, fields: Fields, *, trusted: bool, tls: bool, http10: bool) -> bytes:
        """Make the lines of a forwarded request's head."""
        lines = []
        if self.mode is not Mode.NONE:
            said = dict(reversed(fields)) if trusted else {}
            hops = _hops(fields) if trusted and self.mode is Mode.APPEND else []
            if self.mode is Mode.REPLACE and trusted:
                peer = self.client(peer, fields)
            hops.append(peer if peer != "unix" else "unknown")
            proto = said.get(b"x-forwarded-proto") or (b"https" if tls else b"http")
            host = said.get(b"x-forwarded-host") or next((v for n, v in fields if n == b"host"), b"")
            lines.append(b"X-Forwarded-For: %b\r\n" % ", ".join(hops).encode("latin-1"))
            lines.append(b"X-Forwarded-Proto: %b\r\n" % proto)
            if host:
                lines.append(b"X-Forwarded-Host: %b\r\n" % host)
        if self.via:
            lines.append(b"Via: %b %b\r\n" % (b"1.0" if http10 else b"1.1", self.via.encode()))
        return b"".join(lines)


def network(text: str) -> Network:
    """Read an address or a network; ValueError for anything else."""
    return ipaddress.ip_network(text, strict=True)


def network_of(client: str) -> str:
    """Return by what an address is counted: IPv4 itself, of IPv6 its network."""
    if ":" not in client:
        return client
    try:
        address = ipaddress.IPv6Address(client.partition("%")[0])
    except ValueError:
        return client
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address), IPV6_NETWORK_BITS), strict=False))


def _hops(fields: Fields) -> list[str]:
    """Read all of X-Forwarded-For, the last of it where it is long."""
    values = [value.decode("latin-1") for name, value in fields if name == b"x-forwarded-for"]
    hops = [hop.strip() for value in values for hop in value.split(",")]
    return [hop for hop in hops if hop][-KEPT_HOPS:]


@lru_cache(maxsize=1024)
def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Read an address, also one with a port, and an IPv4 address that came over IPv6 as what it is."""
    host, bracket, _ = text.removeprefix("[").partition("]")
    if not bracket and text.count(":") == 1:
        host = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
