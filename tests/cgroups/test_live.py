from __future__ import annotations

import logging
import os
from pathlib import Path

from tests.cgroups import live

from dunnage.cgroups import V1Cgroup, cgroup_of, read_metrics
from dunnage.cgroups.values import V1Metrics

LOG = logging.getLogger(__name__)


def v1_metrics(cgroup: V1Cgroup) -> V1Metrics:
    metrics = read_metrics(cgroup, log=LOG)
    assert isinstance(metrics, V1Metrics)
    return metrics


def test_a_process_is_found_in_its_cgroup_whose_numbers_are_its_own() -> None:
    with live.v1_cgroup(limit_bytes=16 << 20) as cgroup:
        with live.process_in(
            cgroup, "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; read line"
        ) as process:
            found = cgroup_of(process.pid, unified=False)
            assert isinstance(found, V1Cgroup)
            assert found.directories.items() >= cgroup.directories.items()
            live.begin(process)
            assert process.stdout is not None
            assert process.stdout.readline() == b"done\n"
            metrics = v1_metrics(cgroup)
            assert metrics.memory is not None
            assert metrics.pids is not None
            assert metrics.pids.current == 1
            assert metrics.memory.memory.limit_in_bytes == 16 << 20
            assert metrics.memory.memory.max_usage_in_bytes > 0
            assert sum(metrics.cpuacct.usage_percpu) == metrics.cpuacct.usage > 0
            assert metrics.blkio is not None
            sizes = {entry.pagesize for entry in metrics.hugetlb}
            assert len(sizes) == len(os.listdir("/sys/kernel/mm/hugepages"))
        assert v1_metrics(cgroup).pids == (0, 0)
        for directory in cgroup.directories.values():
            Path(directory).rmdir()
        gone = v1_metrics(cgroup)
        assert (gone.memory, gone.pids, gone.cpuacct.usage, gone.hugetlb) == (None, None, 0, ())
