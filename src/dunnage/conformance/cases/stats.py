"""Stats, field by field, against what the kernel's own files say of the container's cgroup, of either version."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from google.protobuf.message import Message

from dunnage.api import metrics_v1_pb2, metrics_v2_pb2
from dunnage.conformance.case import Area
from dunnage.conformance.cases.measured import Metrics, measure, metrics
from dunnage.conformance.check import Failed, comes_to, equal, refused, that
from dunnage.conformance.scene import RESOURCES_URL, Scene, Task, any_of_json

AREA: Final = Area("stats")
CGROUPS: Final = Path("/sys/fs/cgroup")
TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
TRIES: Final = 20
NO_LIMIT: Final = 2**64 - 1
V1_SPELLING: Final = {
    "pg_pg_in": "pgpgin",
    "pg_pg_out": "pgpgout",
    "pg_fault": "pgfault",
    "pg_maj_fault": "pgmajfault",
    "hierarchical_swap_limit": "hierarchical_memsw_limit",
}
Numbers = Mapping[str, int]


class Files:
    """The files of a container's cgroup."""

    def __init__(self, pid: int) -> None:
        lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
        self.is_v1 = not (CGROUPS / "cgroup.controllers").exists()
        self._paths = {name: path for _, names, path in lines for name in names.split(",")}

    def __call__(self, controller: str, file: str) -> str:
        """Its text; empty where there is no such file."""
        root = CGROUPS / controller if self.is_v1 else CGROUPS
        path = root / self._paths.get(controller if self.is_v1 else "", "/nowhere").lstrip("/") / file
        return path.read_text() if path.exists() else ""

    def number(self, controller: str, file: str) -> int:
        text = self(controller, file).strip()
        return NO_LIMIT if text == "max" else int(text or 0)

    def table(self, controller: str, file: str) -> dict[str, int]:
        return {key: int(value) for key, value in (line.split()[:2] for line in self(controller, file).splitlines())}


async def same(
    task: Task, told: Callable[[Metrics], Numbers], read: Callable[[Files], Numbers], least: int = 1
) -> None:
    """What Stats tells is what the files say; they may move, so it is asked until they stood still meanwhile."""
    files = Files((await task.call("State")).pid)
    for _ in range(TRIES):
        before = read(files)
        found = told(await metrics(task))
        if read(files) == before:
            that(len(before) >= least, f"at least {least} numbers are compared, not {sorted(before)}")
            equal("what Stats tells", {name: found.get(name) for name in before}, before)
            return
    raise Failed("the cgroup's numbers never stand still")


def fields(message: Message, prefix: str = "") -> Numbers:
    """The numbers of a message by name, zeros too."""
    names = [field.name for field in message.DESCRIPTOR.fields if field.cpp_type != field.CPPTYPE_MESSAGE]
    return {prefix + name: getattr(message, name) for name in names if isinstance(getattr(message, name), int)}


@AREA.case("the numbers of memory are those of memory.stat, every field that both have")
async def memory(scene: Scene) -> None:
    def told(found: Metrics) -> Numbers:
        of = fields(found.memory)
        if isinstance(found, metrics_v2_pb2.Metrics):
            return of
        return {spell_v1(name): value for name, value in of.items()}

    known = {spell_v1(name) for name in fields(metrics_v1_pb2.MemoryStat())}

    def read(files: Files) -> Numbers:
        names = known if files.is_v1 else set(fields(metrics_v2_pb2.MemoryStat()))
        return {name: value for name, value in files.table("memory", "memory.stat").items() if name in names}

    await same(await scene.running(), told, read, least=20)


def spell_v1(name: str) -> str:
    """How memory.stat of version 1 spells the field."""
    if name in V1_SPELLING:
        return V1_SPELLING[name]
    total = "total_" if name.startswith("total_") else ""
    rest = name.removeprefix("total_")
    return total + V1_SPELLING.get(rest, rest)


V1_USAGE: Final = {"usage": "memory", "swap": "memory.memsw", "kernel": "memory.kmem", "kernel_tcp": "memory.kmem.tcp"}
V1_ENTRY: Final = {
    "limit": "limit_in_bytes",
    "usage": "usage_in_bytes",
    "max": "max_usage_in_bytes",
    "failcnt": "failcnt",
}
V2_USAGE: Final = {
    "usage": "memory.current",
    "usage_limit": "memory.max",
    "max_usage": "memory.peak",
    "swap_usage": "memory.swap.current",
    "swap_limit": "memory.swap.max",
    "swap_max_usage": "memory.swap.peak",
}


