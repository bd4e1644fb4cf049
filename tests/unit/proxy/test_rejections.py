"""What the log tells of requests that were turned down, however many there are."""

from __future__ import annotations

import io
import json

import pytest
from drover_proxy.app import rejections
from drover_proxy.app.rejections import ADDRESSES, LINES, LINES_PER_ADDRESS, NAMED, Rejections
from drover_proxy.drivers.log import Log

from tests.support import eventually_async


@pytest.fixture
def log():
    """A log whose lines are kept."""
    return Log("info", io.StringIO())


def lines(log):
    """Read what was logged."""
    return [json.loads(line) for line in log._stream.getvalue().splitlines()]


async def test_the_first_few_of_an_address_are_written_and_the_rest_is_counted(log):
    """Another address, or another code of the same one, has lines of its own; the sum says who it was."""
    told = Rejections(log)
    written = [told.tell("10.0.0.1", "unauthorized", status=401) for _ in range(50)]
    assert written == [True] * LINES_PER_ADDRESS + [False] * (50 - LINES_PER_ADDRESS)
    assert told.tell("10.0.0.2", "unauthorized", status=401)
    assert told.tell("10.0.0.1", "internal", status=500)
    told.sum_up()
    *single, more = lines(log)
    assert len(single) == LINES_PER_ADDRESS + 2
    assert single[0] | {"time": ""} == {
        "time": "",
        "level": "info",
        "event": "rejected",
        "code": "unauthorized",
        "client": "10.0.0.1",
        "status": 401,
    }
    held = 50 - LINES_PER_ADDRESS
    assert more["event"] == "rejected_more"
    assert (more["count"], more["codes"], more["most"], more["addresses"]) == (
        held,
        {"unauthorized": held},
        {"10.0.0.1": held},
        1,
    )


async def test_many_addresses_take_neither_the_log_nor_the_memory(log):
    """A flood from everywhere, the networks of IPv6 too, is a hundred lines, and a bounded table."""
    told = Rejections(log)
    for number in range(5000):
        told.tell(f"10.{number >> 8}.{number & 255}.1", "unauthorized")
        told.tell(f"2001:db8:0:{number:x}::1", "unauthorized")
        told.tell(f"2001:db8::{number:x}", "bad_request")  # all of one network
    assert len(told._clients) == ADDRESSES
    assert len(told._told) <= 2 * LINES + 2
    told.sum_up()
    *single, more = lines(log)
    codes = [line["code"] for line in single]
    assert (codes.count("unauthorized"), codes.count("bad_request")) == (LINES, LINES_PER_ADDRESS)
    assert more["count"] == 15000 - LINES - LINES_PER_ADDRESS
    assert more["addresses"] == ADDRESSES
    assert len(more["most"]) == NAMED
    assert next(iter(more["most"].items())) == ("2001:db8::/64", 5000 - LINES_PER_ADDRESS)


async def test_each_window_begins_anew_by_itself(log, monkeypatch):
    """A minute later the first few are written again; a quiet minute is not summed up."""
    monkeypatch.setattr(rejections, "WINDOW_SECONDS", 0.01)
    told = Rejections(log)
    for _ in range(LINES_PER_ADDRESS + 1):
        told.tell("unix", "unauthorized")
    await eventually_async(lambda: lines(log)[-1]["event"] == "rejected_more")
    assert told.tell("unix", "unauthorized")
    await eventually_async(lambda: told._window is None)
    assert [line["event"] for line in lines(log)].count("rejected_more") == 1


async def test_a_log_that_tells_less_counts_nothing():
    """Where the lines themselves aren't written, neither is their sum."""
    log = Log("warning", io.StringIO())
    told = Rejections(log)
    assert not any(told.tell("10.0.0.1", "unauthorized") for _ in range(9))
    told.sum_up()
    assert lines(log) == []
