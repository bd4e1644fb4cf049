"""NVIDIA's container toolkit."""

from __future__ import annotations

from deploys.lib import operations
from deploys.lib.stage import Context, Layer, SkipLayerError


def preflight(ctx: Context) -> None:
    """Skip when switched off."""
    if not ctx.vars["container_toolkit_enabled"]:
        raise SkipLayerError


def install(ctx: Context) -> None:
    """Nothing yet."""


configure = activate = verify = install


def record(ctx: Context) -> None:
    """Write down what is there."""
    operations.record(name="Record the versions", layer=ctx.layer, values={"x": 1})


LAYER = Layer("container_toolkit", preflight, install, configure, activate, verify, record)
LAYER.run_if_main(__file__)
