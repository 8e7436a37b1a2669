from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.cgroups.trees import HUGEPAGES, PROC, TREES, copied, v1_cgroup

from dunnage.cgroups import V1Cgroup
from dunnage.cgroups.files import MAX_UINT32, BadFormat
from dunnage.cgroups.stats_v1 import BLKIO_NAMES, parse_partitions, read_v1
from dunnage.cgroups.values import Blkio, BlkioEntry, Counter, Cpuacct, Hugetlb, Pids, Rdma, RdmaEntry, V1Metrics


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return copied("v1", tmp_path)


def metrics_of(tree: Path) -> V1Metrics:
    return read_v1(v1_cgroup(tree), proc=PROC, hugepages=HUGEPAGES)


def test_cpu_is_read_and_ticks_become_nanoseconds(tree: Path) -> None:
    metrics = metrics_of(tree)
    assert metrics.cpuacct == Cpuacct(2685813060, 1_810_000_000, 860_000_000, (1222491970, 1463321090))
    assert dict(metrics.cpu) == {
        "nr_periods": 120,
        "nr_throttled": 7,
        "throttled_time": 350000000,
        "nr_bursts": 0,
        "burst_time": 0,
    }


def test_cpuacct_is_read_whole_or_not_at_all(tree: Path) -> None:
    (tree / "cpuacct/cpuacct.usage_percpu").unlink()
    assert metrics_of(tree).cpuacct == Cpuacct()


def test_cpuacct_without_its_keys_fails_the_call(tree: Path) -> None:
    (tree / "cpuacct/cpuacct.stat").write_text("user 1\n")
    with pytest.raises(BadFormat, match=r"^cpuacct.stat has no system$"):
        metrics_of(tree)


def test_memory_is_read(tree: Path) -> None:
    metrics = metrics_of(tree)
    assert metrics.memory is not None
    assert metrics.memory.stat["total_pgmajfault"] == 66
    assert metrics.memory.memory == Counter(101, 102, 103, 104)
    assert metrics.memory.memsw == Counter(105, 106, 107, 9223372036854771712)
    assert metrics.memory.kmem == Counter(109, 110, 111, 112)
    assert metrics.memory.kmem_tcp == Counter(113, 114, 115, 116)
    assert metrics.oom_control == {"oom_kill_disable": 0, "under_oom": 1, "oom_kill": 3}


def test_nothing_of_memory_is_read_after_the_first_missing_file(tree: Path) -> None:
    (tree / "memory/memory.memsw.failcnt").unlink()
    memory = metrics_of(tree).memory
    assert memory is not None
    assert memory.memory == Counter(101, 102, 103, 104)
    assert memory.memsw == Counter(105, 106, 0, 0)
    assert memory.kmem == memory.kmem_tcp == Counter()


def test_without_oom_control_memory_has_its_stat_alone(tree: Path) -> None:
    (tree / "memory/memory.oom_control").unlink()
    metrics = metrics_of(tree)
    assert metrics.oom_control is None
    assert metrics.memory is not None
    assert metrics.memory.stat["cache"] == 1351680
    assert metrics.memory.memory == Counter()


def test_without_its_stat_there_is_no_memory(tree: Path) -> None:
    (tree / "memory/memory.stat").unlink()
    metrics = metrics_of(tree)
    assert metrics.memory is None
    assert metrics.oom_control is None


@pytest.mark.parametrize(
    "name",
    ["memory/memory.stat", "memory/memory.oom_control", "memory/memory.failcnt", "cpu/cpu.stat", "pids/pids.max"],
)
def test_a_number_that_is_none_fails_the_call(tree: Path, name: str) -> None:
    (tree / name).write_text("what\n")
    with pytest.raises(BadFormat):
        metrics_of(tree)


def test_no_limit_of_pids_is_zero(tree: Path) -> None:
    assert metrics_of(tree).pids == Pids(4, 0)
    (tree / "pids/pids.max").write_text("100\n")
    assert metrics_of(tree).pids == Pids(4, 100)
    (tree / "pids/pids.current").unlink()
    assert metrics_of(tree).pids is None