@AREA.case("usage, swap and kernel memory have the files' usage, limit, maximum and failures")
async def usage(scene: Scene) -> None:
    def told(found: Metrics) -> Numbers:
        if isinstance(found, metrics_v2_pb2.Metrics):
            return fields(found.memory)
        entries = {name: getattr(found.memory, name) for name in V1_USAGE}
        return {f"{name} {field}": getattr(entry, field) for name, entry in entries.items() for field in V1_ENTRY}

    def read(files: Files) -> Numbers:
        if not files.is_v1:
            return {name: files.number("memory", file) for name, file in V2_USAGE.items()}
        out = {}
        for name, prefix in V1_USAGE.items():  # in this order, up to the first that the kernel does not have
            if not files("memory", f"{prefix}.usage_in_bytes"):
                break
            for field, end in V1_ENTRY.items():
                out[f"{name} {field}"] = files.number("memory", f"{prefix}.{end}")
        return out

    await same(await scene.running(), told, read, least=4)


@AREA.case("the state of the OOM killer is that of memory.oom_control or memory.events")
async def oom(scene: Scene) -> None:
    def told(found: Metrics) -> Numbers:
        if isinstance(found, metrics_v2_pb2.Metrics):
            return fields(found.memory_events)
        return fields(found.memory_oom_control)

    def read(files: Files) -> Numbers:
        if files.is_v1:
            return files.table("memory", "memory.oom_control")
        return files.table("memory", "memory.events")

    await same(await scene.running(), told, read, least=3)


@AREA.case("the processes are those of pids.current, and no limit is none")
async def pids(scene: Scene) -> None:
    def read(files: Files) -> Numbers:
        limit = files.number("pids", "pids.max")
        return {
            "current": files.number("pids", "pids.current"),
            "limit": 0 if files.is_v1 and limit == NO_LIMIT else limit,
        }

    await same(await scene.running(), lambda found: fields(found.pids), read, least=2)


@AREA.case("the processor's time is that of the accounting, in nanoseconds or microseconds")
async def cpu(scene: Scene) -> None:
    def told(found: Metrics) -> Numbers:
        if isinstance(found, metrics_v2_pb2.Metrics):
            return fields(found.cpu)
        used = found.cpu.usage
        per_cpu = {f"cpu {number}": value for number, value in enumerate(used.per_cpu)}
        return {"total": used.total, "user": used.user, "kernel": used.kernel, **per_cpu}

    def read(files: Files) -> Numbers:
        if not files.is_v1:
            known = metrics_v2_pb2.CPUStat.DESCRIPTOR.fields_by_name
            return {name: value for name, value in files.table("cpu", "cpu.stat").items() if name in known}
        ticks = files.table("cpuacct", "cpuacct.stat")
        per_cpu = files("cpuacct", "cpuacct.usage_percpu").split()
        return {
            "total": files.number("cpuacct", "cpuacct.usage"),
            "user": ticks["user"] * TICK_NS,
            "kernel": ticks["system"] * TICK_NS,
            **{f"cpu {number}": int(value) for number, value in enumerate(per_cpu)},
        }

    await same(await scene.running(), told, read, least=3)


@AREA.case("a container with a quota of the processor tells how often it was throttled")
async def throttled(scene: Scene) -> None:
    spec = scene.spec(("sleep", "100000"))
    spec["linux"]["resources"]["cpu"] = {"quota": 5000, "period": 100000}
    fifos = scene.fifos("e1")
    task = await scene.running(spec=spec)
    loop = "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; echo done"
    await task.started_exec("e1", "sh", "-c", loop, fifos=fifos)
    await fifos.out.wait_for(b"done")
    await task.call("Wait", exec_id="e1")

    def told(found: Metrics) -> Numbers:
        if isinstance(found, metrics_v2_pb2.Metrics):
            return fields(found.cpu)
        of = found.cpu.throttling
        return {"nr_periods": of.periods, "nr_throttled": of.throttled_periods, "throttled_time": of.throttled_time}

    def read(files: Files) -> Numbers:
        known = ("nr_periods", "nr_throttled", "throttled_time" if files.is_v1 else "throttled_usec")
        return {name: value for name, value in files.table("cpu", "cpu.stat").items() if name in known}

    await same(task, told, read, least=3)
    that(told(await metrics(task))["nr_throttled"] > 0, "it was throttled")


@AREA.case("huge pages have an entry for every size of the machine")
async def hugetlb(scene: Scene) -> None:
    task = await scene.running()
    found = await metrics(task)
    has_controller = Files((await task.call("State")).pid)("hugetlb", "hugetlb.2MB.failcnt") or not isinstance(
        found, metrics_v1_pb2.Metrics
    )
    sizes = sorted(path.name for path in Path("/sys/kernel/mm/hugepages").glob("hugepages-*"))
    told = sorted(entry.pagesize for entry in found.hugetlb)
    wanted = sorted(page_size(int(name.removeprefix("hugepages-").removesuffix("kB"))) for name in sizes)
    equal("the sizes", told, wanted if has_controller else [])


