"""The lab's fleet for pyinfra: reads this folder as Ansible does, refuses it whole when a variable is wrong."""

from pathlib import Path

from drover.inventory import pyinfra_groups

globals().update(pyinfra_groups(Path(__file__).parent))
