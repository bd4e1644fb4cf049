"""The two parts of ansible-core that drover uses, imported late and without side effects.

At import ansible-core probes `socket.getaddrinfo` and replaces it. Under pyinfra, which runs on gevent, that
probe prints a traceback, and the replacement would be made of gevent's own. So it sees the original, and what
was there before comes back.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
    from ansible.parsing.vault import VaultLib


@contextmanager
def _original_socket() -> Iterator[None]:
    before = socket.getaddrinfo
    if "gevent.monkey" in sys.modules:
        from gevent.monkey import get_original  # noqa: PLC0415 - only where gevent is at work already

        socket.getaddrinfo = get_original("socket", "getaddrinfo")
    try:
        yield
    finally:
        socket.getaddrinfo = before


def argument_spec_validator() -> type[ArgumentSpecValidator]:
    """Return the class with which Ansible validates the arguments of roles."""
    with _original_socket():
        from ansible.module_utils.common.arg_spec import ArgumentSpecValidator  # noqa: PLC0415 - see above
    found: type[ArgumentSpecValidator] = ArgumentSpecValidator
    return found


def vault_lib(password: bytes) -> VaultLib:
    """Return a vault that opens with this password."""
    with _original_socket():
        from ansible.parsing.vault import VaultLib, VaultSecret  # noqa: PLC0415 - see above
    return VaultLib([("default", VaultSecret(password))])


def ansible_error() -> type[Exception]:
    """Return the base class of ansible-core's errors."""
    with _original_socket():
        from ansible.errors import AnsibleError  # noqa: PLC0415 - see above
    found: type[Exception] = AnsibleError
    return found


def expand_hostname_range(pattern: str) -> list[str]:
    """Expand a range as Ansible does: gpu[01:10]."""
    with _original_socket():
        from ansible.plugins.inventory import expand_hostname_range as expand  # noqa: PLC0415 - see above
    return list(expand(pattern))
