"""Makes docs/reference/proxy-config.md from the schema, so that the page can't drift from the program."""

from __future__ import annotations

import json
from collections.abc import Mapping

from drover_proxy.config.reader import REQUIRED, Key
from drover_proxy.config.schema import ROOT

INTRODUCTION = """\
# The proxy's configuration

One YAML file, `/etc/drover/proxy.yaml`. `drover-proxy check FILE` checks it without binding a port and names
every mistake at once; `drover-proxy serve --config FILE` runs it. `drover-proxy reload` (which is what
`systemctl reload drover-proxy` does) has it read again and says what that came to; after SIGHUP, which does
the same, the log says it. A key that takes a reload counts from the next request on, also on connections that
are open;
`reloaded` in the log names those that changed. One that takes a restart stays as it was, and
`reload_needs_restart` names it. A file with a mistake changes nothing: the last good one stays. The files
that `auth` and `tls` name are followed without a signal, too.

Sizes in bytes may carry a unit: `512MiB`, `1GiB`. Times are in seconds. Unknown keys are errors.
`name[].key` is a key of each entry of a list, `name.*.key` of each entry of a mapping by name.
"""


def _default(key: Key) -> str:
    if key.default is REQUIRED:
        return "required"
    if key.shown_default is not None:
        return key.shown_default
    return f"`{json.dumps(key.default)}`" if key.default is not None else "none"


def _rows(keys: Mapping[str, Key], prefix: str, *, restart: bool = False) -> list[str]:
    lines = []
    for name, key in keys.items():
        fixed = restart if key.restart is None else key.restart
        cells = (f"`{prefix}{name}`", key.kind, _default(key), key.unit, "restart" if fixed else "reload")
        lines.append(f"| {' | '.join(cells)} | {key.meaning} |".replace("|  |", "| |"))
        if key.section:
            between = "." if key.kind == "mapping" else ".*." if "by" in key.kind else "[]."
            lines += _rows(key.section, f"{prefix}{name}{between}", restart=fixed)
    return lines


def page() -> str:
    """Return the whole page as Markdown."""
    head = "<!-- Generated from drover_proxy.config.schema. Edit that instead. -->\n\n" + INTRODUCTION
    table = [
        "| key | type | default | unit | takes a | meaning |",
        "|---|---|---|---|---|---|",
        *_rows(ROOT, ""),
    ]
    return head + "\n" + "\n".join(table) + "\n"


if __name__ == "__main__":
    print(page(), end="")
