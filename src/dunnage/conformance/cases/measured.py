"""A container's numbers, of either version of cgroups, by names that both have."""

from __future__ import annotations

from typing import Final, NamedTuple

from dunnage.api import metrics_v1_pb2, metrics_v2_pb2
from dunnage.conformance.check import equal
from dunnage.conformance.scene import Task

V1: Final = "io.containerd.cgroups.v1.Metrics"
V2: Final = "io.containerd.cgroups.v2.Metrics"
Metrics = metrics_v1_pb2.Metrics | metrics_v2_pb2.Metrics


class Measured(NamedTuple):
    pids: int
    pids_limit: int
    memory: int
    memory_limit: int
    cpu_ns: int


async def metrics(task: Task) -> Metrics:
    any = (await task.call("Stats")).stats
    if any.type_url == V1:
        return metrics_v1_pb2.Metrics.FromString(any.value)
    equal("the type of the numbers", any.type_url, V2)
    return metrics_v2_pb2.Metrics.FromString(any.value)


async def measure(task: Task) -> Measured:
    found = await metrics(task)
    if isinstance(found, metrics_v1_pb2.Metrics):
        usage = found.memory.usage
        return Measured(found.pids.current, found.pids.limit, usage.usage, usage.limit, found.cpu.usage.total)
    memory = found.memory
    return Measured(found.pids.current, found.pids.limit, memory.usage, memory.usage_limit, found.cpu.usage_usec * 1000)
