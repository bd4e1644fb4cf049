"""Validation: every mistake is named with host, key, what was expected, what was found, and the nearest."""

from __future__ import annotations

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from drover import checks, ollama_env, schema
from drover.errors import Problem, report
from drover.rules import cross_checks
from drover.variables import load_defaults, load_options, secret_names, validate


def texts(**variables):
    """Return the problems of host `a` with these variables, as an operator reads them."""
    return [str(problem) for problem in validate(variables, host="a")]


def test_defaults_are_valid():
    """The defaults alone have no problem."""
    assert texts() == []


def test_every_default_has_a_schema_and_the_reverse():
    """Defaults and argument specs name the same variables, and only the defaults hold defaults."""
    assert set(load_defaults()) == set(load_options())
    assert [name for name, option in load_options().items() if "default" in option] == []


def test_every_variable_bears_its_layers_prefix():
    """A variable starts with the name of its layer, or with mirror_ when several layers share it."""
    for layer in schema.sources():
        for name in schema._options_of(layer):
            assert name.startswith("mirror_" if layer == "common" else f"{layer}_"), name


def test_every_variable_is_described():
    """Each option of the schema has a description for the reference page."""
    assert [name for name, option in load_options().items() if not option.get("description")] == []


def test_a_number_for_a_text_is_not_converted():
    """The branch 580 without quotes is refused, with the way to write it."""
    assert texts(nvidia_driver_branch=580) == [
        'a: nvidia_driver_branch: expected a text (str), got 580 (int). Next: quote it: "580"'
    ]


def test_a_text_for_a_number_is_not_converted():
    """A number in quotes is refused, though Ansible would convert it."""
    found = texts(nvidia_driver_reboot_timeout_seconds="60")
    expected = (
        'a: nvidia_driver_reboot_timeout_seconds: expected a whole number (int), got "60" (str). Next: write '
        "the number without quotes"
    )
    assert found == [expected]


def test_a_boolean_is_no_number():
    """True isn't 1."""
    assert "expected a whole number" in texts(nvidia_driver_min_free_mib=True)[0]


def test_a_word_for_a_boolean_is_refused():
    """The text "yes" isn't true."""
    assert "expected true or false (bool)" in texts(nvidia_driver_enabled="yes")[0]


def test_null_is_refused_where_a_value_is_needed():
    """A line without a value isn't silently the default."""
    assert "got null" in texts(nvidia_driver_branch=None)[0]


def test_a_choice_names_the_nearest():
    """A value that isn't among the choices is answered with the choices and the nearest one."""
    assert texts(nvidia_driver_flavour="opne") == [
        'a: nvidia_driver_flavour: expected one of auto, open, proprietary, got "opne" (str). Nearest: open.'
    ]


@pytest.mark.parametrize("value", ["auto", True, False])
def test_a_choice_may_be_a_truth(value):
    """What an operator has as a bool goes on working."""
    assert texts(proxy_compiled=value) == []


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("true", '"true" (str). Nearest: true. Next: write true without quotes'),
        ("off", '"off" (str). Nearest: false. Next: write false without quotes'),
        (1, "1 (int). Nearest: true."),
        (0, "0 (int). Nearest: false."),
        ("Auto", '"Auto" (str). Nearest: auto.'),
        ("automatic", '"automatic" (str). Nearest: auto.'),
        (["auto"], '["auto"] (list). Nearest: auto.'),
        ("mypyc", '"mypyc" (str).'),
    ],
)
def test_what_is_nearly_a_truth_names_the_nearest(value, said):
    """1 isn't true, and a quoted true isn't either; what was meant is named."""
    assert texts(proxy_compiled=value) == [
        f"a: proxy_compiled: expected one of auto, true, false, got {said}"
    ]


def test_an_unknown_name_with_a_layers_prefix_names_the_nearest():
    """A misspelt variable of ours is an error with the right name."""
    (found,) = texts(nvidia_driver_brnach="580")
    assert found.startswith(
        "a: nvidia_driver_brnach: expected a variable of nvidia_driver, got an unknown name."
    )
    assert "Nearest: nvidia_driver_branch." in found


def test_a_misspelt_prefix_is_noticed():
    """A name that is nearly one of ours is taken for a slip of the pen."""
    assert "Nearest: nvidia_driver_branch." in texts(nvdia_driver_branch="580")[0]


def test_other_peoples_variables_are_left_alone():
    """A fleet's own variables are no business of ours."""
    assert texts(site_rack="r7", ansible_host="192.0.2.1") == []


def test_a_template_is_refused():
    """What only Ansible would expand is refused, since pyinfra would take it as it stands."""
    assert "expected a plain value, got a template" in texts(mirror_url="http://{{ mirror_host }}/")[0]


