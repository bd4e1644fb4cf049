"""The state as plain data: what /drover/v1/state shows and the metrics count. Keys are stable."""

from __future__ import annotations

from typing import Any

from drover_proxy.core.entities import STRAY, Runner
from drover_proxy.core.ledger import NEVER
from drover_proxy.core.state import State


def snapshot(state: State) -> dict[str, Any]:
    """Return the state as dictionaries, lists, numbers and words."""
    return {
        "draining": state.draining,
        "siblings": {
            "requests": sum(n for (_, blob), n in state.siblings.busy.items() if not blob.startswith(STRAY)),
            "own_memory": state.siblings.owns_memory,
        },
        "waiting": state.waiting_count,
        "waiting_by_model": {model: len(queue) for model, queue in state.waiting.items()},
        "in_flight": len(state.requests) - state.waiting_count,
        "orphans": len(state.orphans),
        "instances": [
            {"name": name, "up": name in state.up, "gpus": list(instance.gpu_uuids), "slots": instance.slots}
            for name, instance in state.instances.items()
        ],
        "runners": [_runner(state, runner) for runner in state.runners.values()],
        "plans": [
            {"instance": key.instance, "model": plan.spec.model, "since": plan.since}
            for key, plan in state.plans.items()
        ],
        "gpus": [
            {
                "uuid": book.uuid,
                "total_bytes": book.total_bytes,
                "free_bytes": book.free_bytes,
                "foreign_bytes": book.foreign_bytes,
                "promised_bytes": book.promise.size_bytes if book.promise is not None else 0,
                "held_bytes": sum(book.charges.values()),
                "coming_bytes": sum(release.missing_bytes for release in book.releases.values()),
            }
            for book in state.ledger.books.values()
        ],
        "cooldowns": [
            {"blob": blob, "until": cooldown.until, "code": cooldown.code, "message": cooldown.message}
            for blob, cooldown in state.cooldowns.items()
        ],
        "stuck": {model: code for model, (_, code) in state.stuck.items()},
        "withdrawals": [withdrawal.model for withdrawal in state.withdrawals.values()],
        "models": sorted(state.models),
    }


def _runner(state: State, runner: Runner) -> dict[str, Any]:
    return {
        "instance": runner.key.instance,
        "blob": runner.key.blob,
        "model": runner.model,
        "state": runner.state.value,
        "context": runner.context,
        "slots": runner.slots,
        "active": len(runner.active),
        "elsewhere": runner.elsewhere,
        "last_used": None if runner.last_used_at == NEVER else runner.last_used_at,
        "bytes_by_gpu": state.ledger.shares_of(runner.key),
        "spilled": runner.spilled,
        "ghost": runner.ghost,
    }
