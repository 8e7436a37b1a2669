"""How many workers there are, and where: by the configuration's `group`, and by the options' `shim_cgroup`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any
from tests.containerd.direct import SPEC, Bundle, Connection, busybox_rootfs
from tests.containerd.harness import Containerd, Process, Shim, cgroups_named, remove_cgroups, wait_until

from dunnage.api import mount_pb2, options_pb2, task_pb2

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("dunnage_alone")]

# containerd, and with it the keeper, sees an /etc of its own; the host's stays as it is
CONFIGURED = 'mount -t overlay -o "lowerdir=/etc,upperdir=$0/upper,workdir=$0/work" overlay /etc && exec "$@"'


class Asked:
    """A container that runs; ``end`` does with it what containerd does."""

    def __init__(self, bundle: Bundle, rootfs: mount_pb2.Mount, options: options_pb2.Options) -> None:
        packed = Any(type_url="containerd.runc.v1.Options", value=options.SerializeToString())
        started = bundle.launch(stdin=packed.SerializeToString())
        assert started.returncode == 0, started
        self.address = started.stdout.decode()
        self._id, self._connection = bundle.id, Connection(self.address)
        with self._connection_on_failure():
            assert self._connection.call("Create", bundle.create([rootfs], packed)).code == 0
            assert self._connection.call("Start", task_pb2.StartRequest(id=bundle.id)).code == 0
            answer = self._connection.call("Connect", task_pb2.ConnectRequest(id=bundle.id))
        self.worker_pid = task_pb2.ConnectResponse.FromString(answer.payload).shim_pid

    def end(self) -> None:
        with self._connection as connection:
            connection.call("Kill", task_pb2.KillRequest(id=self._id, signal=9))
            connection.call("Wait", task_pb2.WaitRequest(id=self._id))
            assert connection.call("Delete", task_pb2.DeleteRequest(id=self._id)).code == 0
            connection.send("Shutdown", task_pb2.ShutdownRequest(id=self._id))

    @contextlib.contextmanager
    def _connection_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.end()
            raise


@contextlib.contextmanager
def running(
    containerd: Containerd, rootfs: mount_pb2.Mount, groups: Sequence[str], options: options_pb2.Options | None = None
) -> Iterator[list[Asked]]:
    """Containers c0, c1, … whose annotations name these groups (none where the name is empty)."""
    options = options or options_pb2.Options(binary_name=containerd.shim.oci_runtime)
    with contextlib.ExitStack() as stack:
        asked = []
        for number, group in enumerate(groups):
            annotations = {"io.kubernetes.cri.sandbox-id": group} if group else {}
            bundle = stack.enter_context(Bundle(containerd, f"c{number}", spec={**SPEC, "annotations": annotations}))
            asked.append(Asked(bundle, rootfs, options))
            stack.callback(asked[-1].end)
        yield asked


@pytest.mark.parametrize(("group", "shared"), [("node", "aaa"), ("pod", "aab"), ("container", "abc")])
def test_the_configuration_says_how_many_workers_there_are(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, shim: Shim, image_tar: Path, group: str, shared: str
) -> None:
    for name in ("upper/dunnage", "work"):
        (tmp_path / "etc" / name).mkdir(parents=True)
    (tmp_path / "etc/upper/dunnage/config.toml").write_text(f'group = "{group}"\n')
    prefix = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", CONFIGURED, f"{tmp_path}/etc"]
    with Containerd(tmp_path_factory.mktemp("w"), shim, image_tar=image_tar, prefix=prefix) as containerd:
        with running(containerd, busybox_rootfs(tmp_path / "root"), ["pod", "pod", "other"]) as asked:
            pids = [one.worker_pid for one in asked]
            letters = dict(zip(pids, shared, strict=True))
            assert "".join(letters[pid] for pid in pids) == shared
            assert len(letters) == len(set(shared))
            others = {worker.pid for worker in containerd.workers()} - set(pids)
            assert len(others) == (0 if group == "node" else 1), "the first one answers launchers, whatever there is"
        wait_until(lambda: len(containerd.workers()) == 1, "the others end with their last container")


def test_containers_of_one_cgroup_for_shims_share_a_worker_that_lives_there(
    containerd: Containerd, tmp_path: Path
) -> None:
    name = f"{containerd.namespace}-shims"
    with cgroups(name):
        options = options_pb2.Options(binary_name=containerd.shim.oci_runtime, shim_cgroup=f"/{name}")
        rootfs = busybox_rootfs(tmp_path / "root")
        with running(containerd, rootfs, ["", ""], options) as asked:
            first, second = (one.worker_pid for one in asked)
            assert first == second
            assert f":/{name}\n" in Path(f"/proc/{first}/cgroup").read_text()
            apart = [worker for worker in containerd.workers() if worker.pid != first]
            assert [f"/{name}" in Path(f"/proc/{worker.pid}/cgroup").read_text() for worker in apart] == [False]
            assert asked[0].address != asked[1].address
        wait_until(lambda: pids_of(containerd.workers()) == pids_of(apart), "it ends with its last container")


def pids_of(processes: Sequence[Process]) -> list[int]:
    return [process.pid for process in processes]


@contextlib.contextmanager
def cgroups(name: str) -> Iterator[None]:
    """A cgroup of that name where a process may just go: cpuset of version 1 wants to be filled in first."""
    for path in cgroups_named(name):
        if "/cpuset" not in path:
            Path(path).mkdir()
    try:
        yield
    finally:
        remove_cgroups(name)
