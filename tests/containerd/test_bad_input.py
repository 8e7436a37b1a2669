"""Bad input gives a clear error with the right code, and leaves nothing behind."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from tests.containerd.direct import Bundle, Connection, busybox_rootfs
from tests.containerd.fuse import HungFilesystem
from tests.containerd.harness import GO_SHIM, Containerd, Shim

from dunnage.api import mount_pb2, task_pb2, task_types_pb2
from dunnage.cli.install import write_launchers

pytestmark = pytest.mark.real

UNKNOWN, INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, FAILED_PRECONDITION = 2, 3, 5, 6, 9

CALLS: dict[str, Message] = {
    "State": task_pb2.StateRequest(id="unknown"),
    "Start": task_pb2.StartRequest(id="unknown"),
    "Delete": task_pb2.DeleteRequest(id="unknown"),
    "Pids": task_pb2.PidsRequest(id="unknown"),
    "Kill": task_pb2.KillRequest(id="unknown", signal=9),
    "Exec": task_pb2.ExecProcessRequest(id="unknown", exec_id="e1"),
    "ResizePty": task_pb2.ResizePtyRequest(id="unknown", width=80, height=24),
    "CloseIO": task_pb2.CloseIORequest(id="unknown", stdin=True),
    "Wait": task_pb2.WaitRequest(id="unknown"),
}
EXEC_CALLS: dict[str, Message] = {
    "State": task_pb2.StateRequest(id="c1", exec_id="unknown"),
    "Start": task_pb2.StartRequest(id="c1", exec_id="unknown"),
    "Delete": task_pb2.DeleteRequest(id="c1", exec_id="unknown"),
    "Kill": task_pb2.KillRequest(id="c1", exec_id="unknown", signal=9),
    "ResizePty": task_pb2.ResizePtyRequest(id="c1", exec_id="unknown", width=80, height=24),
    "CloseIO": task_pb2.CloseIORequest(id="c1", exec_id="unknown", stdin=True),
    "Wait": task_pb2.WaitRequest(id="c1", exec_id="unknown"),
}


@pytest.fixture
def bundle(containerd: Containerd) -> Iterator[Bundle]:
    with Bundle(containerd, "c1") as made:
        yield made


def shut_down(connection: Connection, container_id: str = "c1") -> None:
    """Kill what runs, delete it and let the group go, as containerd would."""
    connection.call("Kill", task_pb2.KillRequest(id=container_id, signal=9, all=True))
    connection.call("Wait", task_pb2.WaitRequest(id=container_id))
    connection.call("Delete", task_pb2.DeleteRequest(id=container_id))
    connection.send("Shutdown", task_pb2.ShutdownRequest(id=container_id))


@pytest.mark.parametrize("spec", [None, "{", '{"annotations": 3}'])
def test_a_bundle_without_a_config_that_can_be_read_is_refused(containerd: Containerd, spec: str | None) -> None:
    with Bundle(containerd, "c1", spec=spec) as bundle:
        result = bundle.launch()
        assert result.returncode == 1
        assert b"config.json" in result.stdout + result.stderr or spec is not None
        assert result.stdout == b""
        assert not (bundle.path / "address").exists()


@pytest.mark.parametrize(
    "options",
    [
        Any(type_url="containerd.runc.v1.Options", value=b"\xff\xff"),
        Any(type_url="type.googleapis.com/containerd.runc.v1.Options", value=b"\x0a\x7f"),
    ],
)
def test_options_that_cannot_be_read_fail_the_create(bundle: Bundle, tmp_path: Path, options: Any) -> None:
    with bundle.connect() as connection:
        answer = connection.call("Create", bundle.create([busybox_rootfs(tmp_path / "root")], options))
        assert answer.code in (UNKNOWN, INVALID_ARGUMENT, FAILED_PRECONDITION)
        assert answer.message
        assert connection.call("Delete", task_pb2.DeleteRequest(id="c1")).code == NOT_FOUND
        assert bundle.mounts() == []
        shut_down(connection)


def test_a_mount_that_cannot_be_made_fails_the_create_and_takes_the_others_back(bundle: Bundle, tmp_path: Path) -> None:
    bad = mount_pb2.Mount(type="overlay", source="overlay", options=["lowerdir=/no/such:/directory"])
    with bundle.connect() as connection:
        answer = connection.call("Create", bundle.create([busybox_rootfs(tmp_path / "root"), bad]))
        assert answer.code == UNKNOWN
        assert "no such file or directory" in answer.message
        assert bundle.mounts() == []
        assert connection.call("State", task_pb2.StateRequest(id="c1")).code == NOT_FOUND
        assert connection.call("Create", bundle.create([busybox_rootfs(tmp_path / "root")])).code == 0
        shut_down(connection)
    assert bundle.mounts() == []


def test_a_mount_that_hangs_hangs_nobody_else(
    bundle: Bundle, tmp_path: Path, containerd: Containerd, dunnage_alone: None
) -> None:
    containerd.run_detached("other", "sleep", "1000")
    with HungFilesystem(tmp_path / "hung") as hung, bundle.connect() as connection:
        mount = mount_pb2.Mount(type="bind", source=f"{hung.directory}/root", options=["rbind"])
        creating = connection.send("Create", bundle.create([mount]))
        began = time.monotonic()
        answer = connection.call("State", task_pb2.StateRequest(id="c1"), 2)
        assert answer.code in (0, NOT_FOUND)
        assert containerd.exec("other", "echo", "goes on").stdout == b"goes on\n"
        assert containerd.run("third", "echo", "new").stdout == b"new\n"
        assert time.monotonic() - began < 10
        began = time.monotonic()
        assert containerd.tasks()["other"][1] == "RUNNING"
        assert time.monotonic() - began < 2
        hung.let_go()
        assert connection.wait(creating).code != 0
        assert bundle.mounts() == []
        shut_down(connection)
    containerd.remove("other")


def test_an_unknown_id_is_not_found_in_each_call(bundle: Bundle, tmp_path: Path) -> None:
    with bundle.connect() as connection:
        assert connection.call("Create", bundle.create([busybox_rootfs(tmp_path / "root")])).code == 0
        assert {call: connection.call(call, request).code for call, request in CALLS.items()} == dict.fromkeys(
            CALLS, NOT_FOUND
        )
        codes = {call: connection.call(call, request).code for call, request in EXEC_CALLS.items()}
        if bundle.containerd.shim.is_go and codes["CloseIO"] == UNKNOWN:
            codes["CloseIO"] = NOT_FOUND
        assert codes == dict.fromkeys(EXEC_CALLS, NOT_FOUND)
        answer = connection.call("Connect", task_pb2.ConnectRequest(id="unknown"))
        assert (answer.code, task_pb2.ConnectResponse.FromString(answer.payload).task_pid) == (0, 0)
        assert connection.call("Shutdown", task_pb2.ShutdownRequest(id="unknown")).code == 0
        state = connection.call("State", task_pb2.StateRequest(id="c1"))
        assert task_pb2.StateResponse.FromString(state.payload).status == task_types_pb2.CREATED
        shut_down(connection)


def test_an_unknown_method_is_unimplemented(bundle: Bundle, tmp_path: Path) -> None:
    with bundle.connect() as connection:
        assert connection.call("Create", bundle.create([busybox_rootfs(tmp_path / "root")])).code == 0
        assert connection.call("NoSuchCall", task_pb2.StateRequest(id="c1")).code == 12
        shut_down(connection)


def test_an_id_that_exists_is_not_created_again(bundle: Bundle, tmp_path: Path, dunnage_alone: None) -> None:
    with bundle.connect() as connection:
        request = bundle.create([busybox_rootfs(tmp_path / "root")])
        assert connection.call("Create", request).code == 0
        assert connection.call("Create", request).code == ALREADY_EXISTS
        assert len(bundle.mounts()) == 1
        shut_down(connection)


def test_an_exec_id_that_exists_is_refused(containerd: Containerd) -> None:
    containerd.run_detached("c1", "sleep", "1000")
    with containerd.popen("task", "exec", "--exec-id", "e1", "c1", "sleep", "1000") as first:
        while b"sleep 1000" not in containerd.exec("c1", "ps", exec_id="look").stdout.replace(b"sleep 1000", b"", 1):
            assert first.poll() is None
        second = containerd.exec("c1", "true", exec_id="e1")
        assert second.status == 1
        assert b"id e1: already exists" in second.stderr
        containerd.remove("c1")
        assert first.wait(20) == 137


def test_a_bundle_path_may_have_spaces_or_4000_characters(containerd_in: Containerd) -> None:
    assert containerd_in.run("c1", "echo", "hello") == (0, b"hello\n", b"")


@pytest.fixture(params=["a state with spaces", "long"])
def containerd_in(
    request: pytest.FixtureRequest, shim: Shim, image_tar: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Containerd]:
    directory = tmp_path_factory.mktemp("s")
    state = directory / request.param
    running = Containerd(directory, shim, image_tar=image_tar, state=state)
    if request.param == "long":
        while missing := 4000 - len(str(running.bundle("c1"))):
            running.state /= "d" * (missing - 1 if missing < 201 else min(200, missing - 3))
    running.state.mkdir(parents=True)
    with running:
        yield running


def test_names_may_be_as_long_as_containerd_lets_them(containerd: Containerd) -> None:
    container_id = "c" * 76
    with containerd.in_namespace(containerd.namespace + "n" * (76 - len(containerd.namespace))):
        containerd.ctr("image", "import", str(containerd.image_tar))
        assert containerd.run(container_id, "echo", "hello") == (0, b"hello\n", b"")
        assert containerd.leftovers() == []


def test_a_state_directory_that_cannot_be_written_is_named(
    image_tar: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> None:
    if request.config.getoption("shim_runtime") == GO_SHIM:
        pytest.skip("about dunnage alone")
    # not below pytest's own directory: the addresses of groups lie below it, and have 107 bytes
    state, launchers = Path(tempfile.mkdtemp(prefix="ro")), tmp_path_factory.mktemp("bin")
    write_launchers(launchers, state_root=f"{state}/dunnage")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", state], check=True)
    try:
        shim = Shim("io.containerd.dunnage.v2", "runc", launchers)
        with Containerd(tmp_path_factory.mktemp("c"), shim, image_tar=image_tar) as containerd:
            result = containerd.run("c1", "true")
            assert result.status == 1
            assert f"mkdir {state}/dunnage: read-only file system".encode() in result.stderr
            assert containerd.leftovers() == []
            assert containerd.shims() == []
    finally:
        subprocess.run(["umount", state], check=True)
        state.rmdir()
        shutil.rmtree(launchers)
