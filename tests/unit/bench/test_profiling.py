"""Summing up what a sampler saw."""

from __future__ import annotations

from bench.profiling import summary


def test_functions_are_summed_over_lines_and_stacks():
    """The same function at two lines is one; what a recursion passes twice counts once."""
    folded = (
        "main (a/app.py:3);read (a/wire.py:10) 6\n"
        "main (a/app.py:4);read (a/wire.py:12) 2\n"
        "main (a/app.py:4);main (a/app.py:9) 2\n"
    )

    lines = summary(folded).splitlines()

    own = lines[lines.index("itself, per cent") + 1 : lines.index("with what it calls, per cent") - 1]
    assert own == ["  80.0  read (wire.py)", "  20.0  main (app.py)"]
    assert lines[-2:] == [" 100.0  main (app.py)", "  80.0  read (wire.py)"]
    assert lines[0] == "10 samples"
