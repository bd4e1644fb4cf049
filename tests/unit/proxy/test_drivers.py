"""The drivers, each against the real thing at its other end, or the nearest to it."""

from __future__ import annotations

import io
import json
import os
import socket

import pytest
from drover_proxy.config import Address
from drover_proxy.drivers.log import Log
from drover_proxy.drivers.notify import Notifier, watchdog_seconds
from drover_proxy.drivers.nvml import Nvml, NvmlUnavailable, grown
from drover_proxy.drivers.ollama import OllamaError, load_fault
from drover_proxy.drivers.sockets import BindError, bind, handed_over

from tests.support import free_port


def test_notify_says_what_systemd_reads(tmp_path, monkeypatch):
    """Each state is one datagram."""
    path = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(1)
        notifier = Notifier()
        notifier.ready("serving")
        notifier.reloading()
        notifier.watchdog()
        notifier.stopping("draining")
        heard = [systemd.recv(200) for _ in range(4)]
        notifier.close()

    assert heard[0] == b"READY=1\nSTATUS=serving"
    assert heard[1].startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    assert heard[2] == b"WATCHDOG=1"
    assert heard[3] == b"STOPPING=1\nSTATUS=draining"


def test_notify_is_silent_where_there_is_no_systemd(monkeypatch):
    """Without a socket, or with one that nobody reads, nothing happens."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notifier = Notifier()
    notifier.ready("x")
    notifier.close()


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"),
    [("", "", None), ("0", "", None), ("x", "", None), ("4000000", "", 2.0), ("4000000", "1", None)],
)
def test_watchdog_period(monkeypatch, usec, pid, seconds):
    """Half of what systemd allows, if it means this process."""
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", pid)

    assert watchdog_seconds() == seconds


def test_bind_names_the_address_that_fails():
    """The message says which address and why, and nothing stays bound."""
    good = Address("127.0.0.1", free_port())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BindError, match=f"127.0.0.1:{port}: Address already in use"):
            bind([good, Address("127.0.0.1", port)])
    (again,) = bind([good])
    again.close()


def test_a_unix_socket_that_was_left_behind_is_replaced(tmp_path):
    """One that still answers isn't."""
    address = Address(path=str(tmp_path / "s"))
    (first,) = bind([address])
    with pytest.raises(BindError):
        bind([address])
    first.close()
    (second,) = bind([address])
    second.close()


def test_sockets_meant_for_another_process_are_not_taken(monkeypatch):
    """LISTEN_PID says whom they are for."""
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))

    assert handed_over() == ([], [])


def test_nvml_that_cant_be_used_says_why():
    """On a machine without a driver the reason is in words, and nothing else breaks."""
    nvml = Nvml()
    try:
        nvml.identify()
    except NvmlUnavailable as error:
        assert "NVML" in str(error)  # noqa: PT017 - a machine with GPUs is as good
    assert nvml.processes(("GPU-none",)) == {}
    nvml.close()


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({}, {7: 100}, 100),
        ({5: 50}, {5: 60, 7: 100}, 100),
        ({5: 50}, {5: 60}, None),
        ({5: 50}, {}, None),
        ({}, {7: 100, 8: 20}, 120),
    ],
)
def test_what_a_load_took(before, after, expected):
    """Only new processes count: others grow and shrink by themselves."""
    assert grown(before, after) == expected


@pytest.mark.parametrize(
    ("error", "reason", "retryable"),
    [
        (OllamaError("no answer", timed_out=True), "timeout", False),
        (OllamaError("refused"), "unreachable", True),
        (OllamaError("model 'x' not found", status=404), "refused", False),
        (OllamaError("cudaMalloc failed: out of memory", status=500), "out_of_memory", True),
        (OllamaError("error loading model: unknown model architecture: 'x'", status=500), "refused", False),
        (OllamaError('option "stop" must be of type array', status=500), "refused", False),
        (OllamaError("llama-server process has terminated", status=500), "terminated", True),
        (OllamaError("server busy", status=503), "busy", True),
    ],
)
def test_failed_loads_are_sorted(error, reason, retryable):
    """What can't get better by itself isn't tried again."""
    fault = load_fault(error)

    assert (fault.reason, fault.retryable) == (reason, retryable)


def test_log_lines_are_json_and_levels_hold():
    """One object a line; empty fields are left out; a closed stream is survived."""
    stream = io.StringIO()
    log = Log("info", stream)
    log.debug("hidden")
    log.warning("seen", model="m", instance="", count=0)

    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert entry.pop("time").endswith("Z")
    assert entry == {"level": "warning", "event": "seen", "model": "m", "count": 0}
    stream.close()
    log.error("lost")