def test_a_secret_of_the_wrong_type_is_not_shown():
    """The message for a secret says its type, never its value."""
    (found,) = [
        text for text in texts(mirror_username="u", mirror_password=31337) if "mirror_password" in text
    ]
    assert "got a int (value hidden)" in found
    assert "31337" not in found


def test_secret_names_come_from_the_schema():
    """The variables with no_log are the secrets."""
    assert "mirror_password" in secret_names()
    assert "mirror_url" not in secret_names()


def test_a_version_outside_its_branch_is_refused():
    """An exact version must belong to the branch, and the message says what to set."""
    (found,) = texts(nvidia_driver_branch="580", nvidia_driver_version="595.10")
    assert "expected a version of branch 580" in found
    assert 'set nvidia_driver_branch: "595"' in found


def test_a_login_inside_the_mirrors_url_is_refused_without_showing_it():
    """Credentials in a URL end up in logs: they belong into the vault."""
    (found,) = texts(mirror_url="http://u:hunter2@mirror/")
    assert "mirror_username and mirror_password" in found
    assert "hunter2" not in found


def test_half_a_login_is_refused():
    """A user without a password can't be meant."""
    assert len(texts(mirror_username="u")) == 1
    assert len(texts(mirror_password="p")) == 1


def test_every_problem_is_reported_at_once():
    """One run names everything that is wrong, not only the first."""
    assert len(texts(nvidia_driver_branch=1, mirror_url=2, nvidia_driver_nope=3)) == 3


def test_proprietary_modules_end_with_branch_615():
    """The rule between branch and flavour holds for branches that the choices don't list yet."""
    values = {**load_defaults(), "nvidia_driver_branch": "620", "nvidia_driver_flavour": "proprietary"}
    assert [finding.path for finding in cross_checks(values)] == ["nvidia_driver_flavour"]


NESTED = {
    "type": "list",
    "elements": "dict",
    "options": {
        "name": {"type": "str", "required": True},
        "level": {"type": "int"},
        "mode": {"type": "str", "choices": ["fast", "slow"]},
        "token": {"type": "str", "no_log": True},
        "tags": {"type": "list", "elements": "str"},
    },
}


def nested(value):
    """Return (path, expected, got, nearest) of every finding in a nested option."""
    found = checks.check("items", value, NESTED)
    return [(finding.path, finding.expected, finding.got, finding.nearest) for finding in found]


@pytest.mark.parametrize(
    ("value", "path", "got"),
    [
        ([{"name": "x", "level": "3"}], "items[x].level", '"3" (str)'),
        ([{"level": 3}], "items[0].name", "nothing: the key is missing"),
        ([{"name": "x", "mode": "fats"}], "items[x].mode", '"fats" (str)'),
        ([{"name": "x", "levle": 3}], "items[x].levle", "an unknown key"),
        ([{"name": "x", "tags": ["a", 1]}], "items[x].tags[1]", "1 (int)"),
        ([{"name": "x", "token": 7}], "items[x].token", "a int (value hidden)"),
        ({"name": "x"}, "items", '{"name": "x"} (dict)'),
        (["x"], "items[0]", '"x" (str)'),
    ],
)
def test_nested_values_are_named_by_their_path(value, path, got):
    """A mistake deep inside a list of mappings is named by its path, with the entry's own name."""
    (found,) = nested(value)
    assert found[0] == path
    assert found[2] == got


def test_nested_unknown_keys_name_the_nearest():
    """An unknown key of a mapping names the nearest one."""
    assert nested([{"name": "x", "levle": 3}])[0][3] == "level"


def test_what_we_accept_ansible_accepts_too():
    """A good nested value passes ansible-core's validator as well as ours."""
    good = [{"name": "x", "level": 3, "mode": "fast", "token": "t", "tags": ["a"]}]
    assert nested(good) == []
    assert not ArgumentSpecValidator({"items": NESTED}).validate({"items": good}).error_messages


def test_redaction_follows_the_schema():
    """Only what the schema marks is hidden, at any depth."""
    shown = checks.redact([{"name": "x", "token": "t"}], NESTED)
    assert shown == [{"name": "x", "token": "********"}]


def test_absent_ollama_settings_are_no_known_ones():
    """The table of settings that don't exist and that of those that do have no name in common."""
    assert not set(ollama_env.ABSENT) & ollama_env.KNOWN


def test_the_report_says_a_shared_problem_once():
    """A problem of the group shows all its hosts in one line, and how many problems there are."""
    same = {"key": "k", "expected": "e", "got": "g"}
    text = report([Problem(host="a", **same), Problem(host="b", **same)])
    assert (
        text == "a, b: k: expected e, got g.\n1 problem in the variables of 2 host(s). No host was touched."
    )
