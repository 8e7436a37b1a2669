"""A v1 cgroup's numbers, by the rules of the Go shim (shim v2, §3.8).

What a controller does not have is left out and fails nothing; what stands in a file and is no number fails the call.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping

from dunnage.cgroups.files import (
    MAX_UINT64,
    BadFormat,
    huge_page_sizes,
    key_values,
    lines,
    rdma_entries,
    read,
    single,
    unsigned,
)
from dunnage.cgroups.paths import V1Cgroup
from dunnage.cgroups.values import (
    Blkio,
    BlkioEntry,
    Counter,
    Cpuacct,
    Hugetlb,
    Memory,
    Pids,
    Rdma,
    Stat,
    V1Metrics,
)

HUGEPAGES = "/sys/kernel/mm/hugepages"

Devices = Mapping[tuple[int, int], str]

COUNTERS = {"memory": "memory", "memsw": "memory.memsw", "kmem": "memory.kmem", "kmem_tcp": "memory.kmem.tcp"}
"""What a Memory calls each page counter, and what its files begin with, in the order in which they are read."""

BLKIO_NAMES = (
    "sectors_recursive",
    "io_service_bytes_recursive",
    "io_serviced_recursive",
    "io_queued_recursive",
    "io_service_time_recursive",
    "io_wait_time_recursive",
    "io_merged_recursive",
    "time_recursive",
)
_THROTTLE_NAMES = {
    "io_serviced_recursive": "throttle.io_serviced",
    "io_service_bytes_recursive": "throttle.io_service_bytes",
}


def read_v1(cgroup: V1Cgroup, *, proc: str = "/proc", hugepages: str = HUGEPAGES) -> V1Metrics:
    """Every number of ``cgroup``; zeros and Nones when it is gone. Raises Error (BadFormat) for an unreadable file."""
    directories = cgroup.directories
    memory, oom_control = _memory(directories.get("memory"))
    return V1Metrics(
        cpu=_cpu(directories.get("cpu")),
        cpuacct=_cpuacct(directories.get("cpuacct")),
        memory=memory,
        oom_control=oom_control,
        pids=_pids(directories.get("pids")),
        blkio=_blkio(directories.get("blkio"), proc),
        hugetlb=_hugetlb(directories.get("hugetlb"), hugepages),
        rdma=_rdma(directories.get("rdma")),
    )


def parse_blkio(name: str, text: str, devices: Devices) -> tuple[BlkioEntry, ...]:
    """``8:0 Read 512`` or ``8:0 512`` on each line; the line of the total is left out."""
    entries = []
    for line in lines(text):
        words = [word for word in re.split("[ :]", line) if word]
        if len(words) == 2 and words[0] == "Total":
            continue
        if len(words) not in (3, 4):
            raise BadFormat(f"{name}: {line!r} is not a device and its count")
        major, minor = unsigned(words[0]), unsigned(words[1])
        op = words[2] if len(words) == 4 else ""
        entries.append(BlkioEntry(devices.get((major, minor), ""), major, minor, op, unsigned(words[-1])))
    return tuple(entries)


def parse_partitions(text: str) -> dict[tuple[int, int], str]:
    """/proc/partitions: the path of each device by its number; the first one that has it."""
    devices: dict[tuple[int, int], str] = {}
    for line in list(lines(text))[2:]:
        words = line.split()
        if len(words) < 4:
            raise BadFormat(f"partitions: {line!r} is not a partition")
        devices.setdefault((unsigned(words[0]), unsigned(words[1])), posixpath.normpath(f"/dev/{words[3]}"))
    return devices


def parse_cpuacct(stat: str, usage: str, percpu: str, *, ticks_per_s: int) -> Cpuacct:
    """cpuacct.stat (in ticks), cpuacct.usage and cpuacct.usage_percpu (in nanoseconds)."""
    ticks = key_values("cpuacct.stat", stat)
    for key in ("user", "system"):
        if key not in ticks:
            raise BadFormat(f"cpuacct.stat has no {key}")
    return Cpuacct(
        usage=single(usage, unlimited=0),
        user=min(ticks["user"] * 1_000_000_000 // ticks_per_s, MAX_UINT64),
        system=min(ticks["system"] * 1_000_000_000 // ticks_per_s, MAX_UINT64),
        usage_percpu=tuple(unsigned(word) for word in percpu.split()),
    )


def _cpu(directory: str | None) -> Stat:
    if directory is None:
        return {}
    try:
        return key_values("cpu.stat", read(directory, "cpu.stat"))
    except FileNotFoundError:
        return {}


def _cpuacct(directory: str | None) -> Cpuacct:
    if directory is None:
        return Cpuacct()
    try:
        texts = [read(directory, f"cpuacct.{name}") for name in ("stat", "usage", "usage_percpu")]
    except FileNotFoundError:
        return Cpuacct()
    return parse_cpuacct(*texts, ticks_per_s=os.sysconf("SC_CLK_TCK"))


def _memory(directory: str | None) -> tuple[Memory | None, Stat | None]:
    if directory is None:
        return None, None
    try:
        stat = key_values("memory.stat", read(directory, "memory.stat"))
    except FileNotFoundError:
        return None, None
    try:
        oom_control = key_values("memory.oom_control", read(directory, "memory.oom_control"))
    except FileNotFoundError:
        return Memory(stat), None
    found: dict[str, dict[str, int]] = {name: {} for name in COUNTERS}
    try:
        for name, prefix in COUNTERS.items():
            for field in Counter._fields:
                found[name][field] = single(read(directory, f"{prefix}.{field}"), unlimited=0)
    except FileNotFoundError:
        pass  # no swap accounting, as a rule: the Go shim reads no further, and clients know its zeros
    return Memory(stat, **{name: Counter(**values) for name, values in found.items()}), oom_control


def _pids(directory: str | None) -> Pids | None:
    if directory is None:
        return None
    try:
        return Pids(*(single(read(directory, f"pids.{name}"), unlimited=0) for name in ("current", "max")))
    except FileNotFoundError:
        return None


def _blkio(directory: str | None, proc: str) -> Blkio | None:
    if directory is None:
        return None
    found: dict[str, tuple[BlkioEntry, ...]] = {}
    try:
        devices = parse_partitions(read(proc, "partitions"))
        if os.path.lexists(f"{directory}/blkio.io_serviced_recursive"):
            for name in BLKIO_NAMES:
                found[name] = parse_blkio(name, read(directory, f"blkio.{name}"), devices)
        if not any(found.values()):
            for name, file in _THROTTLE_NAMES.items():
                found[name] = parse_blkio(file, read(directory, f"blkio.{file}"), devices)
    except FileNotFoundError:
        pass  # what was read stays
    return Blkio(**found)


def _hugetlb(directory: str | None, hugepages: str) -> tuple[Hugetlb, ...]:
    if directory is None:
        return ()
    found = []
    try:
        for size in huge_page_sizes(hugepages):
            names = ("usage_in_bytes", "max_usage_in_bytes", "failcnt")
            numbers = [single(read(directory, f"hugetlb.{size}.{name}"), unlimited=0) for name in names]
            found.append(Hugetlb(size, *numbers))
    except FileNotFoundError:
        pass  # what was read stays
    return tuple(found)


def _rdma(directory: str | None) -> Rdma | None:
    if directory is None:
        return None
    try:
        current, limit = read(directory, "rdma.current"), read(directory, "rdma.max")
    except FileNotFoundError:
        return None
    if current.count("\n") != limit.count("\n"):
        return None  # a device went away in between
    return Rdma(rdma_entries(current), rdma_entries(limit))
