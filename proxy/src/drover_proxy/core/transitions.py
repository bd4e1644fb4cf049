"""The one table of legal transitions, of runners and of requests. Nothing changes state but through it.

The page docs/explanation/scheduler.md is drawn from these tables (see diagram.py).
"""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

from drover_proxy.core.story import Entry


class RunnerState(str, Enum):
    """What a model in an instance is in."""

    ABSENT = "absent"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    UNLOADING = "unloading"
    FAILED = "failed"

    __hash__ = str.__hash__  # Enum's own is written in Python, and every transition is looked up


class RequestState(str, Enum):
    """What a request is in; the last three end it."""

    WAITING = "waiting"
    FORWARDED = "forwarded"
    ANSWERING = "answering"
    DONE = "done"
    REJECTED = "rejected"
    CANCELLED = "cancelled"

    __hash__ = str.__hash__


S = TypeVar("S", RunnerState, RequestState)

_R = RunnerState
RUNNER_TRANSITIONS: dict[tuple[RunnerState, RunnerState], str] = {
    (_R.ABSENT, _R.LOADING): "room is there, the load is sent",
    (_R.ABSENT, _R.READY): "adopted: the instance had it already",
    (_R.LOADING, _R.READY): "loaded, wholly on the GPU",
    (_R.LOADING, _R.FAILED): "the load failed or took too long",
    (_R.LOADING, _R.UNLOADING): "loaded in part on the CPU: unload at once",
    (_R.LOADING, _R.ABSENT): "the instance went down",
    (_R.READY, _R.DRAINING): "must go, but is busy: nothing more is admitted",
    (_R.READY, _R.UNLOADING): "idle and must go",
    (_R.READY, _R.ABSENT): "vanished, or the instance went down",
    (_R.DRAINING, _R.READY): "nobody needs its room any more",
    (_R.DRAINING, _R.UNLOADING): "its last request ended",
    (_R.DRAINING, _R.ABSENT): "vanished, or the instance went down",
    (_R.UNLOADING, _R.ABSENT): "no longer listed",
    (_R.UNLOADING, _R.READY): "could not be unloaded",
    (_R.FAILED, _R.LOADING): "tried again",
    (_R.FAILED, _R.READY): "adopted: it had been loaded after all",
    (_R.FAILED, _R.ABSENT): "the failure is forgotten, or the instance went down",
}

_Q = RequestState
REQUEST_TRANSITIONS: dict[tuple[RequestState, RequestState], str] = {
    (_Q.WAITING, _Q.FORWARDED): "its runner is ready and has a free slot",
    (_Q.WAITING, _Q.REJECTED): "it can't be served, or not in time",
    (_Q.WAITING, _Q.CANCELLED): "the client left",
    (_Q.FORWARDED, _Q.ANSWERING): "the head of the answer was passed on",
    (_Q.FORWARDED, _Q.WAITING): "it never reached the instance",
    (_Q.FORWARDED, _Q.REJECTED): "it never reached the instance, again",
    (_Q.FORWARDED, _Q.DONE): "ended",
    (_Q.FORWARDED, _Q.CANCELLED): "the client left",
    (_Q.ANSWERING, _Q.DONE): "ended",
    (_Q.ANSWERING, _Q.CANCELLED): "the client left",
}

ENDED = frozenset({RequestState.DONE, RequestState.REJECTED, RequestState.CANCELLED})


class IllegalTransition(Exception):  # noqa: N818 - named for what happened; it is always a bug of ours
    """A transition that isn't in the table was asked for; nothing was changed. Carries the story so far."""

    def __init__(self, subject: str, before: str, after: str, story: tuple[Entry, ...]) -> None:
        self.subject = subject
        self.before = before
        self.after = after
        self.story = story
        super().__init__(subject, before, after, story)

    def __reduce__(self) -> tuple[type[IllegalTransition], tuple[object, ...]]:
        # So that it passes from one process to another, as from a worker of a test run: in words only.
        story = tuple(entry._replace(what=entry.text) for entry in self.story)
        return IllegalTransition, (self.subject, self.before, self.after, story)

    def __str__(self) -> str:
        lines = [f"{self.subject} may not go from {self.before} to {self.after}; what happened to it:"]
        lines += [f"  {entry}" for entry in self.story] or ["  (nothing is known)"]
        return "\n".join(lines)


def check(
    table: dict[tuple[S, S], str], subject: str, before: S, after: S, story: tuple[Entry, ...] = ()
) -> None:
    """Raise IllegalTransition unless the table allows going from `before` to `after`."""
    if (before, after) not in table:
        raise IllegalTransition(subject, before.value, after.value, story)
