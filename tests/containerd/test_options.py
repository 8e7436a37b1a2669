"""The runtime options on their way from a client through containerd and the shim to the OCI runtime's command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from tests import newer
from tests.containerd import image
from tests.containerd.direct import Bundle, Connection, busybox_rootfs
from tests.containerd.harness import GO_SHIM, PATH, Containerd, Result, Shim, cgroups_named, remove_cgroups, wait_until
from tests.containerd.test_restart import is_gone

import dunnage
from dunnage.api import options_pb2, runtimeoptions_pb2, task_pb2
from dunnage.api.anys import pack_bare

pytestmark = pytest.mark.real

HAS_SYSTEMD = os.path.exists("/run/systemd/system")


class Recorder:
    """A runtime that writes down how it was called, and is runc, or fails where ``refused`` says so of a verb."""

    def __init__(self, directory: Path, name: str = "recorder", *, refused: str = "") -> None:
        directory.mkdir(exist_ok=True)
        self.path, self._calls = directory / name, directory / f"{name}.calls"
        refusal = f'case " $* " in *" {refused} "*) exit 9;; esac' if refused else ""
        self.path.write_text(f'#!/bin/sh\necho "$@" >> {self._calls}\n{refusal}\nexec {shutil.which("runc")} "$@"\n')
        self.path.chmod(0o755)

    def call(self, verb: str) -> list[str]:
        """The first call of that verb."""
        calls = [line.split() for line in self._calls.read_text().splitlines()]
        return next(call for call in calls if verb in call)

    def forget(self) -> None:
        self._calls.unlink()


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path / "runtimes")


@pytest.fixture
def as_runc(
    request: pytest.FixtureRequest, recorder: Recorder, image_tar: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Containerd]:
    """A containerd whose io.containerd.runc.v2 is dunnage (or Go's), and in whose PATH the recorder is."""
    name = str(request.config.getoption("shim_runtime"))
    directories = request.getfixturevalue("shim_directories")
    shim = Shim(name, "crun", Path("/nowhere") if name == GO_SHIM else directories["crun"])
    path = f"{recorder.path.parent}:{PATH}" if shim.is_go else f"{shim.directory}:{recorder.path.parent}:{PATH}"
    environment = {"PATH": path}
    with Containerd(tmp_path_factory.mktemp("o"), shim, image_tar=image_tar, environment=environment) as containerd:
        yield containerd


@pytest.fixture
def under_own_name(
    image_tar: Path, tmp_path_factory: pytest.TempPathFactory, shim_directories: dict[str, Path]
) -> Iterator[Containerd]:
    shim = Shim("io.containerd.dunnage.v2", "runc", shim_directories["runc"])
    with Containerd(tmp_path_factory.mktemp("o"), shim, image_tar=image_tar) as containerd:
        yield containerd


def run(containerd: Containerd, runtime: str, *options: str) -> Result:
    return containerd.ctr("run", "--rm", "--runtime", runtime, *options, image.NAME, "c1", "echo", "hello", check=False)


def test_ctr_s_flags_for_runc_reach_it(as_runc: Containerd, recorder: Recorder, tmp_path: Path) -> None:
    for binary in (recorder.path.name, str(recorder.path)):
        root = f"{tmp_path}/root"
        done = run(as_runc, GO_SHIM, "--runc-binary", binary, "--runc-root", root)
        assert done == (0, b"hello\n", b"")
        create = recorder.call("create")
        assert create[:2] == ["--root", f"{root}/{as_runc.namespace}"]
        assert os.listdir(root) == [as_runc.namespace], "runc had it there"
        assert "--systemd-cgroup" not in create
        recorder.forget()
    missing = run(as_runc, GO_SHIM, "--runc-binary", "no-runc")
    log = as_runc.bundle("c1") / "log.json"
    sentence = (
        f"OCI runtime create failed: unable to retrieve OCI runtime error (open {log}: no such file or directory): "
        'exec: "no-runc": executable file not found in $PATH'
    )
    assert missing.status == 1
    assert sentence in missing.stderr.decode()
    missing = run(as_runc, GO_SHIM, "--runc-binary", "/no/runc")
    assert b"fork/exec /no/runc: no such file or directory" in missing.stderr

    systemd = ("--runc-systemd-cgroup", "--cgroup", f"system.slice:{as_runc.namespace}:c1")
    done = run(as_runc, GO_SHIM, "--runc-binary", recorder.path.name, *systemd)
    assert "--systemd-cgroup" in recorder.call("create")
    if HAS_SYSTEMD:
        assert done == (0, b"hello\n", b"")
    else:
        assert done.status == 1
        reason = "runc create failed: systemd not running on this host, cannot use systemd cgroups manager"
        assert f"OCI runtime create failed: {reason}" in done.stderr.decode()


def test_a_config_path_is_read_and_its_mistakes_are_told(
    under_own_name: Containerd, recorder: Recorder, tmp_path: Path
) -> None:
    name = under_own_name.shim.runtime_name
    config = tmp_path / "runtime.toml"
    config.write_text(f'BinaryName = "{recorder.path}"\nRoot = "{tmp_path}/root"\nNoNewKeyring = true\n')
    assert run(under_own_name, name, "--runtime-config-path", str(config)) == (0, b"hello\n", b"")
    create = recorder.call("create")
    assert create[:2] == ["--root", f"{tmp_path}/root/{under_own_name.namespace}"]
    assert "--no-new-keyring" in create
    for text, said in (
        ("SystemCgroup = true", f"{config}: unknown key SystemCgroup; known are BinaryName, "),
        ("SystemdCgroup = 1", f"{config}: SystemdCgroup is 1; it must be true or false: invalid argument"),
        ("=", f"{config} is not TOML: "),
    ):
        config.write_text(text)
        refused = run(under_own_name, name, "--runtime-config-path", str(config))
        assert refused.status == 1
        assert said in refused.stderr.decode()
    refused = run(under_own_name, name, "--runtime-config-path", "/nowhere/runtime.toml")
    assert b"/nowhere/runtime.toml cannot be read: no such file or directory: invalid argument" in refused.stderr
    assert under_own_name.tasks() == {}
    assert run(under_own_name, name) == (0, b"hello\n", b"")


def test_every_option_has_its_effect(under_own_name: Containerd, recorder: Recorder, tmp_path: Path) -> None:
    rootfs = busybox_rootfs(tmp_path / "rootfs")
    asked = options_pb2.Options(
        no_pivot_root=True,
        no_new_keyring=True,
        io_uid=1234,
        io_gid=4321,
        binary_name=str(recorder.path),
        root=f"{tmp_path}/root",
        criu_path="/opt/criu",
        criu_work_path="/never/used",
    )
    with Bundle(under_own_name, "c1") as bundle, bundle.connect() as connection:
        fifo = tmp_path / "out"
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        request = bundle.create([rootfs], pack_bare(asked))
        request.stdout = str(fifo)
        pid = task_pb2.CreateTaskResponse.FromString(answered(connection, "Create", request)).pid
        create = recorder.call("create")
        assert create[0::2][:3] == ["--root", "--log", "--log-format"]
        assert create[1:4:2] == [f"{tmp_path}/root/{under_own_name.namespace}", f"{bundle.path}/log.json"]
        assert create[6:8] == ["--criu", "/opt/criu"]
        assert create[-3:] == ["--no-pivot", "--no-new-keyring", "c1"]
        assert os.stat(f"/proc/{pid}/fd/1").st_gid == 4321
        assert json.loads((bundle.path / "options.json").read_text()) == {
            "no_pivot_root": True,
            "no_new_keyring": True,
            "io_uid": 1234,
            "io_gid": 4321,
            "binary_name": str(recorder.path),
            "root": f"{tmp_path}/root",
            "criu_path": "/opt/criu",
            "criu_work_path": "/never/used",
        }
        assert (bundle.path / "runtime").read_text() == str(recorder.path)
        answered(connection, "Start", task_pb2.StartRequest(id="c1"))
        end(connection, pid)
        os.close(reader)

    recorder = Recorder(tmp_path / "runtimes", refused="restore")
    asked = options_pb2.Options(binary_name=str(recorder.path), criu_work_path=f"{tmp_path}/criu")
    with Bundle(under_own_name, "c2") as bundle, bundle.connect() as connection:
        request = bundle.create([rootfs], pack_bare(asked))
        request.checkpoint = str(tmp_path)
        answered(connection, "Create", request)
        refused = connection.call("Start", task_pb2.StartRequest(id="c2"))
        assert refused.message.startswith("OCI runtime restore failed: ")
        restore = recorder.call("restore")
        assert restore[restore.index("--work-path") + 1] == f"{tmp_path}/criu"
        answered(connection, "Delete", task_pb2.DeleteRequest(id="c2"))
        connection.send("Shutdown", task_pb2.ShutdownRequest(id="c2"))


def test_options_that_are_none_are_an_invalid_argument_and_the_shim_goes_on(
    under_own_name: Containerd, tmp_path: Path
) -> None:
    rootfs = busybox_rootfs(tmp_path / "rootfs")
    wrong: list[tuple[Message | Any, str]] = [
        (Any(type_url="some.Other", value=b"\x08\x01"), "type 'some.Other' where containerd.runc.v1.Options or"),
        (Any(type_url="containerd.runc.v1.Options", value=b"\xff"), "the value of an Any is no containerd.runc"),
        (runtimeoptions_pb2.Options(config_body=b"x = 1"), "the runtime options (config_body): unknown key x"),
        (runtimeoptions_pb2.Options(config_path="r.toml"), "the runtime options: ConfigPath is 'r.toml'"),
        (runtimeoptions_pb2.Options(config_path=str(tmp_path)), f"{tmp_path} cannot be read: is a directory"),
    ]
    with Bundle(under_own_name, "c1") as bundle:
        for message, said in wrong:
            packed = message if isinstance(message, Any) else pack_bare(message)
            started = bundle.launch(stdin=packed.SerializeToString())
            assert started.returncode == 0, "it is for Create to refuse, with a code"
            with Connection(started.stdout.decode()) as connection:
                refused = connection.call("Create", bundle.create([rootfs], packed))
                assert refused.code == 3
                assert refused.message.startswith(said)
                assert refused.message.endswith(": invalid argument")
        with bundle.connect() as connection:
            body = pack_bare(runtimeoptions_pb2.Options(config_body=b'BinaryName = "runc"'))
            body.type_url = f"type.googleapis.com/{body.type_url}"
            pid = task_pb2.CreateTaskResponse.FromString(
                answered(connection, "Create", bundle.create([rootfs], body))
            ).pid
            end(connection, pid)


@pytest.mark.long
def test_a_cgroup_for_shims_may_be_named_in_a_file(under_own_name: Containerd, tmp_path: Path) -> None:
    name = f"{under_own_name.namespace}-shims"
    for path in cgroups_named(name):
        if "/cpuset" not in path:  # which wants to be filled in first
            Path(path).mkdir()
    config = tmp_path / "runtime.toml"
    config.write_text(f'ShimCgroup = "/{name}"\n')
    packed = pack_bare(runtimeoptions_pb2.Options(config_path=str(config)))
    try:
        with Bundle(under_own_name, "c1") as bundle:
            started = bundle.launch(stdin=packed.SerializeToString())
            with Connection(started.stdout.decode()) as connection:
                answer = answered(connection, "Connect", task_pb2.ConnectRequest(id="c1"))
                worker = task_pb2.ConnectResponse.FromString(answer).shim_pid
                assert f":/{name}\n" in Path(f"/proc/{worker}/cgroup").read_text()
                connection.call("Shutdown", task_pb2.ShutdownRequest(id="c1"))
            bundle.launch("delete")
        wait_until(lambda: is_gone(worker), "the worker of its own has ended, some seconds after the last delete")
    finally:
        remove_cgroups(name)


@pytest.mark.long
def test_containerd_2_is_told_what_the_runtime_can_do(
    image_tar: Path, tmp_path_factory: pytest.TempPathFactory, shim_directories: dict[str, Path]
) -> None:
    shim = Shim("io.containerd.dunnage.v2", "runc", shim_directories["runc"])
    directory = tmp_path_factory.mktemp("o")
    with Containerd(
        directory, shim, image_tar=image_tar, binary=str(newer.directory("containerd") / "containerd")
    ) as containerd:
        told = json.loads(containerd.ctr("plugins", "inspect-runtime", "--runtime", shim.runtime_name).stdout)
    assert (told["Name"], told["Options"], told["Annotations"]) == (shim.runtime_name, None, None)
    assert told["Version"]["Version"] == dunnage.__version__
    features = subprocess.run(["runc", "features"], capture_output=True, check=True).stdout
    assert told["Features"] == json.loads(features)


def answered(connection: Connection, method: str, request: Message) -> bytes:
    answer = connection.call(method, request)
    assert answer.code == 0, answer
    return answer.payload


def end(connection: Connection, pid: int) -> None:
    answered(connection, "Kill", task_pb2.KillRequest(id="c1", signal=9))
    answered(connection, "Wait", task_pb2.WaitRequest(id="c1"))
    answered(connection, "Delete", task_pb2.DeleteRequest(id="c1"))
    connection.send("Shutdown", task_pb2.ShutdownRequest(id="c1"))
