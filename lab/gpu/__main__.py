"""`python -m lab.gpu`: build the NVML library, make a state file, set a fault in it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lab.gpu import build, faults, profile
from lab.gpu.initial import initial_state
from lab.gpu.state import StateError, locked

DEFAULT_DRIVER = "580.159.03"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lab.gpu", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("build", help="compile libnvidia-ml.so.1")
    make.add_argument("--into", type=Path, required=True, metavar="DIR")
    init = commands.add_parser("init", help="write the state of a host's GPUs under a loaded driver")
    init.add_argument("--profile", type=Path, required=True, metavar="FILE")
    init.add_argument("--host", required=True, metavar="NAME", help="a host of the profile")
    init.add_argument("--state", type=Path, required=True, metavar="FILE")
    init.add_argument("--lab", default="lab", metavar="NAME")
    init.add_argument("--driver", default=DEFAULT_DRIVER, metavar="VERSION")
    fault = commands.add_parser("fault", help="set or clear a fault")
    fault.add_argument("state", type=Path)
    fault.add_argument("gpu", help="gpu0, gpu1 ..., or all")
    fault.add_argument("fault", help="lost, hang, xid=N, mismatch or clear")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "build":
            print(build.build(options.into))
        elif options.command == "init":
            wanted = profile.host_profile(profile.load(options.profile), lab=options.lab, host=options.host)
            options.state.parent.mkdir(parents=True, exist_ok=True)
            with locked(options.state):
                initial_state(wanted, options.driver).save(options.state)
            print(options.state)
        else:
            faults.inject(options.state, options.gpu, options.fault)
    except (build.BuildError, profile.ProfileError, faults.FaultError, StateError, OSError) as error:
        print(f"lab.gpu: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
