"""The page about the scheduler is up to date with its tables."""

from __future__ import annotations

from pathlib import Path

import pytest
from drover_proxy.core.diagram import blocks, redraw
from drover_proxy.core.transitions import REQUEST_TRANSITIONS, RUNNER_TRANSITIONS

PAGE = Path(__file__).resolve().parents[3] / "docs" / "explanation" / "scheduler.md"


def test_page_is_up_to_date():
    """The diagrams in the page are those of the tables; redraw() makes them so."""
    text = PAGE.read_text()
    assert redraw(text) == text, "paste what `python -m drover_proxy.core.diagram` prints"


def test_every_transition_is_drawn():
    """Each pair of the tables is an arrow and a row."""
    drawn = "\n".join(blocks().values())
    for before, after in (*RUNNER_TRANSITIONS, *REQUEST_TRANSITIONS):
        assert f"    {before.value} --> {after.value}\n" in drawn
        assert f"| {before.value} | {after.value} |" in drawn


def test_redraw_wants_its_markers():
    """A page without the places for the diagrams is refused, not silently left as it is."""
    with pytest.raises(ValueError, match="begin runners"):
        redraw("# A page")
    assert redraw(
        redraw("<!-- begin runners --><!-- end runners --><!-- begin requests --><!-- end requests -->")
    )
