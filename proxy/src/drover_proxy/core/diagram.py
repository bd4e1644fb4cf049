"""The tables of transitions as Markdown with Mermaid diagrams, for docs/explanation/scheduler.md.

`python -m drover_proxy.core.diagram` prints the blocks; `redraw` puts them into a page between its markers.
"""

from __future__ import annotations

from drover_proxy.core.transitions import (
    ENDED,
    REQUEST_TRANSITIONS,
    RUNNER_TRANSITIONS,
    RequestState,
    RunnerState,
    S,
)


def diagram(table: dict[tuple[S, S], str], first: S) -> str:
    """Return one table as a Mermaid state diagram and a table of reasons."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {first.value}"]
    lines += [f"    {before.value} --> {after.value}" for before, after in table]
    lines += [f"    {state.value} --> [*]" for state in type(first) if state in ENDED]
    lines += ["```", "", "| from | to | when |", "|---|---|---|"]
    lines += [f"| {before.value} | {after.value} | {why} |" for (before, after), why in table.items()]
    return "\n".join(lines)


def blocks() -> dict[str, str]:
    """Return the generated parts of the page by name."""
    return {
        "runners": diagram(RUNNER_TRANSITIONS, RunnerState.ABSENT),
        "requests": diagram(REQUEST_TRANSITIONS, RequestState.WAITING),
    }


def redraw(page: str) -> str:
    """Return the page with its generated parts made anew: `<!-- begin NAME -->` to `<!-- end NAME -->`."""
    for name, text in blocks().items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        head, found, rest = page.partition(begin)
        _, found_end, tail = rest.partition(end)
        if not found or not found_end:
            raise ValueError(f"the page has no part {begin} ... {end}")
        page = f"{head}{begin}\n{text}\n{end}{tail}"
    return page


if __name__ == "__main__":
    for block in blocks().values():
        print(block)
