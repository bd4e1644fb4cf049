"""Operations without pyinfra's command: their generator and a scripted host."""

from __future__ import annotations

import pytest
from pyinfra.context import ctx_host

from tests.unit.deploys.support import ScriptedHost


@pytest.fixture
def scripted():
    """Return a scripted host that pyinfra's operations take for the one at hand."""
    host = ScriptedHost()
    with ctx_host.use(host):
        yield host
