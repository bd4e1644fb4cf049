"""The committed record and its tables."""

from __future__ import annotations

import json

import pytest

from bench import figures, page

RECORD = {
    "date": "2026-11-21",
    "machine": {"cpu": "a processor", "cores": 2, "kernel": "6.18", "load_before": 0.1},
    "setting": {"rounds": 3, "seconds": 2.0},
    "versions": {"drover": "CPython 3.11.2", "nginx": "1.22.1"},
    "missing": {"smg": "no such package"},
    "figures": {
        "drover": {
            "stall": {"alone_ms": [20] * 3, "with_bodies_ms": [30] * 3, "stall_ms": [10, 9, 11], "rounds": 3}
        },
        "nginx": {"rest": {"rest_bytes": [18e6] * 3, "idle_ms_per_second": [0.04] * 3, "rounds": 1}},
    },
    "final": figures.final({}, "") | {"cpu_per_request_vs_nginx": 2.5, "stall_ms": 10.0},
}


def test_a_record_becomes_tables_with_its_bars():
    """What is missed is marked, and what was not measured isn't called met."""
    shown = page.markdown(RECORD)

    assert "| CPU a request, times nginx | 2.5 | 2 | **missed** |" in shown
    assert "| stall by a body of 5 MB, ms | 10 | 20 | met |" in shown
    assert "| CPU a request, times Go | not measured | 0.4 | - |" in shown
    assert "| drover | 20.0 | 30.0 | 10.0 [9.0-11.0] |" in shown
    assert "| nginx | 18.0 | 0.0 |" in shown
    assert "smg could not be had: no such package" in shown


def test_tables_go_between_their_marks():
    """The rest of the page stays as it is."""
    before = f"text\n{page.BEGIN}\nold\n{page.END}\nmore"

    after = page.put(before, "| new |")

    assert after == f"text\n{page.BEGIN}\n\n| new |\n\n{page.END}\nmore"
    assert page.put(after, "| new |") == after
    with pytest.raises(ValueError, match="lacks"):
        page.put("text", "| new |")


def test_the_page_says_what_the_record_says():
    """The figures in docs/explanation/performance.md are those of bench/record.json."""
    text = page.PAGE.read_text()

    assert page.put(text, page.markdown(json.loads(page.RECORD.read_text()))) == text
