"""`python -m lab.ollama`, and what a release's `bin/ollama` runs."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; a runner is started without loading the rest."""
    if sys.argv[1:2] == ["runner"]:
        from lab.ollama import runner  # noqa: PLC0415 - a runner must start fast and stay small

        runner.main(sys.argv[2:])
    from lab.ollama import cli  # noqa: PLC0415 - see above

    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
