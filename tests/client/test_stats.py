"""One shape for the statistics of both kinds of cgroups."""

from __future__ import annotations

import pytest
from google.protobuf.any_pb2 import Any as WireAny

from dunnage import errors
from dunnage.api import anys, metrics_v1_pb2, metrics_v2_pb2
from dunnage.client.stats import Cpu, Io, Memory, Pids, read_stats

MIB = 1 << 20


def make_v1() -> metrics_v1_pb2.Metrics:
    made = metrics_v1_pb2.Metrics()
    made.memory.total_inactive_file = 4 * MIB
    made.memory.usage.usage, made.memory.usage.limit, made.memory.usage.max = 10 * MIB, 64 * MIB, 12 * MIB
    made.memory.swap.usage = 11 * MIB
    made.memory_oom_control.oom_kill = 3
    made.cpu.usage.total, made.cpu.usage.user, made.cpu.usage.kernel = 9000, 6000, 3000
    made.cpu.usage.per_cpu.extend([4000, 5000])
    made.cpu.throttling.periods, made.cpu.throttling.throttled_periods = 8, 2
    made.cpu.throttling.throttled_time = 7000
    made.pids.current, made.pids.limit = 5, 100
    for op, value in (("Read", 1), ("Write", 2), ("Sync", 3), ("Total", 3), ("Read", 10)):
        made.blkio.io_service_bytes_recursive.add(op=op, value=value, major=8)
        made.blkio.io_serviced_recursive.add(op=op, value=value * 2, major=8)
    return made


def make_v2() -> metrics_v2_pb2.Metrics:
    made = metrics_v2_pb2.Metrics()
    made.memory.usage, made.memory.inactive_file, made.memory.usage_limit = 10 * MIB, 4 * MIB, 64 * MIB
    made.memory.max_usage, made.memory.swap_usage = 12 * MIB, MIB
    made.memory_events.oom_kill = 3
    made.cpu.usage_usec, made.cpu.user_usec, made.cpu.system_usec = 9, 6, 3
    made.cpu.nr_periods, made.cpu.nr_throttled, made.cpu.throttled_usec = 8, 2, 7
    made.pids.current, made.pids.limit = 5, 100
    made.io.usage.add(rbytes=1, wbytes=2, rios=2, wios=4)
    made.io.usage.add(rbytes=10, rios=20)
    return made


@pytest.mark.parametrize("version", [1, 2])
def test_the_same_numbers_mean_the_same(version: int) -> None:
    stats = read_stats(anys.pack_bare(make_v1() if version == 1 else make_v2()), taken_s=1.0)
    assert stats.cgroup == version
    assert stats.memory == Memory(10 * MIB, 6 * MIB, 64 * MIB, 12 * MIB, MIB, 3)
    assert stats.cpu == Cpu(9000, 6000, 3000, 7000, 8, 2)
    assert stats.pids == Pids(5, 100)
    assert stats.io == Io(11, 2, 22, 4)


def test_everything_else_is_there_as_it_came() -> None:
    raw = read_stats(anys.pack_bare(make_v1())).raw
    assert raw["cpu"]["usage"]["per_cpu"] == [4000, 5000]
    assert raw["blkio"]["io_serviced_recursive"][0] == {"op": "Read", "device": "", "major": 8, "minor": 0, "value": 2}
    assert "rdma" not in raw
    made = make_v2()
    made.memory.psi.some.avg10 = 0.5
    assert read_stats(anys.pack_bare(made)).raw["memory"]["psi"]["some"]["avg10"] == 0.5


def test_no_limit_is_none() -> None:
    first = make_v1()
    first.memory.usage.limit, first.pids.limit = 9223372036854771712, 0
    second = make_v2()
    second.memory.usage_limit = second.pids.limit = 2**64 - 1
    second.memory.max_usage = 0
    for made in (first, second):
        stats = read_stats(anys.pack_bare(made))
        assert (stats.memory.limit_bytes, stats.pids.limit) == (None, None)
    assert stats.memory.peak_bytes is None


def test_an_empty_answer_is_all_zeros() -> None:
    for made in (metrics_v1_pb2.Metrics(), metrics_v2_pb2.Metrics()):
        stats = read_stats(anys.pack_bare(made))
        assert stats.memory == Memory(0, 0, None, None, 0, 0)
        assert stats.io == Io(0, 0, 0, 0)


def test_processors_are_what_was_used_in_the_time_between() -> None:
    before, after = make_v2(), make_v2()
    after.cpu.usage_usec += 1_500_000
    earlier = read_stats(anys.pack_bare(before), taken_s=10.0)
    assert read_stats(anys.pack_bare(after), taken_s=11.0).cpus_since(earlier) == 1.5
    assert earlier.cpus_since(earlier) == 0.0


def test_a_prefix_is_taken_and_another_type_is_not() -> None:
    prefixed = WireAny(type_url="types.x/io.containerd.cgroups.v2.Metrics", value=make_v2().SerializeToString())
    assert read_stats(prefixed).pids.current == 5
    with pytest.raises(errors.Internal, match=r"'x\.Y' where statistics were expected"):
        read_stats(WireAny(type_url="x.Y"))
