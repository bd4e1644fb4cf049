"""`python -m lab.mirror`: build the mirror, serve it, let it do wrong."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lab.gpu.build import BuildError
from lab.mirror import build, faults, server
from lab.mirror.debs import MirrorError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lab.mirror", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("build", help="build the content and lay it into a root")
    make.add_argument("--into", type=Path, required=True, metavar="DIR")
    make.add_argument("--cache", type=Path, default=build.CACHE, metavar="DIR")
    run = commands.add_parser("serve", help="serve a root over HTTP")
    run.add_argument("--root", type=Path, required=True, metavar="DIR")
    run.add_argument("--bind", required=True, metavar="ADDRESS")
    run.add_argument("--port", type=int, default=8088)
    run.add_argument("--auth-file", type=Path, metavar="FILE", help="user:password, mode 0600")
    run.add_argument("--pid-file", type=Path, metavar="FILE")
    run.add_argument("--access-log", type=Path, metavar="FILE", help="standard error when absent")
    fault = commands.add_parser("fault", help="let the mirror do wrong")
    fault.add_argument("--root", type=Path, required=True, metavar="DIR")
    fault.add_argument("fault", choices=[*faults.FAULTS, "clear"])
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "build":
            build.build(options.into, options.cache)
            print(options.into)
        elif options.command == "fault":
            faults.set_fault(options.root, options.fault)
        else:
            server.serve(
                options.root,
                options.bind,
                options.port,
                auth_file=options.auth_file,
                pid_file=options.pid_file,
                log=options.access_log,
            )
    except (MirrorError, BuildError, OSError) as error:
        print(f"lab.mirror: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