def test_throttling_stands_in_where_no_scheduler_counts(tree: Path) -> None:
    blkio = metrics_of(tree).blkio
    assert blkio == Blkio(
        io_serviced_recursive=(
            BlkioEntry("/dev/sda", 8, 0, "Read", 12),
            BlkioEntry("/dev/sda", 8, 0, "Write", 3),
            BlkioEntry("/dev/sda", 8, 0, "Sync", 14),
            BlkioEntry("/dev/sda", 8, 0, "Async", 1),
            BlkioEntry("/dev/sda", 8, 0, "Discard", 0),
            BlkioEntry("/dev/sda", 8, 0, "Total", 15),
            BlkioEntry("", 259, 1, "Read", 2),
            BlkioEntry("", 259, 1, "Total", 2),
        ),
        io_service_bytes_recursive=(
            BlkioEntry("/dev/sda", 8, 0, "Read", 49152),
            BlkioEntry("/dev/sda", 8, 0, "Write", 12288),
            BlkioEntry("/dev/sda", 8, 0, "Total", 61440),
            BlkioEntry("", 259, 1, "Read", 1024),
        ),
    )


def test_a_scheduler_that_counts_is_asked_alone() -> None:
    blkio = read_v1(v1_cgroup(TREES / "v1-cfq"), proc=PROC).blkio
    assert blkio is not None
    assert blkio.sectors_recursive == (BlkioEntry("/dev/sda", 8, 0, "", 120),)
    assert blkio.time_recursive == (BlkioEntry("/dev/sda", 8, 0, "", 17),)
    assert blkio.io_serviced_recursive == (
        BlkioEntry("/dev/sda", 8, 0, "Read", 15),
        BlkioEntry("/dev/sda", 8, 0, "Total", 15),
    )
    assert [len(entries) for entries in blkio] == [1, 5, 2, 1, 1, 1, 1, 1]


def test_a_scheduler_that_counted_nothing_is_as_none(tmp_path: Path) -> None:
    tree = copied("v1-cfq", tmp_path)
    for name in BLKIO_NAMES:
        (tree / f"blkio/blkio.{name}").write_text("Total 0\n")
    blkio = read_v1(v1_cgroup(tree), proc=PROC).blkio
    assert blkio is not None
    assert [entry.value for entry in blkio.io_serviced_recursive][:2] == [12, 3]


def test_blkio_without_files_is_there_and_empty(tree: Path) -> None:
    shutil.rmtree(tree / "blkio")
    (tree / "blkio").mkdir()
    assert metrics_of(tree).blkio == Blkio()


@pytest.mark.parametrize("text", ["8:0\n", "8:0 Read x\n", "8:0 Read 1 2\n", "a:0 1\n", "8:0 -1\n"])
def test_a_bad_line_of_blkio_fails_the_call(tree: Path, text: str) -> None:
    (tree / "blkio/blkio.throttle.io_serviced").write_text(text)
    with pytest.raises(BadFormat):
        metrics_of(tree)


def test_the_first_name_of_a_device_counts() -> None:
    assert parse_partitions("h\n\n 8 0 1 sda\n 8 0 1 again\n 8 16 1 md/d0\n") == {
        (8, 0): "/dev/sda",
        (8, 16): "/dev/md/d0",
    }


def test_hugetlb_has_each_page_size_up_to_the_first_that_is_missing(tree: Path) -> None:
    both = (Hugetlb("1GB", 0, 0, 0), Hugetlb("2MB", 2097152, 4194304, 5))
    assert metrics_of(tree).hugetlb == both
    (tree / "hugetlb/hugetlb.2MB.failcnt").unlink()
    assert metrics_of(tree).hugetlb == both[:1]


def test_rdma_has_the_use_and_the_limit_of_each_device(tree: Path) -> None:
    assert metrics_of(tree).rdma == Rdma(
        (RdmaEntry("mlx4_0", 2, 2000), RdmaEntry("ocrdma1", 3, 0)),
        (RdmaEntry("mlx4_0", 10, MAX_UINT32), RdmaEntry("ocrdma1", MAX_UINT32, MAX_UINT32)),
    )


def test_rdma_is_left_out_when_a_device_came_or_went_in_between(tree: Path) -> None:
    (tree / "rdma/rdma.max").write_text("mlx4_0 hca_handle=10 hca_object=max\n")
    assert metrics_of(tree).rdma is None


def test_a_vanished_cgroup_is_zeros(tmp_path: Path) -> None:
    gone = V1Cgroup({name: f"{tmp_path}/gone/{name}" for name in v1_cgroup().directories})
    assert read_v1(gone, proc=PROC, hugepages=HUGEPAGES) == V1Metrics(blkio=Blkio())


def test_a_cgroup_without_controllers_is_zeros() -> None:
    assert read_v1(V1Cgroup({})) == V1Metrics()
