"""Errors of the lab: each says what, where, why and the next command."""

from __future__ import annotations


class LabError(Exception):
    """The lab can't do what was asked; the message is meant for the operator."""

    exit_code = 1


class NotPossibleHereError(LabError):
    """This machine or this user can't run a lab at all (not Linux, not root)."""

    exit_code = 3
