"""`python -m drover_proxy`."""

from __future__ import annotations

from drover_proxy.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
