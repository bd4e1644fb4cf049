"""The operations of the layers ollama and models on a scripted host."""

from __future__ import annotations

import json
import subprocess
from types import SimpleNamespace

from deploys import models, ollama
from deploys.lib.facts import FileStateFact, Lines
from deploys.lib.instances import GpuUuids, Instance
from deploys.lib.templates import render
from drover.variables import load_defaults
from tests.unit.deploys.support import commands_of, refusal_of, text_of


def context(*instances):
    """Return the layer's context with these instances."""
    return SimpleNamespace(
        notes={"instances": instances},
        render=lambda name, **extra: render("ollama", name, {**load_defaults(), **extra}),
    )


def test_instances_are_bound_when_the_operation_runs(scripted):
    """The UUIDs are those that the driver shows then; each instance gets its own file."""
    scripted.facts[GpuUuids] = ["GPU-a", "GPU-b"]
    scripted.facts[FileStateFact] = None

    found = commands_of(
        ollama.instance_files,
        ctx=context(Instance("gpu0", 11434, ("0",)), Instance("gpu1", 11435, ("1",))),
    )

    assert len(found) == 2
    assert "/etc/drover/ollama/gpu0.env" in text_of(found[0])
    assert "/etc/drover/ollama/gpu1.env" in text_of(found[1])


def test_too_few_gpus_fail_the_host_before_anything_is_laid(scripted):
    """A GPU that doesn't answer is named."""
    scripted.facts[GpuUuids] = ["GPU-a"]

    (only,) = commands_of(ollama.instance_files, ctx=context(Instance("gpu1", 11435, ("1",))))

    assert "instance gpu1 needs GPU 1" in refusal_of(only)


def test_instances_that_are_no_more_are_stopped_and_forgotten(scripted):
    """So is a server of other making that would hold the port."""
    answers = {
        "ls /etc/drover/ollama/*.env": ["/etc/drover/ollama/gpu0.env", "/etc/drover/ollama/spread.env"],
        "systemctl is-active ollama.service": ["active"],
    }
    scripted.facts[Lines] = lambda script: answers[script]

    found = [
        text_of(command)
        for command in commands_of(ollama.no_others, instances=(Instance("gpu0", 1, ("0",)),))
    ]

    assert len(found) == 2
    assert "spread" in found[0]
    assert "gpu0" not in found[0]
    assert "disable --now ollama.service" in found[1]


def test_only_models_that_differ_are_made(scripted):
    """One command a model, with its bound; nothing where nothing differs."""
    scripted.facts[Lines] = [json.dumps([{"name": "a b", "why": "it isn't there"}])]
    (command,) = commands_of(models.models, timeout_seconds=60)
    assert "timeout 60 /usr/lib/drover/models.py apply 'a b'" in text_of(command)

    scripted.facts[Lines] = ["[]"]
    assert commands_of(models.models, timeout_seconds=60) == []
    assert scripted.noops == ["all models are as wanted"]


def test_before_the_first_run_all_models_are_made(scripted):
    """A host that can't say what differs is given them all."""
    scripted.facts[Lines] = []

    (command,) = commands_of(models.models, timeout_seconds=60)

    assert "models.py apply  ||" in text_of(command)


def test_a_pull_that_takes_too_long_says_so():
    """The bound is named by its variable; another failure keeps its own message."""
    line = models.APPLY.format(seconds=1, name="x").replace("/usr/lib/drover/models.py apply x", "sleep 5")
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 124
    assert "models_pull_timeout_seconds" in done.stderr

    line = line.replace("sleep 5", "false")
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
