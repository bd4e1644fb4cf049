"""TLS at the door: contexts made from files, and how the one in force is changed under a listener.

A context can't forget an authority, nor its tickets. So a change makes a new one, and each new connection
gets the one in force. It has another key for its tickets and another cache, so that no session of the one
before is resumed: a client's certificate is checked against the new authorities, in a whole handshake.
"""

from __future__ import annotations

import ssl
from collections import Counter
from pathlib import Path
from typing import Any

from drover_proxy.config.model import TlsConfig
from drover_proxy.config.reader import ConfigError, Problem
from drover_proxy.drivers.follow import Followed


class Current(ssl.SSLContext):
    """What a listener holds: it stands for the context in force, which makes each connection."""

    def __new__(cls, _in_force: ssl.SSLContext) -> Current:  # noqa: PYI034 - Self is of Python 3.11
        """Make one that nothing is ever loaded into."""
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, in_force: ssl.SSLContext) -> None:
        self.in_force = in_force

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """Begin a connection; event loops call nothing else of a server's context."""
        return self.in_force.wrap_bio(*arguments, **options)


def counting(failures: Counter[str]) -> type[ssl.SSLObject]:
    """Make a class of connections that count handshakes that fail: event loops tell nobody of them."""

    class Counting(ssl.SSLObject):
        def do_handshake(self) -> None:
            try:
                super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError as error:
                failures[str(error.reason or "unknown").lower()] += 1
                raise

    return Counting


class TlsFiles(Followed[ssl.SSLContext]):
    """The files that `tls` names."""

    settles = True  # a certificate and its key are two files

    def __init__(self, config: TlsConfig, failures: Counter[str]) -> None:
        super().__init__()
        self.config = config
        self._connection = counting(failures)

    def paths(self) -> tuple[Path, ...]:
        """Say where they are."""
        named = (self.config.cert, self.config.key, self.config.client_ca)
        return tuple(Path(name) for name in named if name)

    def read(self) -> ssl.SSLContext:
        """Make a context of them; ConfigError names the one that can't be used."""
        config = self.config
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sslobject_class = self._connection
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        key = "tls.cert, tls.key"
        try:
            context.load_cert_chain(config.cert, config.key)
            if config.client_ca:
                key = "tls.client_ca"
                context.load_verify_locations(config.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except OSError as error:  # TLS's own errors are of this kind, too
            files = f"{config.cert}, {config.key}" if config.client_ca is None or "cert" in key else ""
            message = f"can't be used: {error}"
            raise ConfigError(files or str(config.client_ca), [Problem(key, message)]) from error
        return context
