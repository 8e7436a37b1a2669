"""What a container has used: one shape for cgroup v1 and v2 where they mean the same, and everything else as it came.

The units are in the names. A limit that is None is none; a peak that is None is one that this kernel does not keep.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from google.protobuf.any_pb2 import Any as WireAny
from google.protobuf.message import Message

from dunnage import errors

if TYPE_CHECKING:
    from dunnage.api import metrics_v1_pb2, metrics_v2_pb2

# v1 says "no limit" as the largest number of whole pages, whose size differs; v2 as 2**64 - 1
_UNLIMITED = 1 << 62
_V1 = "io.containerd.cgroups.v1.Metrics"
_V2 = "io.containerd.cgroups.v2.Metrics"


class Memory(NamedTuple):
    """`working_bytes` is what cannot be given back at once: usage without the file cache that nobody touched lately.

    `oom_kills` counts processes that the kernel killed because there was no memory left for them.
    """

    usage_bytes: int
    working_bytes: int
    limit_bytes: int | None
    peak_bytes: int | None
    swap_bytes: int
    oom_kills: int


class Cpu(NamedTuple):
    """Time since the container was made; throttled is the time that it wanted and its limit took."""

    total_ns: int
    user_ns: int
    system_ns: int
    throttled_ns: int
    periods: int
    throttled_periods: int


class Pids(NamedTuple):
    """Processes and threads."""

    current: int
    limit: int | None


class Io(NamedTuple):
    """Of block devices; what came from the page cache is not in it."""

    read_bytes: int
    written_bytes: int
    reads: int
    writes: int


class Stats(NamedTuple):
    """`raw` has every field of the message (``io.containerd.cgroups.v<cgroup>.Metrics``) by its name on the wire."""

    cgroup: int
    memory: Memory
    cpu: Cpu
    pids: Pids
    io: Io
    taken_s: float
    """By the monotonic clock."""
    raw: Mapping[str, Any]

    def cpus_since(self, earlier: Stats) -> float:
        """How many processors it kept busy since then; 0.0 where no time has passed."""
        elapsed_ns = (self.taken_s - earlier.taken_s) * 1e9
        return max(0, self.cpu.total_ns - earlier.cpu.total_ns) / elapsed_ns if elapsed_ns > 0 else 0.0


def read_stats(stats: WireAny, *, taken_s: float | None = None) -> Stats:
    """The values of a Stats answer; Internal where it is of neither kind."""
    taken_s = time.monotonic() if taken_s is None else taken_s
    name = stats.type_url.rpartition("/")[2]
    if name == _V1:
        from dunnage.api import metrics_v1_pb2

        return _read_v1(metrics_v1_pb2.Metrics.FromString(stats.value), taken_s)
    if name == _V2:
        from dunnage.api import metrics_v2_pb2

        return _read_v2(metrics_v2_pb2.Metrics.FromString(stats.value), taken_s)
    raise errors.Internal(f"the worker answered {stats.type_url!r} where statistics were expected")


def _read_v1(metrics: metrics_v1_pb2.Metrics, taken_s: float) -> Stats:
    memory, cpu, blkio = metrics.memory, metrics.cpu, metrics.blkio
    usage = memory.usage.usage
    sizes, counts = blkio.io_service_bytes_recursive, blkio.io_serviced_recursive
    return Stats(
        cgroup=1,
        memory=Memory(
            usage_bytes=usage,
            working_bytes=max(0, usage - memory.total_inactive_file),
            limit_bytes=_limit(memory.usage.limit),
            peak_bytes=memory.usage.max or None,
            swap_bytes=max(0, memory.swap.usage - usage),  # v1's counter is of memory and swap together
            oom_kills=metrics.memory_oom_control.oom_kill,
        ),
        cpu=Cpu(
            total_ns=cpu.usage.total,
            user_ns=cpu.usage.user,
            system_ns=cpu.usage.kernel,
            throttled_ns=cpu.throttling.throttled_time,
            periods=cpu.throttling.periods,
            throttled_periods=cpu.throttling.throttled_periods,
        ),
        pids=Pids(metrics.pids.current, _limit(metrics.pids.limit)),
        io=Io(_sum_v1(sizes, "read"), _sum_v1(sizes, "write"), _sum_v1(counts, "read"), _sum_v1(counts, "write")),
        taken_s=taken_s,
        raw=fields_of(metrics),
    )


def _read_v2(metrics: metrics_v2_pb2.Metrics, taken_s: float) -> Stats:
    memory, cpu, devices = metrics.memory, metrics.cpu, metrics.io.usage
    return Stats(
        cgroup=2,
        memory=Memory(
            usage_bytes=memory.usage,
            working_bytes=max(0, memory.usage - memory.inactive_file),
            limit_bytes=_limit(memory.usage_limit),
            peak_bytes=memory.max_usage or None,
            swap_bytes=memory.swap_usage,
            oom_kills=metrics.memory_events.oom_kill,
        ),
        cpu=Cpu(
            total_ns=cpu.usage_usec * 1000,
            user_ns=cpu.user_usec * 1000,
            system_ns=cpu.system_usec * 1000,
            throttled_ns=cpu.throttled_usec * 1000,
            periods=cpu.nr_periods,
            throttled_periods=cpu.nr_throttled,
        ),
        pids=Pids(metrics.pids.current, _limit(metrics.pids.limit)),
        io=Io(
            read_bytes=sum(one.rbytes for one in devices),
            written_bytes=sum(one.wbytes for one in devices),
            reads=sum(one.rios for one in devices),
            writes=sum(one.wios for one in devices),
        ),
        taken_s=taken_s,
        raw=fields_of(metrics),
    )


def _sum_v1(entries: Sequence[metrics_v1_pb2.BlkIOEntry], op: str) -> int:
    return sum(entry.value for entry in entries if entry.op.lower() == op)


def _limit(value: int) -> int | None:
    return value if 0 < value < _UNLIMITED else None


def fields_of(message: Message) -> dict[str, Any]:
    """A message as plain values, numbers as numbers (protobuf's own JSON has large ones as text)."""
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if isinstance(value, Message):
            if message.HasField(field.name):
                found[field.name] = fields_of(value)
        elif isinstance(value, str | bytes | int | float):
            found[field.name] = value
        else:
            found[field.name] = [fields_of(one) if isinstance(one, Message) else one for one in value]
    return found
