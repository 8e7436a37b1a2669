"""The same container asked twice: by Debian's own shim, and by us."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.containerd import image
from tests.containerd.direct import Connection
from tests.containerd.harness import GO_SHIM, Containerd, Shim, wait_until

from dunnage.api import anys, metrics_v1_pb2, task_pb2
from dunnage.cgroups import Cgroup, cgroup_of, is_unified, read_metrics
from dunnage.service.metrics import message

pytestmark = pytest.mark.real

LOG = logging.getLogger(__name__)
LIMITS = ["--memory-limit", str(32 << 20), "--cpus", "0.5"]
WORK = "dd if=/dev/zero of=/big bs=1M count=8; cat /big > /dev/null; i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done"


@pytest.fixture
def containerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    if is_unified():
        pytest.skip("needs a host with cgroup v1: for v2 Debian's shim lacks the newer fields")
    image_tar = tmp_path_factory.mktemp("image") / "busybox.tar"
    image.write_image(image_tar)
    shim = Shim(GO_SHIM, "runc", Path("/nowhere"))
    with Containerd(tmp_path_factory.mktemp("c"), shim, image_tar=image_tar) as running:
        yield running


def ours(cgroup: Cgroup) -> metrics_v1_pb2.Metrics:
    made = message(read_metrics(cgroup, log=LOG))
    assert isinstance(made, metrics_v1_pb2.Metrics)
    return made


def gos(containerd: Containerd, container_id: str) -> metrics_v1_pb2.Metrics:
    with Connection((containerd.bundle(container_id) / "address").read_text()) as connection:
        answer = connection.wait(connection.send("Stats", task_pb2.StatsRequest(id=container_id)))
    assert answer.code == 0, answer.message
    stats = task_pb2.StatsResponse.FromString(answer.payload).stats
    return anys.unpack(stats, [metrics_v1_pb2.Metrics])


def assert_same(containerd: Containerd, container_id: str, cgroup: Cgroup) -> metrics_v1_pb2.Metrics:
    """Ours is taken before and after Go's, until nothing moved in between."""
    for _ in range(50):
        before, go, after = ours(cgroup), gos(containerd, container_id), ours(cgroup)
        if before == after:
            assert go == before
            return go
    pytest.fail(f"the numbers never stood still:\n{before}\n{after}")


def test_the_go_shim_gives_the_same_numbers_field_by_field(containerd: Containerd) -> None:
    containerd.run_detached("c", "/bin/sh", "-c", f"{WORK}; exec sleep 1000", options=LIMITS)
    pid, _ = containerd.tasks()["c"]
    cgroup = cgroup_of(pid, unified=False)
    wait_until(lambda: b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"), "the work is done")
    metrics = assert_same(containerd, "c", cgroup)
    assert metrics.pids.current == 1
    assert metrics.memory.usage.limit == 32 << 20
    assert metrics.memory.total_cache >= 8 << 20
    assert metrics.cpu.throttling.periods > 0
    assert metrics.cpu.usage.total > 0
    containerd.ctr("task", "kill", "-s", "9", "c")
    wait_until(lambda: containerd.tasks()["c"][1] == "STOPPED", "c has stopped")
    assert_same(containerd, "c", cgroup)
    containerd.remove("c")
    assert not ours(cgroup).pids.current