def page_size(kib: int) -> str:
    """As the kernel's files are named: 2MB, 1GB."""
    units = ["KB", "MB", "GB", "TB"]
    while kib >= 1024:
        kib //= 1024
        units.pop(0)
    return f"{kib}{units[0]}"


@AREA.case("what was read and written is told for each device, as io.stat or blkio's files have it")
async def io(scene: Scene) -> None:
    def told(found: Metrics) -> Numbers:
        if isinstance(found, metrics_v2_pb2.Metrics):
            return {
                f"{e.major}:{e.minor} {name}": getattr(e, name) for e in found.io.usage for name in ("rbytes", "wbytes")
            }
        entries = found.blkio.io_service_bytes_recursive
        return {f"{entry.major}:{entry.minor} {entry.op}": entry.value for entry in entries}

    def read(files: Files) -> Numbers:
        if files.is_v1:
            name = "blkio.throttle.io_service_bytes"
            if files("blkio", "blkio.io_serviced_recursive"):
                name = "blkio.io_service_bytes_recursive"
            rows = [line.split() for line in files("blkio", name).splitlines()]
            return {f"{device} {op}": int(value) for device, op, value in (row for row in rows if len(row) == 3)}
        rows = [line.split() for line in files("io", "io.stat").splitlines()]
        pairs = {row[0]: dict(pair.split("=") for pair in row[1:]) for row in rows}
        return {f"{device} {name}": int(of[name]) for device, of in pairs.items() for name in ("rbytes", "wbytes")}

    await same(await scene.running(), told, read, least=0)


async def counts(task: Task, wanted: int) -> None:
    """In the end: the runtime's own threads are in the cgroup for a moment, until they are reaped."""

    async def ask() -> int:
        return (await measure(task)).pids

    await comes_to("how many", ask, wanted)


@AREA.case("Stats counts the container's processes, those of execs too")
async def processes(scene: Scene) -> None:
    task = await scene.running()
    await counts(task, 1)
    await task.started_exec("e1")
    await counts(task, 2)


@AREA.case("Stats of a container that uses memory says how much")
async def uses_memory(scene: Scene) -> None:
    task = await scene.running()
    before = (await measure(task)).memory
    that(0 < before < 1 << 30, "it is more than nothing and less than a gigabyte")
    await task.started_exec("e1", "sh", "-c", "x=$(head -c 8000000 /dev/zero | busybox tr '\\0' x); sleep 100000")

    async def has_grown() -> bool:
        return (await measure(task)).memory > before + 4_000_000

    await comes_to("that it has grown by what the exec holds", has_grown, True)


@AREA.case("Stats has the limit that Update gave")
async def updated(scene: Scene) -> None:
    task = await scene.running()
    await task.call("Update", resources=any_of_json(RESOURCES_URL, {"pids": {"limit": 77}}))
    equal("the limit", (await measure(task)).pids_limit, 77)


@AREA.case("Stats of a container that has used the processor says so, and more so later")
async def used_cpu(scene: Scene) -> None:
    fifos = scene.fifos()
    loop = "while read line; do i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done $line; done"
    stdin = scene.fifos("in", stdin=True)
    task = await scene.task(scene.bundle(("sh", "-c", loop)))
    await task.create(**{**fifos.fields, "stdin": stdin.stdin})
    await task.call("Start")
    stdin.write(b"one\n")
    await fifos.out.wait_for(b"done one")
    first = (await measure(task)).cpu_ns
    that(first > 0, "there is time in it")
    stdin.write(b"two\n")
    await fifos.out.wait_for(b"done two")
    that((await measure(task)).cpu_ns > first, "there is more time in it")


@AREA.case("Stats of a paused container are told as of any other")
async def paused(scene: Scene) -> None:
    task = await scene.running()
    await counts(task, 1)  # before: what is frozen is not reaped either
    await task.call("Pause")
    equal("how many", (await measure(task)).pids, 1)


@AREA.case("Stats of a container that has ended are zeros")
async def stopped(scene: Scene) -> None:
    task = await scene.stopped()
    await counts(task, 0)


@AREA.case("Stats after Delete are refused")
async def deleted(scene: Scene) -> None:
    task = await scene.deleted()
    await refused(task.call("Stats"), "container not created: not found")


@AREA.case("the type of the numbers is that of the machine's cgroups, by its bare name")
async def type_url(scene: Scene) -> None:
    task = await scene.running()
    version = "v1" if Files((await task.call("State")).pid).is_v1 else "v2"
    equal("the type", (await task.call("Stats")).stats.type_url, f"io.containerd.cgroups.{version}.Metrics")
