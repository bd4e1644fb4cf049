"""What is loaded against what is installed, and what is done about a difference."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deploys.lib.driver import complaint_of, load_driver, plan, verify_driver
from deploys.lib.facts import Machine, MachineFact, Probe
from tests.unit.deploys.support import commands_of, refusal_of, text_of

GOOD = Machine(
    kernel="6.1",
    boot_id="old",
    loaded_version="580.2",
    loaded_flavour="open",
    module_version="580.2",
    module_flavour="open",
    library_version="580.2",
    modules=frozenset({"nvidia", "nvidia_uvm"}),
)


@pytest.mark.parametrize(
    ("machine", "action", "why"),
    [
        (GOOD, "nothing", "is loaded and installed"),
        (replace(GOOD, loaded_version="", modules=frozenset()), "load", "no driver is loaded"),
        (replace(GOOD, loaded_version="", modules=frozenset({"nouveau"})), "replace", "nouveau"),
        (replace(GOOD, loaded_version="580.1"), "replace", "driver 580.1 is loaded, 580.2 is installed"),
        (replace(GOOD, loaded_flavour="proprietary"), "replace", "the proprietary modules are loaded"),
        (replace(GOOD, module_version=""), "broken", "no kernel module was built for the running kernel 6.1"),
        (replace(GOOD, library_version="580.1"), "broken", "module is 580.2 but the library is 580.1"),
        (replace(GOOD, module_flavour="proprietary"), "broken", "on disk is proprietary, open was installed"),
    ],
)
def test_plan(machine, action, why):
    """Each difference leads to its own step, and says why."""
    found = plan(machine, "open")
    assert found.action == action
    assert why in found.why


def answers(scripted, machines, probes):
    """Script the machine as it is seen one time after the other, and the probes likewise."""
    machine_list, probe_list = list(machines), list(probes)
    scripted.facts[MachineFact] = lambda: machine_list.pop(0) if len(machine_list) > 1 else machine_list[0]
    scripted.facts[Probe] = lambda probe: probe_list.pop(0)  # noqa: ARG005


def load(*, reboot=True):
    """Return the commands of loading the driver."""
    return commands_of(load_driver, flavour="open", reboot=reboot, reboot_timeout_seconds=9)


def test_a_loaded_driver_is_left_alone(scripted):
    """When all versions agree nothing is done."""
    answers(scripted, [GOOD], [])
    assert load() == []


def test_nothing_loaded_is_loaded(scripted):
    """On a fresh host the module is loaded, and nothing is rebooted."""
    answers(scripted, [replace(GOOD, loaded_version="", modules=frozenset())], [])
    (command,) = load()
    assert "modprobe nvidia && modprobe nvidia-uvm" in text_of(command)


def test_an_unused_driver_is_replaced_without_a_reboot(scripted):
    """An old driver that nothing uses is unloaded, and the new one loaded."""
    old = replace(GOOD, loaded_version="580.1")
    answers(scripted, [old, replace(GOOD, loaded_version="", modules=frozenset())], [False, False])
    stop, unload, insert = [text_of(command) for command in load()]
    assert "stop nvidia-persistenced" in stop
    assert "rmmod" in unload
    assert "modprobe nvidia" in insert


def test_a_driver_in_use_needs_a_reboot(scripted):
    """While a process holds a GPU the host is rebooted, and the new boot id is waited for."""
    answers(scripted, [replace(GOOD, loaded_version="580.1"), GOOD], [True])
    commands = load()
    assert "systemctl reboot" in text_of(commands[2])
    wait = commands[3]
    assert wait.function.__name__ == "_wait_for_new_boot"
    assert wait.args == ("old", 9)
    assert len(commands) == 4


def test_a_driver_that_does_not_unload_needs_a_reboot(scripted):
    """When rmmod doesn't get it out, the reboot follows."""
    answers(scripted, [replace(GOOD, loaded_version="580.1"), GOOD], [False, True])
    assert any(
        "systemctl reboot" in text_of(command) for command in load()[:4] if not hasattr(command, "args")
    )


def test_without_leave_to_reboot_the_host_fails_and_says_so(scripted):
    """nvidia_driver_reboot: false ends with what is wrong and what to do."""
    old = replace(GOOD, loaded_version="580.1")
    answers(scripted, [old, old], [True])
    message = refusal_of(load(reboot=False)[1])
    assert "driver 580.1 is loaded, 580.2 is installed" in message
    assert "nvidia_driver_reboot is false" in message


def test_a_broken_installation_is_refused(scripted):
    """No module for the running kernel: neither loading nor rebooting helps."""
    answers(scripted, [replace(GOOD, module_version="")], [])
    (command,) = load()
    assert "dkms status" in refusal_of(command)


def test_verification_names_what_is_wrong():
    """The version must be the pinned one, and everything must agree."""
    assert not complaint_of(GOOD, "open", "580")
    assert "pinned is 595" in complaint_of(GOOD, "open", "595")
    assert "isn't what was installed" in complaint_of(replace(GOOD, loaded_version="580.1"), "open", "580")


def test_verification_is_silent_when_all_is_well(scripted):
    """A good driver yields no command; a GPU that doesn't answer yields one that fails and tells."""
    answers(scripted, [GOOD], [True, False])
    assert commands_of(verify_driver, flavour="open", gpus=2, version="580") == []
    (command,) = commands_of(verify_driver, flavour="open", gpus=2, version="580")
    assert "The PCI bus shows 2 GPU(s)" in text_of(command)
