"""Rules between the variables of Ollama, the models, the proxy and the monitoring."""

from __future__ import annotations

import pytest

from drover.variables import validate

REFUSED = {
    "ollama_version": "v0.33.0",
    "ollama_keep_alive": "5 m",
    "ollama_load_timeout": "abc",
    "ollama_num_parallel": 0,
    "ollama_keep_releases": 0,
    "ollama_port": 80,
    "proxy_listen": [],
    "monitoring_listen": "8081",
    "proxy_max_connections": 0,
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_value_that_would_be_ignored_or_fail_later_is_refused_by_name(name):
    """What Ollama or systemd would take wrongly, in silence, is named before anything is touched."""
    found = validate({name: REFUSED[name], "ollama_archive_sha256": "0" * 64})

    assert [problem.key for problem in found] == [name]


@pytest.mark.parametrize(
    ("entry", "path"),
    [
        ({"name": "a", "parameters": {"num_ctx": "4096"}}, "models_list[a].parameters.num_ctx"),
        ({"name": "a", "parameters": {"temperature": "hot"}}, "models_list[a].parameters.temperature"),
        ({"name": "a", "parameters": {"stop": "x"}}, "models_list[a].parameters.stop"),
        ({"name": "a", "parameters": {"num_gpu": True}}, "models_list[a].parameters.num_gpu"),
        ({"name": "a", "parameters": {"num_ctx": 2}}, "models_list[a].parameters.num_ctx"),
        ({"name": "a", "parameters": {"mirostat": 1}}, "models_list[a].parameters.mirostat"),
        ({"name": "a b"}, "models_list[a b].name"),
        ({"name": "a", "system": 'say """'}, "models_list[a].system"),
    ],
)
def test_what_would_poison_a_model_is_refused(entry, path):
    """Ollama takes wrongly typed parameters and then fails every request."""
    assert [problem.key for problem in validate({"models_list": [entry]})] == [path]


@pytest.mark.parametrize(
    "entry",
    [
        {"name": "x", "port": 11500, "gpus": ["gpu0"]},
        {"name": "x y", "port": 11500, "gpus": ["0"]},
        {"name": "x", "port": 11500, "gpus": []},
    ],
)
def test_an_instance_that_could_not_start_is_refused(entry):
    """Names become unit names; GPUs are indexes or UUIDs, and at least one."""
    assert validate({"ollama_instances": [entry]})


def test_good_values_pass():
    """The rules let through what works."""
    assert not validate(
        {
            "ollama_keep_alive": "1h30m",
            "ollama_load_timeout": "-1",
            "ollama_instances": [{"name": "big", "port": 11500, "gpus": ["0", "GPU-1"]}],
            "proxy_listen": ["unix:/run/x.sock", "[::]:8080"],
            "models_list": [
                {"name": "hf.co/org/repo:Q4_K_M", "parameters": {"temperature": 0, "stop": ["a"]}}
            ],
        }
    )
