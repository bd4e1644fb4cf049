"""The life of a request: states, events, and the one table of what may follow what.

`NEXT[state][event]` is the state that follows; an event that has no place in a state raises
`IllegalTransition` and leaves everything as it was. The documentation's diagram is made from `TRANSITIONS` by
`mermaid()`.

    BODY      the head is whole and with the handler; the body is being read (or there is none to wait for)
    HELD      everything is here; the handler decides, queues, loads: `forward` or `respond` is yet to come
    DIALING   `forward` was called, no connection to the upstream yet
    SENT      the request is on its way, no byte of an answer yet
    RELAYING  the upstream's head has gone to the client, its body follows
    MAKING    the proxy itself makes a streamed answer
    DONE      the outcome was reported; nothing may happen any more
"""

from __future__ import annotations

import enum
from typing import Final


class State(enum.IntEnum):
    """Where a request is in its life."""

    BODY = 0
    HELD = 1
    DIALING = 2
    SENT = 3
    RELAYING = 4
    MAKING = 5
    DONE = 6


class Event(enum.IntEnum):
    """What can happen to a request."""

    READY = 0
    """The body is whole, or it streams."""
    FORWARD = 1
    """The handler sends it to an upstream that has no idle connection."""
    CONNECTED = 2
    """A connection is there and the request's head was written to it."""
    FAILED = 3
    """The upstream failed before any byte of an answer."""
    ANSWER = 4
    """The head of the upstream's answer went to the client."""
    ANSWER_END = 5
    """The upstream's answer ended, whole or broken."""
    RESPOND = 6
    """The proxy answered by itself, all at once."""
    START = 7
    """The proxy begins a streamed answer of its own."""
    END = 8
    """The proxy ended, or aborted, its streamed answer."""
    LEFT = 9
    """The client left."""


class IllegalTransition(Exception):  # noqa: N818 - named after what happened
    """An event came in a state in which it has no place: a bug of the caller."""


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.BODY, Event.READY): State.HELD,
    (State.BODY, Event.RESPOND): State.DONE,  # refused by its head (401), or by its body (413)
    (State.BODY, Event.LEFT): State.DONE,
    (State.HELD, Event.FORWARD): State.DIALING,
    (State.HELD, Event.CONNECTED): State.SENT,  # an idle connection was at hand
    (State.HELD, Event.RESPOND): State.DONE,
    (State.HELD, Event.START): State.MAKING,
    (State.HELD, Event.LEFT): State.DONE,
    (State.DIALING, Event.CONNECTED): State.SENT,
    (State.DIALING, Event.FAILED): State.HELD,
    (State.DIALING, Event.RESPOND): State.DONE,  # a streamed body broke its limits meanwhile
    (State.DIALING, Event.LEFT): State.DONE,
    (State.SENT, Event.ANSWER): State.RELAYING,
    (State.SENT, Event.FAILED): State.HELD,
    (State.SENT, Event.RESPOND): State.DONE,  # as for DIALING
    (State.SENT, Event.LEFT): State.DONE,
    (State.RELAYING, Event.ANSWER_END): State.DONE,
    (State.RELAYING, Event.LEFT): State.DONE,
    (State.MAKING, Event.END): State.DONE,
    (State.MAKING, Event.LEFT): State.DONE,
}

NEXT: Final[tuple[tuple[State | None, ...], ...]] = tuple(
    tuple(TRANSITIONS.get((state, event)) for event in Event) for state in State
)


def illegal(state: State, event: Event, story: str) -> IllegalTransition:
    """Make the error for an event that has no place, with what the caller needs to find the bug."""
    allowed = ", ".join(e.name for e in Event if (state, e) in TRANSITIONS) or "nothing"
    return IllegalTransition(f"{event.name} in state {state.name} of {story}: only {allowed} may follow")


def mermaid() -> str:
    """Draw the table as a Mermaid state diagram, for the documentation."""
    lines = ["stateDiagram-v2", "    [*] --> BODY"]
    lines += [f"    {s.name} --> {TRANSITIONS[s, e].name}: {e.name}" for s, e in TRANSITIONS]
    lines.append("    DONE --> [*]")
    return "\n".join(lines) + "\n"
