"""Model names."""

from __future__ import annotations

import pytest
from drover_proxy.dialect.names import CloudName, NameProblem, canonical
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama3.2", "llama3.2:latest"),
        ("Llama3.2:3B", "llama3.2:3b"),
        ("library/llama3.2", "llama3.2:latest"),
        ("registry.ollama.ai/library/llama3.2:3b", "llama3.2:3b"),
        ("REGISTRY.ollama.ai/Library/llama3.2:3b", "llama3.2:3b"),
        ("me/mine", "me/mine:latest"),
        ("hf.co/user/repo:Q4_K_M", "hf.co/user/repo:q4_k_m"),
        ("localhost:5000/a/b:c", "localhost:5000/a/b:c"),
        ("llama3.2:local", "llama3.2:latest"),
        ("llama3.2:3b:local", "llama3.2:3b"),
    ],
)
def test_canonical_names(name, expected):
    """Names that Ollama takes for the same are the same."""
    assert canonical(name) == expected


@pytest.mark.parametrize("name", ["gpt-oss:cloud", "gpt-oss:120b-cloud", "x:CLOUD", "me/x:20b-Cloud"])
def test_cloud_names_are_refused(name):
    """A prompt never leaves the host by a name."""
    with pytest.raises(CloudName):
        canonical(name)


@pytest.mark.parametrize(
    "name", ["", "a:", ":b", "a//b", "/a", "a/b/c/d", "a b", "../a", "ä", "a:b:c", "-a", "a\n"]
)
def test_what_is_no_name(name):
    """What Ollama wouldn't take for a name isn't sent to it."""
    with pytest.raises(NameProblem):
        canonical(name)


@given(st.text(alphabet="aA1._-/:", min_size=1, max_size=20))
def test_canonical_is_stable(name):
    """The canonical form of a canonical form is itself, and case never matters."""
    try:
        once = canonical(name)
    except NameProblem:
        return

    assert canonical(once) == once
    assert canonical(name.upper()) == once
