"""The validated variables of the host at hand."""

from __future__ import annotations

from pathlib import Path

from pyinfra import host

from drover.errors import DroverError
from drover.inventory import HostVars


def current() -> HostVars:
    """Return the variables of the host that pyinfra is working on, defaults included."""
    found = host.data.get("drover")
    if not isinstance(found, HostVars):
        raise DroverError(
            f"{host.name}: this inventory doesn't come from a drover fleet. "
            "Next: pyinfra -y inventories/FLEET/inventory.py deploys/site.py"
        )
    return found


def controller_path(variables: HostVars, value: str) -> Path:
    """Return a file on the controller that a variable names, relative to the fleet's folder."""
    return (variables.fleet / Path(value).expanduser()).resolve()
