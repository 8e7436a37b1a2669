from __future__ import annotations

import logging
from pathlib import Path

import pytest
from tests.cgroups.trees import HUGEPAGES, copied, v2_cgroup

from dunnage.cgroups import V2Cgroup, enable_controllers
from dunnage.cgroups.files import MAX_UINT32, MAX_UINT64, BadFormat
from dunnage.cgroups.stats_v2 import parse_io, parse_pressure, read_v2
from dunnage.cgroups.values import (
    IO,
    PSI,
    IOEntry,
    Pids,
    Pressure,
    Rdma,
    RdmaEntry,
    V2Cpu,
    V2Hugetlb,
    V2Memory,
    V2Metrics,
)

LOG = logging.getLogger(__name__)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return copied("v2", tmp_path)


def metrics_of(tree: Path) -> V2Metrics:
    return read_v2(v2_cgroup(tree), log=LOG, hugepages=HUGEPAGES)


def test_cpu_is_read(tree: Path) -> None:
    cpu = metrics_of(tree).cpu
    assert cpu.stat["usage_usec"] == 2685813
    assert cpu.stat["burst_usec"] == 1500
    assert cpu.pressure == PSI(Pressure(9.96, 5.23, 2.03, 51369204), Pressure(0.3, 0.76, 0.57, 24645618))


def test_without_its_stat_cpu_is_there_and_empty(tree: Path) -> None:
    (tree / "cpu.stat").unlink()
    assert metrics_of(tree).cpu == V2Cpu()


def test_memory_is_read_and_max_is_the_largest_number(tree: Path) -> None:
    memory = metrics_of(tree).memory
    assert memory.stat["workingset_activate_file"] == 5
    assert memory._replace(stat={}) == V2Memory(
        {},
        current=2105344,
        max=33554432,
        peak=8388608,
        swap_current=40960,
        swap_max=MAX_UINT64,
        swap_peak=81920,
        pressure=PSI(Pressure(1.0, 0.5, 0.25, 100), Pressure(0.0, 0.0, 0.0, 7)),
    )


def test_without_its_stat_memory_is_there_without_the_rest(tree: Path) -> None:
    (tree / "memory.stat").unlink()
    assert metrics_of(tree).memory == V2Memory()


@pytest.mark.parametrize("text", [None, "", "many\n", "-5\n", str(MAX_UINT64 + 1)])
def test_a_single_number_that_is_missing_bad_or_negative_is_zero(tree: Path, text: str | None) -> None:
    if text is None:
        (tree / "memory.current").unlink()
    else:
        (tree / "memory.current").write_text(text)
    assert metrics_of(tree).memory.current == 0


def test_a_number_that_is_none_is_logged(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tree / "memory.peak").write_text("many\n")
    metrics_of(tree)
    assert f"{tree}/memory.peak: 'many' is not a number" in caplog.text


@pytest.mark.parametrize("name", ["cpu.stat", "memory.stat", "memory.events"])
def test_a_bad_line_of_keys_and_numbers_fails_the_call(tree: Path, name: str) -> None:
    with (tree / name).open("a") as file:
        file.write("what\n")
    with pytest.raises(BadFormat, match=rf"^{name} line \d+: 'what'"):
        metrics_of(tree)


def test_memory_events_are_absent_when_the_file_is_missing_or_empty(tree: Path) -> None:
    assert metrics_of(tree).memory_events == {
        "low": 1,
        "high": 2,
        "max": 30,
        "oom": 4,
        "oom_kill": 3,
        "oom_group_kill": 0,
    }
    (tree / "memory.events").write_text("")
    assert metrics_of(tree).memory_events is None
    (tree / "memory.events").unlink()
    assert metrics_of(tree).memory_events is None


def test_io_is_read_with_its_pressure(tree: Path) -> None:
    assert metrics_of(tree).io == IO(
        (IOEntry(8, 0, 49152, 12288, 12, 3), IOEntry(253, 0), IOEntry(259, 1, 4096, 0, 1, 0)),
        PSI(Pressure(78.97, 49.23, 19.18, 518414097), Pressure(70.0, 40.0, 10.5, 418414097)),
    )
    (tree / "io.stat").unlink()
    (tree / "io.pressure").unlink()
    assert metrics_of(tree).io == IO()


def test_io_goes_on_after_a_line_without_a_device_and_stops_at_a_bad_number() -> None:
    text = "\nrbytes=1\n8:0:1 rbytes=2\n8:1 rbytes=x wbytes=3 rios\nx:0 rbytes=4\n8:2 rbytes=5\n"
    assert parse_io(text) == (IOEntry(8, 1, wbytes=3),)


def test_pressure_may_have_one_line_alone(tree: Path) -> None:
    assert parse_pressure("some avg10=1.50 avg60=0.00 avg300=0.00 total=7\n") == PSI(Pressure(1.5, 0, 0, 7), None)
    assert parse_pressure("") == PSI()
    (tree / "cpu.pressure").write_text("some avg10=nan\n")
    (tree / "io.pressure").write_text("full avg10\n")
    metrics = metrics_of(tree)
    assert metrics.cpu.pressure is None
    assert metrics.io.pressure is None


def test_pids_are_read_and_no_limit_is_the_largest_number(tree: Path) -> None:
    assert metrics_of(tree).pids == Pids(4, MAX_UINT64)


def test_rdma_is_read(tree: Path) -> None:
    assert metrics_of(tree).rdma == Rdma(
        (RdmaEntry("mlx4_0", 2, 2000), RdmaEntry("ocrdma1", 3, 0)),
        (RdmaEntry("mlx4_0", 10, MAX_UINT32), RdmaEntry("ocrdma1", MAX_UINT32, MAX_UINT32)),
    )


def test_hugetlb_has_every_page_size(tree: Path) -> None:
    assert metrics_of(tree).hugetlb == (V2Hugetlb("1GB", 0, 1 << 30, 0), V2Hugetlb("2MB", 2097152, MAX_UINT64, 5))
    for path in tree.glob("hugetlb.*"):
        path.unlink()
    assert metrics_of(tree).hugetlb == (V2Hugetlb("1GB", 0, 0, 0), V2Hugetlb("2MB", 0, 0, 0))


def test_a_vanished_cgroup_is_zeros(tmp_path: Path) -> None:
    gone = read_v2(V2Cgroup(f"{tmp_path}/gone"), log=LOG, hugepages=f"{tmp_path}/none")
    assert gone == V2Metrics()


def test_controllers_are_enabled_in_every_directory_above(tmp_path: Path) -> None:
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "cgroup.controllers").write_text("memory\n")
    for directory, enabled in (("", "memory\n"), ("a", ""), ("a/b/c", "")):
        (tmp_path / directory / "cgroup.subtree_control").write_text(enabled)
    failures = enable_controllers(V2Cgroup(f"{tmp_path}/a/b/c"), root=str(tmp_path))
    assert (tmp_path / "cgroup.subtree_control").read_text() == "memory\n"
    assert (tmp_path / "a/cgroup.subtree_control").read_text() == "+memory"
    assert failures == [
        f"enable memory in {tmp_path}/a/b/cgroup.subtree_control: No such file or directory",
    ]
    assert (tmp_path / "a/b/c/cgroup.subtree_control").read_text() == ""


def test_controllers_of_no_root_are_a_failure_in_words(tmp_path: Path) -> None:
    assert enable_controllers(V2Cgroup(f"{tmp_path}/a"), root=str(tmp_path)) == [
        f"{tmp_path}/cgroup.controllers: No such file or directory"
    ]
