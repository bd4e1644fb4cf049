"""Where a host's metrics are read: that they answer, and the scrape target for Prometheus.

pyinfra -y inventories/FLEET/inventory.py deploys/monitoring.py
"""

from __future__ import annotations

from pyinfra import host

from deploys.lib import operations
from deploys.lib.stage import Context, Layer, SkipLayerError

SCRAPE = "/etc/drover/scrape.json"


def preflight(ctx: Context) -> None:
    """Work out the address that Prometheus would ask; without the proxy there is nothing to read."""
    if not ctx.vars["monitoring_enabled"] or not ctx.vars["proxy_enabled"]:
        raise SkipLayerError
    name, _, port = ctx.vars["monitoring_listen"].rpartition(":")
    address = str(host.data.get("ssh_hostname") or host.name)
    ctx.notes["port"] = port
    ctx.notes["target"] = f"{address if name == '0.0.0.0' else name}:{port}"  # noqa: S104 - compared, not bound


def install(ctx: Context) -> None:
    """Nothing to install: the metrics are the proxy's own."""


def configure(ctx: Context) -> None:
    """Lay the target in the form that Prometheus reads from files."""
    content = ctx.render("scrape.json.j2", scrape_target=ctx.notes["target"])
    operations.place(name="Place the scrape target", dest=SCRAPE, content=content)


activate = install


def verify(ctx: Context) -> None:
    """See that the metrics answer in Prometheus' form."""
    url = f"http://127.0.0.1:{ctx.notes['port']}/metrics"
    operations.gate(
        name="See that the metrics answer",
        probe=f"curl -fsS -m 10 {url} | grep -q '^# TYPE drover_'",
        message=f"{url} gives no metrics. Next: journalctl -u drover-proxy",
        timeout_seconds=20,
    )


def record(ctx: Context) -> None:
    """Write down the target."""
    operations.record(
        name="Record what is there", layer=ctx.layer, values={"scrape_target": ctx.notes["target"]}
    )


LAYER = Layer("monitoring", preflight, install, configure, activate, verify, record)
LAYER.run_if_main(__file__)
