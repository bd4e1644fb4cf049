"""The example fleet for pyinfra: read as Ansible reads it, refused whole when a variable is wrong."""

from pathlib import Path

from drover.inventory import pyinfra_groups

globals().update(pyinfra_groups(Path(__file__).parent))
