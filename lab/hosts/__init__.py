"""The lab's hosts: real systemd machines in namespaces of this one, with simulated GPUs."""

from lab.hosts.errors import LabError, NotPossibleHereError
from lab.hosts.host import LabHost
from lab.hosts.lab import Lab

__all__ = ["Lab", "LabError", "LabHost", "NotPossibleHereError"]
