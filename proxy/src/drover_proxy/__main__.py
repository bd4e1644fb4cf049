"""`python -m drover_proxy`, and the command `drover-proxy`."""

from __future__ import annotations

import sys

from drover_proxy import supervisor


def main() -> int:
    """Run the command; under systemd's sockets, as the child of a supervisor."""
    if supervisor.wanted(sys.argv[1:]):
        supervisor.supervise()
    from drover_proxy.cli import main as command  # noqa: PLC0415 - the supervisor needs none of it

    return command()


if __name__ == "__main__":
    raise SystemExit(main())
