"""Makes docs/reference/proxy-config.md from the schema, so that the page can't drift from the program."""

from __future__ import annotations

import json
from collections.abc import Mapping

from drover_proxy.config.reader import REQUIRED, Key
from drover_proxy.config.schema import ROOT

INTRODUCTION = """\
# The proxy's configuration

One YAML file, `/etc/drover/proxy.yaml`. `drover-proxy check FILE` checks it without binding a port and names
every mistake at once; `drover-proxy serve --config FILE` runs it. SIGHUP reads it again: keys, `models`,
`queue`, `loads` and `log` take effect at once; for `listen`, `admin_listen`, `tls`, `instances`, `gpus`,
`limits` and `forwarding` the log says that a restart is needed. A file with a mistake changes nothing: the
last good one stays.

Sizes in bytes may carry a unit: `512MiB`, `1GiB`. Times are in seconds. Unknown keys are errors.
`name[].key` is a key of each entry of a list, `name.*.key` of each entry of a mapping by name.
"""


def _default(key: Key) -> str:
    if key.default is REQUIRED:
        return "required"
    if key.shown_default is not None:
        return key.shown_default
    return f"`{json.dumps(key.default)}`" if key.default is not None else "none"


def _rows(keys: Mapping[str, Key], prefix: str) -> list[str]:
    lines = []
    for name, key in keys.items():
        lines.append(
            f"| `{prefix}{name}` | {key.kind} | {_default(key)} | {key.unit} | {key.meaning} |".replace(
                "|  |", "| |"
            )
        )
        if key.section:
            between = "." if key.kind == "mapping" else ".*." if "by" in key.kind else "[]."
            lines += _rows(key.section, f"{prefix}{name}{between}")
    return lines


def page() -> str:
    """Return the whole page as Markdown."""
    head = "<!-- Generated from drover_proxy.config.schema. Edit that instead. -->\n\n" + INTRODUCTION
    table = ["| key | type | default | unit | meaning |", "|---|---|---|---|---|", *_rows(ROOT, "")]
    return head + "\n" + "\n".join(table) + "\n"


if __name__ == "__main__":
    print(page(), end="")
