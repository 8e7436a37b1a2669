"""`delete` where nobody answers: from the bundle's files alone, whole or half-made, and within containerd's 5 s."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from tests.launcher.stage import Room, answer, answering
from tests.runtime.local import hugetlb_mounted

from dunnage import launcher
from dunnage.api import task_pb2

RUNTIME = """#!/bin/sh
{ pwd; for word; do printf '%s\\n' "$word"; done; } > "$(dirname "$0")/called"
"""
UNKNOWN_PID = 4294967295


def runtime(room: Room, script: str = RUNTIME) -> Path:
    path = room.top / "stub-runtime"
    path.write_text(script)
    path.chmod(0o755)
    (room.bundle / "runtime").write_text(str(path))
    return path


def called(room: Room) -> list[str]:
    return (room.top / "called").read_text().splitlines()


def response(done: subprocess.CompletedProcess[bytes]) -> task_pb2.DeleteResponse:
    assert done.returncode == 0, done.stderr
    found = task_pb2.DeleteResponse.FromString(done.stdout)
    assert found.exit_status == 137
    assert abs(found.exited_at.seconds - time.time()) < 60
    return found


def test_a_whole_bundle(room: Room) -> None:
    runtime(room)
    (room.bundle / "init.pid").write_text("4711")
    (room.bundle / "options.json").write_text(json.dumps({"root": "/run/other", "io_uid": 7, "systemd_cgroup": True}))
    done = room.launch("delete", "-bundle", "/somewhere/else")
    assert response(done).pid == 4711
    assert done.stderr == b""
    log = f"{room.bundle}/log.json"
    words = ["--root", "/run/other/default", "--systemd-cgroup", "--log", log, "--log-format", "json"]
    words += ["delete", "--force", "c1"]
    assert called(room) == [str(room.bundle), *words]
    assert not room.state.exists()
    assert not room.starts()


def test_a_bundle_without_options_has_the_default_root(room: Room) -> None:
    runtime(room)
    response(room.launch("delete"))
    assert called(room)[1:3] == ["--root", "/run/containerd/runc/default"]


def test_the_bundle_is_found_beside_the_working_directory_by_id(room: Room) -> None:
    runtime(room)
    (room.bundle / "init.pid").write_text("12")
    elsewhere = room.bundle.with_name("other")
    elsewhere.mkdir()
    done = subprocess.run(room.argv("delete"), cwd=elsewhere, capture_output=True, timeout=30)
    assert response(done).pid == 12


def test_the_runtime_is_runc_where_none_is_named(room: Room) -> None:
    stub = runtime(room)
    (room.bundle / "runtime").write_text("")
    stub.rename(room.top / "runc")
    response(room.launch("delete", env={"PATH": f"{room.top}:{os.environ['PATH']}"}))
    assert called(room)[-3:] == ["delete", "--force", "c1"]


def test_the_runtime_of_the_options_serves_where_its_file_is_missing(room: Room) -> None:
    stub = runtime(room)
    (room.bundle / "runtime").unlink()
    (room.bundle / "options.json").write_text(json.dumps({"binary_name": str(stub)}))
    response(room.launch("delete"))
    assert called(room)[-1] == "c1"


def test_a_runtime_that_fails_is_a_warning_with_its_words(room: Room) -> None:
    runtime(room, "#!/bin/sh\necho 'no such cgroup' >&2\nexit 1\n")
    done = room.launch("delete")
    response(done)
    assert b"failed to remove runc container: no such cgroup\n" in done.stderr


def test_a_runtime_that_is_missing_is_a_warning(room: Room) -> None:
    (room.bundle / "runtime").write_text("/nonexistent/runc")
    done = room.launch("delete")
    response(done)
    assert b"cannot run /nonexistent/runc: no such file or directory\n" in done.stderr


def test_a_runtime_that_hangs_is_killed_with_its_children_within_5_s(room: Room) -> None:
    room.listen()  # and a worker that never answers takes 2 s of them
    runtime(room, '#!/bin/sh\nsleep 300 & echo $! > "$(dirname "$0")/sleeper"\nsleep 301\n')
    start = time.monotonic()
    done = room.launch("delete")
    assert time.monotonic() - start < 5
    response(done)
    assert b"did not end in time and was killed" in done.stderr
    with contextlib.suppress(ProcessLookupError):  # it is gone already
        sleeper = os.pidfd_open(int((room.top / "sleeper").read_text()))
        assert select.select([sleeper], [], [], 10)[0]
        os.close(sleeper)


def test_a_bundle_that_is_gone_is_no_obstacle(room: Room) -> None:
    runtime(room)
    script = f'rmdir_later="$PWD"; rm -r "$rmdir_later"; exec {room.launcher} -namespace default -id c1 delete'
    env = {"PATH": f"{room.top}:{os.environ['PATH']}"}
    (room.top / "stub-runtime").rename(room.top / "runc")
    done = subprocess.run(["sh", "-c", script], cwd=room.bundle, env=env, capture_output=True, timeout=30)
    assert response(done).pid == UNKNOWN_PID
    assert "--log" not in called(room)


@pytest.mark.parametrize(
    "mounts",
    [
        "mount -t tmpfs none $R && mount -t tmpfs none $R && mkdir $R/a && mount -t tmpfs none $R/a && cd $R/a",
        "mount -t tmpfs none $R && mkdir $R/a && mount -t tmpfs none $R/a && mount -t tmpfs none $R",
        "mkdir $R/a && mount -t tmpfs none $R/a && mkdir $R/a/b && mount --bind $R $R/a/b",
        """mkdir "$(printf "$R/a \\\\ b\\r c\\n d\\t e")" && mount -t tmpfs none $R/a*""",
        "i=0; while [ $i -lt 200 ]; do mount -t tmpfs none $R; i=$((i+1)); done",
    ],
    ids=["busy", "one hides another", "bound into itself", "strange names", "200 of them"],
)
def test_mounts_at_and_below_the_rootfs_are_unmounted(room: Room, mounts: str) -> None:
    runtime(room)
    rootfs = room.bundle / "rootfs"
    rootfs.mkdir()
    script = (
        f"R={rootfs}; mkdir $R-not && mount -t tmpfs none $R-not && {mounts} && "
        f"(cd {room.bundle} && {room.launcher} -namespace n -id c1 delete) > {room.top}/out && "
        f"grep -c $R /proc/self/mountinfo"
    )
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, timeout=30)
    assert done.stdout == b"1\n", done.stderr
    assert b"unmount" not in done.stderr
    task_pb2.DeleteResponse.FromString((room.top / "out").read_bytes())


def test_it_works_where_the_installation_is_gone(room: Room) -> None:
    runtime(room)
    room.python.unlink()
    response(room.launch("delete"))


def test_a_worker_that_answers_within_2_s_is_believed(room: Room) -> None:
    runtime(room)
    room.serve([lambda peer: None, answering(answer(stdout=b"answered"))])
    assert room.launch("delete").stdout == b"answered"
    assert not (room.top / "called").exists()


@pytest.mark.parametrize("kind", [b"V", b"N"])
def test_a_worker_that_cannot_help_is_done_without(room: Room, kind: bytes) -> None:
    runtime(room)
    room.serve([answering(answer(kind))])
    response(room.launch("delete"))
    assert called(room)[-1] == "c1"
    assert not room.starts()


def test_a_worker_that_does_not_even_hear_a_long_question_out_takes_2_s_all_the_same(room: Room) -> None:
    room.listen()
    begun = time.monotonic()
    done = room.launch("delete", env={f"LONG{number}": "x" * 100_000 for number in range(6)})
    assert done.returncode == 0
    assert time.monotonic() - begun < 3.9


def test_the_keeper_of_these_namespaces_is_asked(room: Room) -> None:
    room.serve([answering(answer(stdout=b"own"))], launcher.own_key("local"))
    assert room.launch("delete").stdout == b"own"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-id", "c1"], "shim namespace cannot be empty"),
        (["-namespace", "n"], "invalid container id ''"),
        (["-namespace", "n", "-id", "../c1"], "invalid container id '../c1'"),
        (["-namespace", "n", "-id", ".."], "invalid container id '..'"),
    ],
)
def test_what_names_no_container_is_refused(room: Room, words: list[str], message: str) -> None:
    done = subprocess.run([room.launcher, *words, "delete"], cwd=room.bundle, capture_output=True, timeout=30)
    assert done.returncode == 1
    assert done.stderr.decode() == f"io.containerd.dunnage.v2: {message}"


@pytest.mark.real
@pytest.mark.parametrize("name", ["runc", "crun"])
def test_a_running_container_is_ended_and_removed(room: Room, name: str) -> None:
    root = room.top / "root"
    rootfs = room.bundle / "rootfs"
    (rootfs / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", rootfs / "bin" / "sleep")
    subprocess.run(["runc", "spec", "--bundle", room.bundle], check=True, timeout=30)
    spec = json.loads((room.bundle / "config.json").read_text())
    spec["process"].update(terminal=False, args=["/bin/sleep", "1000"])
    spec["linux"]["cgroupsPath"] = f"/dunnage-launcher-{os.getpid()}"
    (room.bundle / "config.json").write_text(json.dumps(spec))
    (room.bundle / "options.json").write_text(json.dumps({"root": str(root), "binary_name": name}))
    (room.bundle / "runtime").write_text(name)
    pid_file = room.bundle / "init.pid"
    words = [name, "--root", f"{root}/default", "run", "--detach", "--bundle", str(room.bundle)]
    null = subprocess.DEVNULL
    with hugetlb_mounted() if name == "crun" else contextlib.nullcontext():
        run = [*words, "--pid-file", str(pid_file), "c1"]
        subprocess.run(run, check=True, stdin=null, stdout=null, stderr=null, timeout=30)
        pidfd = os.pidfd_open(int(pid_file.read_text()))
        try:
            done = room.launch("delete")
            assert response(done).pid == int(pid_file.read_text())
            assert done.stderr == b""
            assert select.select([pidfd], [], [], 5)[0]
        finally:
            os.close(pidfd)
    assert not list((root / "default").iterdir())
