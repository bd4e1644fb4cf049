"""Replays what the fuzzers have found worth keeping: every input that reaches code in its own way."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

CORPUS = Path(__file__).parent / "corpus"
TARGETS = ("requests", "answers", "life", "bodies", "watches", "door", "encoded")


def loaded(target: str) -> tuple[Callable[[bytes], None], list[bytes]]:
    """Return a target's check, and its inputs: those it begins with and those that were found."""
    module = importlib.import_module(f"tests.fuzz.target_{target}")
    kept = [path.read_bytes() for path in sorted((CORPUS / target).glob("*"))]
    return module.check, [*module.seeds(), *kept]


@pytest.mark.parametrize("target", TARGETS)
def test_corpus(target: str):
    """Every invariant holds for every input."""
    check, inputs = loaded(target)
    assert len(inputs) >= 9
    for data in inputs:
        try:
            check(data)
        except Exception as error:  # noqa: PERF203 - which input it was must be told
            raise AssertionError(f"{target}: {data!r}") from error


def test_the_corpus_stays_small():
    """It is replayed with every run of the tests, and kept in the repository for ever."""
    sizes = [path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()]
    assert len(sizes) < 1500
    assert sum(sizes) < 1 << 20
