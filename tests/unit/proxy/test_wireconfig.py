"""The wire's limits are the file's, each under its own name, and the same where the file says nothing."""

from __future__ import annotations

from dataclasses import asdict, fields

from drover_proxy.app import wireconfig
from drover_proxy.config import parse
from drover_proxy.config.model import LimitsConfig
from drover_proxy.wire import Limits

MINIMAL = "instances: [{name: gpu0, url: 'http://127.0.0.1:11434', gpus: [0]}]\n"


def test_each_limit_is_the_one_that_was_set():
    """None stands for another, and none is left out."""
    names = [field.name for field in fields(LimitsConfig)]
    values = {name: 100 + number for number, name in enumerate(names)}
    made = asdict(wireconfig.limits(LimitsConfig(**values)))
    assert {name: made[name.replace("_seconds", "_timeout")] for name in names} == values


def test_what_is_left_out_is_as_the_wire_has_it():
    """The reference of the file and limits.py, where the reasons stand, name the same numbers."""
    assert wireconfig.limits(parse(MINIMAL).limits) == Limits()
