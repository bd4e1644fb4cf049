"""The committed record and its tables."""

from __future__ import annotations

import json

import pytest

from bench import figures, page

RECORD = {
    "date": "2026-11-21",
    "machine": {"cpu": "a processor", "cores": 2, "kernel": "6.18", "load_before": 0.1},
    "setting": {"rounds": 3, "more_rounds": 6, "seconds": 2.0},
    "versions": {"drover": "CPython 3.11.2", "nginx": "1.22.1"},
    "missing": {"smg": "no such package"},
    "figures": {
        "drover": {
            "stall": {"alone_ms": [20] * 3, "with_bodies_ms": [30] * 3, "stall_ms": [10, 9, 11], "rounds": 3}
        },
        "nginx": {"rest": {"rest_bytes": [18e6] * 3, "idle_ms_per_second": [0.04] * 3, "rounds": 1}},
    },
    "final": figures.final({}, "", "compiled")
    | {"cpu_per_request_vs_nginx": 2.5, "stall_ms": 10.0, "stall_ms_pure": 12.5}
    | {"bytes_per_stream": 10240, "bytes_per_stream_at": 5000},
}


def test_a_record_becomes_tables_with_its_bars():
    """What is missed is marked, and what was not measured isn't called met."""
    shown = page.markdown(RECORD)

    assert "drover is the compiled proxy." in shown
    assert "| CPU a request, times nginx | 2.5 | 2 | **missed** | not measured |" in shown
    assert "| stall by a body of 5 MB, ms | 10 | 20 | met | 12.5 |" in shown
    assert "| memory a stream, KiB, of 5,000 | 10 | 24 | met | not measured |" in shown
    assert "| CPU a request, times Go | not measured | 0.4 |  | not measured |" in shown
    assert "| drover | 20.0 | 30.0 | 10.0 [9.0-11.0] |" in shown
    assert "| nginx | 18.0 | 0.0 |" in shown
    assert "smg could not be had: no such package" in shown


def test_a_page_says_when_the_proxy_was_not_compiled():
    """Then there is one build only, and the reader is told why."""
    final = figures.final({}, "", "interpreted", "no C compiler") | {"stall_ms": 10.0}

    shown = page.markdown(RECORD | {"final": final})

    assert "drover is the interpreted proxy here, not the compiled one: no C compiler." in shown
    assert "| stall by a body of 5 MB, ms | 10 | 20 | met |\n" in shown


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
