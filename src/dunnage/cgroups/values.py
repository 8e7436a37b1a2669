"""What cgroups answer, in the kernel's own words: a field has the name of the file, or of the key in it.

None: the kernel has no such file for this cgroup. ``Stat`` is a file of keys and numbers as it is, every key of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

Stat = Mapping[str, int]

_EMPTY: Stat = MappingProxyType({})


class Pids(NamedTuple):
    """``max``: no limit is 0 in v1 and 2**64 - 1 in v2, as the Go shim has it."""

    current: int
    max: int


class RdmaEntry(NamedTuple):
    """``max`` is 2**32 - 1."""

    device: str
    hca_handle: int
    hca_object: int


class Rdma(NamedTuple):
    current: tuple[RdmaEntry, ...] = ()
    max: tuple[RdmaEntry, ...] = ()


class Cpuacct(NamedTuple):
    """Nanoseconds."""

    usage: int = 0
    user: int = 0
    system: int = 0
    usage_percpu: tuple[int, ...] = ()


class Counter(NamedTuple):
    """Bytes, and how often the limit was hit: one of v1's page counters."""

    usage_in_bytes: int = 0
    max_usage_in_bytes: int = 0
    failcnt: int = 0
    limit_in_bytes: int = 0


class BlkioEntry(NamedTuple):
    """``device`` is its path, empty when /proc/partitions does not know it; ``op`` is empty where the file has none."""

    device: str
    major: int
    minor: int
    op: str
    value: int


class Hugetlb(NamedTuple):
    """A page size (``2MB``) of v1: bytes."""

    pagesize: str
    usage_in_bytes: int
    max_usage_in_bytes: int
    failcnt: int


class Memory(NamedTuple):
    """v1."""

    stat: Stat
    memory: Counter = Counter()
    memsw: Counter = Counter()
    kmem: Counter = Counter()
    kmem_tcp: Counter = Counter()


class Blkio(NamedTuple):
    """v1. Where there are no counters of a scheduler, the two that throttling has stand in for them."""

    sectors_recursive: tuple[BlkioEntry, ...] = ()
    io_service_bytes_recursive: tuple[BlkioEntry, ...] = ()
    io_serviced_recursive: tuple[BlkioEntry, ...] = ()
    io_queued_recursive: tuple[BlkioEntry, ...] = ()
    io_service_time_recursive: tuple[BlkioEntry, ...] = ()
    io_wait_time_recursive: tuple[BlkioEntry, ...] = ()
    io_merged_recursive: tuple[BlkioEntry, ...] = ()
    time_recursive: tuple[BlkioEntry, ...] = ()


class V1Metrics(NamedTuple):
    cpu: Stat = _EMPTY
    cpuacct: Cpuacct = Cpuacct()
    memory: Memory | None = None
    oom_control: Stat | None = None
    pids: Pids | None = None
    blkio: Blkio | None = None
    hugetlb: tuple[Hugetlb, ...] = ()
    rdma: Rdma | None = None


class Pressure(NamedTuple):
    """A line of a pressure file: per cent of the time, and microseconds in all."""

    avg10: float = 0.0
    avg60: float = 0.0
    avg300: float = 0.0
    total: int = 0


class PSI(NamedTuple):
    some: Pressure | None = None
    full: Pressure | None = None


class V2Cpu(NamedTuple):
    stat: Stat = _EMPTY
    pressure: PSI | None = None


class V2Memory(NamedTuple):
    """Bytes; no limit is 2**64 - 1, a missing file 0."""

    stat: Stat = _EMPTY
    current: int = 0
    max: int = 0
    peak: int = 0
    swap_current: int = 0
    swap_max: int = 0
    swap_peak: int = 0
    pressure: PSI | None = None


class IOEntry(NamedTuple):
    major: int
    minor: int
    rbytes: int = 0
    wbytes: int = 0
    rios: int = 0
    wios: int = 0


class IO(NamedTuple):
    stat: tuple[IOEntry, ...] = ()
    pressure: PSI | None = None


class V2Hugetlb(NamedTuple):
    """A page size (``2MB``) of v2: bytes, and how often its limit was hit (``max`` of the events file)."""

    pagesize: str
    current: int
    max: int
    events_max: int


class V2Metrics(NamedTuple):
    pids: Pids = Pids(0, 0)
    cpu: V2Cpu = V2Cpu()
    memory: V2Memory = V2Memory()
    memory_events: Stat | None = None
    io: IO = IO()
    rdma: Rdma = Rdma()
    hugetlb: tuple[V2Hugetlb, ...] = ()


Metrics = V1Metrics | V2Metrics
