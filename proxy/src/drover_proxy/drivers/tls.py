"""The files of TLS: they come to a context, which each new connection is given.

A context can't forget an authority, nor its tickets. So a change makes a new one. It has another key for its
tickets and another cache, so that no session of the one before is resumed: a client's certificate is checked
against the new authorities, in a whole handshake.
"""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import NamedTuple

from drover_proxy.config.model import TlsConfig
from drover_proxy.config.reader import ConfigError, Problem
from drover_proxy.drivers.follow import Followed

AUTHORITY = re.compile(rb"-----BEGIN [A-Z0-9 ]*CERTIFICATE-----.*?-----END", re.DOTALL)


class Tls(NamedTuple):
    """What the files come to."""

    context: ssl.SSLContext
    authorities: frozenset[bytes] | None
    """Of clients, as they stand in the file; None where nobody is asked for a certificate."""

    def stricter_than(self, before: Tls) -> bool:
        """Whether somebody who was let in by the files before may not be any more."""
        if self.authorities is None or before.authorities is None:
            return self.authorities is not before.authorities
        return not before.authorities <= self.authorities


class TlsFiles(Followed[Tls]):
    """The files that `tls` names."""

    settles = True  # a certificate and its key are two files

    def __init__(self, config: TlsConfig) -> None:
        super().__init__()
        self.config = config

    def paths(self) -> tuple[Path, ...]:
        """Say where they are."""
        named = (self.config.cert, self.config.key, self.config.client_ca)
        return tuple(Path(name) for name in named if name)

    def read(self) -> Tls:
        """Make a context of them; ConfigError names the one that can't be used."""
        config = self.config
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        authorities: frozenset[bytes] | None = None
        key, files = "tls.cert, tls.key", f"{config.cert}, {config.key}"
        try:
            context.load_cert_chain(config.cert, config.key)
            if config.client_ca:
                key, files = "tls.client_ca", config.client_ca
                # Read first: if the file changes in between, the next look finds the difference.
                authorities = frozenset(AUTHORITY.findall(Path(config.client_ca).read_bytes()))
                context.load_verify_locations(config.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except OSError as error:  # TLS's own errors are of this kind, too
            raise ConfigError(files, [Problem(key, f"can't be used: {error}")]) from error
        return Tls(context, authorities)
