"""A cgroup's numbers as containerd's messages: what the kernel calls a thing, and what the message calls it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from google.protobuf.message import Message

from dunnage.api import metrics_v1_pb2 as v1
from dunnage.api import metrics_v2_pb2 as v2
from dunnage.cgroups.values import (
    PSI,
    BlkioEntry,
    Counter,
    Memory,
    Metrics,
    RdmaEntry,
    Stat,
    V1Metrics,
    V2Memory,
    V2Metrics,
)

M = TypeVar("M", bound=Message)

V1_RENAMED = {
    "pg_pg_in": "pgpgin",
    "pg_pg_out": "pgpgout",
    "pg_fault": "pgfault",
    "pg_maj_fault": "pgmajfault",
    "hierarchical_swap_limit": "hierarchical_memsw_limit",
}
"""Fields of v1's MemoryStat whose key in memory.stat has another name; for ``total_…`` of them as well."""

_V1_NOT_IN_STAT = ("usage", "swap", "kernel", "kernel_tcp")
_V2_NOT_IN_STAT = ("usage", "usage_limit", "swap_usage", "swap_limit", "max_usage", "swap_max_usage", "psi")


def message(metrics: Metrics) -> v1.Metrics | v2.Metrics:
    return _v1(metrics) if isinstance(metrics, V1Metrics) else _v2(metrics)


def _v1(metrics: V1Metrics) -> v1.Metrics:
    cpu, cpuacct = metrics.cpu, metrics.cpuacct
    made = v1.Metrics(
        cpu=v1.CPUStat(
            usage=v1.CPUUsage(
                total=cpuacct.usage, kernel=cpuacct.system, user=cpuacct.user, per_cpu=cpuacct.usage_percpu
            ),
            throttling=v1.Throttle(
                periods=cpu.get("nr_periods", 0),
                throttled_periods=cpu.get("nr_throttled", 0),
                throttled_time=cpu.get("throttled_time", 0),
            ),
        ),
        hugetlb=[
            v1.HugetlbStat(usage=h.usage_in_bytes, max=h.max_usage_in_bytes, failcnt=h.failcnt, pagesize=h.pagesize)
            for h in metrics.hugetlb
        ],
    )
    if metrics.pids is not None:
        made.pids.CopyFrom(v1.PidsStat(current=metrics.pids.current, limit=metrics.pids.max))
    if metrics.memory is not None:
        made.memory.CopyFrom(_v1_memory(metrics.memory))
    if metrics.oom_control is not None:
        made.memory_oom_control.CopyFrom(_from_stat(v1.MemoryOomControl, metrics.oom_control))
    if metrics.blkio is not None:
        blkio = metrics.blkio
        made.blkio.CopyFrom(
            v1.BlkIOStat(
                io_service_bytes_recursive=_blkio(blkio.io_service_bytes_recursive),
                io_serviced_recursive=_blkio(blkio.io_serviced_recursive),
                io_queued_recursive=_blkio(blkio.io_queued_recursive),
                io_service_time_recursive=_blkio(blkio.io_service_time_recursive),
                io_wait_time_recursive=_blkio(blkio.io_wait_time_recursive),
                io_merged_recursive=_blkio(blkio.io_merged_recursive),
                io_time_recursive=_blkio(blkio.time_recursive),
                sectors_recursive=_blkio(blkio.sectors_recursive),
            )
        )
    if metrics.rdma is not None:
        current, limit = (_rdma(v1.RdmaEntry, side) for side in metrics.rdma)
        made.rdma.CopyFrom(v1.RdmaStat(current=current, limit=limit))
    return made


def _v1_memory(memory: Memory) -> v1.MemoryStat:
    made = v1.MemoryStat(
        usage=_counter(memory.memory),
        swap=_counter(memory.memsw),
        kernel=_counter(memory.kmem),
        kernel_tcp=_counter(memory.kmem_tcp),
    )
    for field in v1.MemoryStat.DESCRIPTOR.fields_by_name:
        if field not in _V1_NOT_IN_STAT:
            plain = field.removeprefix("total_")
            prefix = field.removesuffix(plain)
            setattr(made, field, memory.stat.get(prefix + V1_RENAMED.get(plain, plain), 0))
    return made


def _counter(counter: Counter) -> v1.MemoryEntry:
    return v1.MemoryEntry(
        limit=counter.limit_in_bytes,
        usage=counter.usage_in_bytes,
        max=counter.max_usage_in_bytes,
        failcnt=counter.failcnt,
    )


def _blkio(entries: Iterable[BlkioEntry]) -> list[v1.BlkIOEntry]:
    return [v1.BlkIOEntry(op=e.op, device=e.device, major=e.major, minor=e.minor, value=e.value) for e in entries]


def _v2(metrics: V2Metrics) -> v2.Metrics:
    made = v2.Metrics(
        pids=v2.PidsStat(current=metrics.pids.current, limit=metrics.pids.max),
        cpu=_from_stat(v2.CPUStat, metrics.cpu.stat, but=("psi",)),
        memory=_v2_memory(metrics.memory),
        rdma=v2.RdmaStat(
            current=_rdma(v2.RdmaEntry, metrics.rdma.current), limit=_rdma(v2.RdmaEntry, metrics.rdma.max)
        ),
        io=v2.IOStat(usage=[v2.IOEntry(**entry._asdict()) for entry in metrics.io.stat]),
        hugetlb=[
            v2.HugeTlbStat(current=h.current, max=h.max, pagesize=h.pagesize, failcnt=h.events_max)
            for h in metrics.hugetlb
        ],
    )
    if metrics.cpu.pressure is not None:
        made.cpu.psi.CopyFrom(_psi(metrics.cpu.pressure))
    if metrics.io.pressure is not None:
        made.io.psi.CopyFrom(_psi(metrics.io.pressure))
    if metrics.memory_events is not None:
        made.memory_events.CopyFrom(_from_stat(v2.MemoryEvents, metrics.memory_events))
    return made


def _v2_memory(memory: V2Memory) -> v2.MemoryStat:
    made = _from_stat(v2.MemoryStat, memory.stat, but=_V2_NOT_IN_STAT)
    made.usage, made.usage_limit, made.max_usage = memory.current, memory.max, memory.peak
    made.swap_usage, made.swap_limit, made.swap_max_usage = memory.swap_current, memory.swap_max, memory.swap_peak
    if memory.pressure is not None:
        made.psi.CopyFrom(_psi(memory.pressure))
    return made


def _psi(psi: PSI) -> v2.PSIStats:
    made = v2.PSIStats()
    if psi.some is not None:
        made.some.CopyFrom(v2.PSIData(**psi.some._asdict()))
    if psi.full is not None:
        made.full.CopyFrom(v2.PSIData(**psi.full._asdict()))
    return made


def _rdma(kind: type[M], entries: Iterable[RdmaEntry]) -> list[M]:
    """Both versions' RdmaEntry have the same fields."""
    return [kind(device=e.device, hca_handles=e.hca_handle, hca_objects=e.hca_object) for e in entries]


def _from_stat(kind: type[M], stat: Stat, *, but: Iterable[str] = ()) -> M:
    """A message whose fields have the names that the kernel's keys have."""
    return kind(**{field: stat.get(field, 0) for field in kind.DESCRIPTOR.fields_by_name if field not in but})
