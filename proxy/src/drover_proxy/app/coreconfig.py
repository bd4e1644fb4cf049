"""The core's configuration, from the file's and from the GPUs that were found."""

from __future__ import annotations

from collections.abc import Mapping

from drover_proxy.config.model import InstanceConfig, ProxyConfig
from drover_proxy.config.reader import nearest
from drover_proxy.core.config import CoreConfig, Gpu, Instance, LoadLimits, Profile, QueueLimits

GIB = 1 << 30
TIERS = ((47 * GIB, 262_144), (23 * GIB, 32_768))
SMALL_CONTEXT = 4096


class UnknownGpu(Exception):  # noqa: N818 - names what is wrong
    """An instance is bound to a GPU that this host doesn't have."""


def resolve_gpus(config: ProxyConfig, found: tuple[Gpu, ...]) -> dict[str, tuple[str, ...]]:
    """Return the UUIDs of each instance's GPUs; an index counts as NVML does, or as the file's list."""
    known = [gpu.uuid for gpu in found]
    resolved = {}
    for number, instance in enumerate(config.instances):
        uuids = []
        for name in instance.gpus:
            if name.isdigit() and int(name) < len(known):
                uuids.append(known[int(name)])
            elif name in known:
                uuids.append(name)
            else:
                hint = nearest(name, known) if known else "; it has none"
                raise UnknownGpu(f"instances[{number}].gpus: this host has no GPU {name}{hint}")
        resolved[instance.name] = tuple(uuids)
    return resolved


def default_context(instance: InstanceConfig, uuids: tuple[str, ...], found: tuple[Gpu, ...]) -> int:
    """Return the context of a model that names none: as configured, else by Ollama's tiers of GPU memory."""
    if instance.context is not None:
        return instance.context
    total = sum(gpu.total_bytes for gpu in found if gpu.uuid in uuids)
    return next((context for least, context in TIERS if total >= least), SMALL_CONTEXT)


def core_config(
    config: ProxyConfig, found: tuple[Gpu, ...], uuids: Mapping[str, tuple[str, ...]]
) -> CoreConfig:
    """Make the core's configuration."""
    return CoreConfig(
        gpus=found,
        instances=tuple(
            Instance(
                name=instance.name,
                gpu_uuids=uuids[instance.name],
                slots=instance.slots,
                context_default=default_context(instance, uuids[instance.name], found),
                kv_type=instance.kv_type,
                flash_attention=instance.flash_attention,
            )
            for instance in config.instances
        ),
        profiles={
            name: Profile(context=model.context, slots=model.slots, pin=model.pin, priority=model.priority)
            for name, model in config.models.items()
        },
        queue=QueueLimits(
            max_waiting=config.queue.max_waiting,
            max_wait_seconds=config.queue.max_wait_seconds,
            starve_seconds=config.queue.starve_seconds,
            no_instance_seconds=config.queue.no_instance_seconds,
        ),
        loads=LoadLimits(
            reserve_bytes=config.loads.reserve_bytes,
            timeout_seconds=config.loads.timeout_seconds,
            memory_timeout_seconds=config.loads.memory_timeout_seconds,
            unload_timeout_seconds=config.loads.unload_timeout_seconds,
            retries=config.loads.retries,
            cooldown_seconds=config.loads.cooldown_seconds,
        ),
    )
