"""The errors that drover reports to an operator: what, where, why, and the next command."""

from __future__ import annotations

from dataclasses import dataclass


class DroverError(Exception):
    """Something that the operator can mend; its text is the whole message, without a traceback."""


class FleetError(DroverError):
    """The fleet's folder can't be read: a missing or malformed file, or a secret that can't be decrypted."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with one variable of one host.

    `got` never holds the value of a secret: whoever makes a Problem for a secret says only its type.
    """

    host: str
    key: str
    expected: str
    got: str
    source: str | None = None
    nearest: str | None = None
    next_command: str | None = None

    def __str__(self) -> str:
        where = f" (set in {self.source})" if self.source else ""
        parts = [f"{self.host}: {self.key}{where}: expected {self.expected}, got {self.got}."]
        if self.nearest:
            parts.append(f"Nearest: {self.nearest}.")
        if self.next_command:
            parts.append(f"Next: {self.next_command}")
        return " ".join(parts)

    def to_dict(self) -> dict[str, str | None]:
        """Return the problem as plain data, for `--json`."""
        return {
            "host": self.host,
            "key": self.key,
            "expected": self.expected,
            "got": self.got,
            "source": self.source,
            "nearest": self.nearest,
            "next": self.next_command,
        }


def report(problems: list[Problem]) -> str:
    """Lay out problems as an operator reads them; what several hosts share is said once, with all names."""
    by_text: dict[Problem, list[str]] = {}
    for problem in problems:
        same = Problem("", *(getattr(problem, name) for name in Problem.__slots__[1:]))
        by_text.setdefault(same, []).append(problem.host)
    lines = []
    for same, hosts in by_text.items():
        names = ", ".join(hosts)
        lines.append(str(Problem(names, *(getattr(same, name) for name in Problem.__slots__[1:]))))
    count = len(by_text)
    noun = "problem" if count == 1 else "problems"
    hosts_count = len({problem.host for problem in problems})
    lines.append(f"{count} {noun} in the variables of {hosts_count} host(s). No host was touched.")
    return "\n".join(lines)
