"""What a worker does where others have ended, and what it tells of containers that are gone."""

from __future__ import annotations

import os
import select
import signal
from pathlib import Path

import pytest
from tests.containerd.direct import SPEC, Bundle, Connection, busybox_rootfs
from tests.containerd.harness import Containerd
from tests.containerd.test_worker_killed import kill_worker

from dunnage.api import mount_pb2, task_pb2

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("dunnage_alone")]


PROCESS: dict[str, object] = {"env": ["PATH=/bin"], "cwd": "/", "user": {"uid": 0, "gid": 0}}


def create(bundle: Bundle, connection: Connection, rootfs: mount_pb2.Mount) -> None:
    assert connection.call("Create", bundle.create([rootfs])).code == 0
    assert connection.call("Start", task_pb2.StartRequest(id=bundle.id)).code == 0


def delete(bundle: Bundle) -> task_pb2.DeleteResponse:
    done = bundle.launch("delete")
    assert done.returncode == 0, done
    return task_pb2.DeleteResponse.FromString(done.stdout)


def test_a_used_bundle_directory_does_not_make_a_container_one_that_is_gone(
    containerd: Containerd, tmp_path: Path
) -> None:
    """A new bundle may have the inode of one that was removed a moment ago."""
    rootfs = busybox_rootfs(tmp_path / "root")
    with Bundle(containerd, "used") as bundle:
        with bundle.connect() as connection:
            assert connection.call("Create", bundle.create([rootfs])).code == 0
            assert connection.call("Delete", task_pb2.DeleteRequest(id=bundle.id)).code == 0
            assert connection.call("Shutdown", task_pb2.ShutdownRequest(id=bundle.id)).code == 0
        with bundle.connect() as connection:
            create(bundle, connection, rootfs)
            wait = connection.send("Wait", task_pb2.WaitRequest(id=bundle.id))
            assert delete(bundle).exit_status == 137
            assert task_pb2.WaitResponse.FromString(connection.wait(wait).payload).exit_status == 137
        assert bundle.mounts() == []


def test_delete_gives_the_real_status_of_a_container_that_has_exited(containerd: Containerd, tmp_path: Path) -> None:
    rootfs = busybox_rootfs(tmp_path / "root")
    spec: dict[str, object] = {**SPEC, "process": {**PROCESS, "args": ["/bin/sh", "-c", "exit 7"]}}
    with Bundle(containerd, "exited", spec=spec) as bundle, bundle.connect() as connection:
        create(bundle, connection, rootfs)
        ended = task_pb2.WaitResponse.FromString(connection.call("Wait", task_pb2.WaitRequest(id=bundle.id)).payload)
        told = delete(bundle)
        assert (told.exit_status, told.exited_at) == (7, ended.exited_at)


def test_the_worker_s_oom_score_is_one_above_containerd_s(containerd: Containerd) -> None:
    containerd.run_detached("c1", "sleep", "1000")
    for _ in range(2):  # the second worker's, too
        worker = containerd.worker()
        score = int(Path(f"/proc/{worker.pid}/oom_score_adj").read_text())
        assert score == int(Path(f"/proc/{containerd.pid}/oom_score_adj").read_text()) + 1
        kill_worker(containerd)
    containerd.remove("c1")


def test_when_the_keeper_is_killed_its_worker_serves_on_and_a_new_one_makes_containers(
    containerd: Containerd, tmp_path: Path
) -> None:
    rootfs = busybox_rootfs(tmp_path / "root")
    with Bundle(containerd, "old") as bundle, bundle.connect() as connection:
        create(bundle, connection, rootfs)
        before = containerd.worker().pid
        os.kill(containerd.keeper().pid, signal.SIGKILL)
        state = connection.call("State", task_pb2.StateRequest(id=bundle.id), timeout_s=5)
        assert state.code == 0
        assert connection.call("Kill", task_pb2.KillRequest(id=bundle.id, signal=9), timeout_s=5).code == 14
        wait = connection.send("Wait", task_pb2.WaitRequest(id=bundle.id))
        assert containerd.run("new", "echo", "new") == (0, b"new\n", b"")
        os.kill(task_pb2.StateResponse.FromString(state.payload).pid, signal.SIGKILL)
        assert connection.wait(wait).code == 0
        os.kill(before, signal.SIGKILL)
        delete(bundle)
        os.unlink(
            (bundle.path / "address").read_text().removeprefix("unix://")
        )  # which the next start there would replace


def test_a_keeper_that_ends_takes_along_the_address_of_what_was_never_created(
    containerd: Containerd,
) -> None:
    with Bundle(containerd, "started") as bundle:
        address = Path(bundle.launch().stdout.decode().removeprefix("unix://"))
        worker = os.pidfd_open(containerd.worker().pid)
        assert address.exists()
        os.kill(containerd.keeper().pid, signal.SIGTERM)
        assert select.select([worker], [], [], 10)[0]
        os.close(worker)
        assert not address.exists()


def test_both_versions_of_the_task_service_are_answered_alike(containerd: Containerd, tmp_path: Path) -> None:
    with Bundle(containerd, "c1") as bundle, bundle.connect() as connection:
        create(bundle, connection, busybox_rootfs(tmp_path / "root"))
        request = task_pb2.StateRequest(id=bundle.id)
        with Connection((bundle.path / "address").read_text(), "containerd.task.v3.Task") as newer:
            state, before = newer.call("State", request), connection.call("State", request)
            assert (state.code, state) == (0, before)
            assert newer.call("NoSuchCall", request).code == 12
        delete(bundle)
