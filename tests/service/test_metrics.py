from __future__ import annotations

import logging

from google.protobuf.message import Message
from tests.cgroups.trees import HUGEPAGES, PROC, v1_cgroup, v2_cgroup

from dunnage.api import anys, metrics_v1_pb2, metrics_v2_pb2
from dunnage.cgroups.stats_v1 import read_v1
from dunnage.cgroups.stats_v2 import read_v2
from dunnage.cgroups.values import V1Metrics, V2Metrics
from dunnage.service.metrics import message

LOG = logging.getLogger(__name__)
# what no cgroup knows (the Go shim leaves them out too)
NOT_OF_A_CGROUP = {"network", "cgroup_stats"}


def v1_message() -> metrics_v1_pb2.Metrics:
    made = message(read_v1(v1_cgroup(), proc=PROC, hugepages=HUGEPAGES))
    assert isinstance(made, metrics_v1_pb2.Metrics)
    return made


def v2_message() -> metrics_v2_pb2.Metrics:
    made = message(read_v2(v2_cgroup(), log=LOG, hugepages=HUGEPAGES))
    assert isinstance(made, metrics_v2_pb2.Metrics)
    return made


def unset(made: Message, path: str = "") -> set[str]:
    """The fields that nothing has set, below any message of ``made``."""
    found = set()
    for field in made.DESCRIPTOR.fields:
        value = getattr(made, field.name)
        name = f"{path}{field.name}"
        if field.message_type is None:
            if not value:
                found.add(name)
            continue
        # of a list, a field counts as set where one of its messages has it
        inner = [unset(one, f"{name}.") for one in ([value] if isinstance(value, Message) else value)]
        found |= set.intersection(*inner) if inner else {name}
    return found


def test_every_field_of_v1_is_filled() -> None:
    left = unset(v1_message())
    assert {name for name in left if name.split(".")[0] not in NOT_OF_A_CGROUP} == {
        "memory_oom_control.oom_kill_disable",
        "pids.limit",  # max is 0
        *(
            f"blkio.{name}"  # no scheduler counts there
            for name in (
                "io_queued_recursive",
                "io_service_time_recursive",
                "io_wait_time_recursive",
                "io_merged_recursive",
                "io_time_recursive",
                "sectors_recursive",
            )
        ),
    }


def test_every_field_of_v2_is_filled() -> None:
    left = unset(v2_message())
    assert {name for name in left if name.split(".")[0] not in NOT_OF_A_CGROUP} == {
        "memory_events.oom_group_kill",
        # nothing was ever fully stalled long enough
        *(f"memory.psi.full.{name}" for name in ("avg10", "avg60", "avg300")),
        *_ABSENT_V2_KEYS,
    }


# keys that a kernel since 5.9 splits into _anon and _file
_ABSENT_V2_KEYS = {"memory.workingset_refault", "memory.workingset_activate"}


def test_v1_numbers_stand_in_the_fields_of_their_meaning() -> None:
    made = v1_message()
    assert (made.cpu.usage.total, made.cpu.usage.user, made.cpu.usage.kernel) == (2685813060, 1810000000, 860000000)
    assert list(made.cpu.usage.per_cpu) == [1222491970, 1463321090]
    throttling = made.cpu.throttling
    assert (throttling.periods, throttling.throttled_periods, throttling.throttled_time) == (120, 7, 350000000)
    memory = made.memory
    assert (memory.pg_pg_in, memory.pg_pg_out, memory.pg_fault, memory.pg_maj_fault) == (1221, 759, 2970, 33)
    assert (memory.total_pg_pg_in, memory.total_pg_maj_fault) == (2442, 66)
    assert (memory.hierarchical_memory_limit, memory.hierarchical_swap_limit) == (33554432, 67108864)
    assert memory.total_active_file == 811009
    usage = memory.usage
    assert (usage.usage, usage.max, usage.failcnt, usage.limit) == (101, 102, 103, 104)
    assert (memory.swap.usage, memory.kernel.usage, memory.kernel_tcp.limit) == (105, 109, 116)
    assert made.memory_oom_control.oom_kill == 3
    assert made.blkio.io_serviced_recursive[1] == metrics_v1_pb2.BlkIOEntry(
        op="Write", device="/dev/sda", major=8, minor=0, value=3
    )
    assert made.hugetlb[1] == metrics_v1_pb2.HugetlbStat(usage=2097152, max=4194304, failcnt=5, pagesize="2MB")
    assert made.rdma.limit[0] == metrics_v1_pb2.RdmaEntry(device="mlx4_0", hca_handles=10, hca_objects=2**32 - 1)


def test_v2_numbers_stand_in_the_fields_of_their_meaning() -> None:
    made = v2_message()
    assert (made.pids.current, made.pids.limit) == (4, 2**64 - 1)
    assert (made.cpu.usage_usec, made.cpu.nr_bursts, made.cpu.burst_usec) == (2685813, 2, 1500)
    assert made.cpu.psi.some.avg10 == 9.96
    memory = made.memory
    assert (memory.usage, memory.usage_limit, memory.max_usage) == (2105344, 33554432, 8388608)
    assert (memory.swap_usage, memory.swap_limit, memory.swap_max_usage) == (40960, 2**64 - 1, 81920)
    assert (memory.workingset_refault_file, memory.workingset_activate_anon) == (11, 2)
    assert (made.memory_events.max, made.memory_events.oom, made.memory_events.oom_kill) == (30, 4, 3)
    assert made.io.usage[0] == metrics_v2_pb2.IOEntry(major=8, minor=0, rbytes=49152, wbytes=12288, rios=12, wios=3)
    assert made.io.psi.full.total == 418414097
    assert made.hugetlb[1] == metrics_v2_pb2.HugeTlbStat(current=2097152, max=2**64 - 1, pagesize="2MB", failcnt=5)


def test_what_a_vanished_cgroup_still_has_is_what_the_go_shim_has() -> None:
    v1 = metrics_v1_pb2.Metrics()
    v1.cpu.usage.SetInParent()
    v1.cpu.throttling.SetInParent()
    assert message(V1Metrics()) == v1
    v2 = metrics_v2_pb2.Metrics()
    for name in ("pids", "cpu", "memory", "rdma", "io"):
        getattr(v2, name).SetInParent()
    assert message(V2Metrics()) == v2


def test_the_type_is_named_as_containerd_knows_it() -> None:
    assert anys.pack_bare(v1_message()).type_url == "io.containerd.cgroups.v1.Metrics"
    assert anys.pack_bare(v2_message()).type_url == "io.containerd.cgroups.v2.Metrics"
