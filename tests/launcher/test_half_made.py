"""`delete` of bundles that are half-made, beside what containerd's own shim (1.6) makes of the same.

That one fails where a file cannot be read, and containerd then tells of an end with 255; dunnage cleans up as far as it
can, always.
"""

from __future__ import annotations

import os
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.launcher.stage import Room

from dunnage.api import task_pb2

GO_SHIM = "/usr/bin/containerd-shim-runc-v2"

RUNTIME = """#!/bin/sh
for word; do printf '%s\\n' "$word"; done > "$(dirname "$0")/called"
"""
Spoil = Callable[[Path], None]


class Outcome(NamedTuple):
    """The exit status, the pid told (with it always 137), and the id that the runtime was to delete with what root."""

    status: int
    pid: int | None
    deleted: tuple[str, str] | None


ROOT = "/run/containerd/runc/default"
WHOLE = Outcome(0, 4711, (ROOT, "c1"))
FAILS = Outcome(1, None, None)


def written(name: str, content: bytes) -> Spoil:
    def spoil(bundle: Path) -> None:
        (bundle / name).write_bytes(content)

    return spoil


def missing(name: str) -> Spoil:
    return lambda bundle: (bundle / name).unlink()


def directory(name: str) -> Spoil:
    def spoil(bundle: Path) -> None:
        (bundle / name).unlink()
        (bundle / name).mkdir()

    return spoil


def fifo(name: str) -> Spoil:
    def spoil(bundle: Path) -> None:
        (bundle / name).unlink()
        os.mkfifo(bundle / name)

    return spoil


NO_RUNTIME = WHOLE._replace(deleted=None)
NO_PID = WHOLE._replace(pid=0)
PID_UNKNOWN = WHOLE._replace(pid=4294967295)  # -1, as upstream has it, on the wire
OTHER_ROOT = WHOLE._replace(deleted=("/run/other/default", "c1"))
CASES: dict[str, tuple[Spoil, Outcome, Outcome]] = {
    # what is wrong: how, what the Go shim makes of it, what dunnage does
    "nothing": (lambda bundle: None, WHOLE, WHOLE),
    "no options": (missing("options.json"), WHOLE, WHOLE),
    "no runtime": (missing("runtime"), FAILS, WHOLE),  # upstream tolerates it since 2.1
    "no pid": (missing("init.pid"), PID_UNKNOWN, PID_UNKNOWN),
    "half of options": (written("options.json", b'{"root": "/ru'), FAILS, WHOLE),
    "empty options": (written("options.json", b""), FAILS, WHOLE),
    "options that are a list": (written("options.json", b"[]"), FAILS, WHOLE),
    "options that are no text": (written("options.json", b"\xff\xfe"), FAILS, WHOLE),
    "options that are deep": (written("options.json", b"[" * 100_000), FAILS, WHOLE),
    "options that are a directory": (directory("options.json"), FAILS, WHOLE),
    "a root of the options": (
        written("options.json", b'{"root":"/run/other","systemd_cgroup":true,"io_uid":7}'),
        OTHER_ROOT,
        OTHER_ROOT,
    ),
    "a root that cannot be": (written("options.json", b'{"root":"a\\u0000b"}'), NO_RUNTIME, NO_RUNTIME),
    "a runtime that is missing": (written("runtime", b"/nonexistent/runc"), NO_RUNTIME, NO_RUNTIME),
    "a runtime that is nowhere in PATH": (written("runtime", b"no-such-runc"), NO_RUNTIME, NO_RUNTIME),
    "a runtime that cannot be": (written("runtime", b"a\0b"), NO_RUNTIME, NO_RUNTIME),
    "a runtime that is a directory": (directory("runtime"), FAILS, WHOLE),
    "no number": (written("init.pid", b"12a"), NO_PID, NO_PID),
    "an empty pid": (written("init.pid", b""), NO_PID, NO_PID),
    "a pid that is a directory": (directory("init.pid"), PID_UNKNOWN, PID_UNKNOWN),
    "a pid with a newline": (written("init.pid", b"4711\n"), NO_PID, WHOLE),
}


def delete(shim: str | Path, bundle: Path, top: Path, container: str = "c1") -> Outcome:
    """Run it as containerd does; the runtime is a stub that is found as runc in PATH."""
    called = top / "called"
    called.unlink(missing_ok=True)
    command = [str(shim), "-namespace", "default", "-address", "", "-id", container, "-bundle", str(bundle), "delete"]
    env = {**os.environ, "PATH": f"{top}:{os.environ['PATH']}"}
    begun = time.monotonic()
    done = subprocess.run(command, cwd=bundle, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=20)
    assert time.monotonic() - begun < 5, "containerd waits no longer"
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    words = called.read_text().splitlines() if called.exists() else []
    deleted = (words[words.index("--root") + 1], words[-1]) if words else None
    if not done.stdout:
        return Outcome(done.returncode, None, deleted)
    answer = task_pb2.DeleteResponse.FromString(done.stdout)
    assert answer.exit_status == 137
    assert abs(answer.exited_at.ToDatetime().timestamp() - time.time()) < 86400
    return Outcome(done.returncode, answer.pid, deleted)


@pytest.fixture
def stub(room: Room) -> Path:
    path = room.top / "runc"
    path.write_text(RUNTIME)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def make_bundle(room: Room, name: str = "c1") -> Path:
    bundle = room.bundle.with_name(name)
    bundle.mkdir(exist_ok=True)
    (bundle / "options.json").write_text("{}")
    (bundle / "runtime").write_text("")
    (bundle / "init.pid").write_text("4711")
    return bundle


@pytest.mark.parametrize("wrong", CASES)
def test_what_is_wrong_with_a_bundle_keeps_nothing_from_being_deleted(room: Room, stub: Path, wrong: str) -> None:
    spoil, _, expected = CASES[wrong]
    bundle = make_bundle(room)
    spoil(bundle)
    assert delete(room.launcher, bundle, room.top) == expected


@pytest.mark.parametrize("wrong", CASES)
def test_the_go_shim_gets_no_further(room: Room, stub: Path, wrong: str) -> None:
    """Whether it hears of the runtime's end is a matter of luck, as it reaps all its children: what it told is not."""
    spoil, expected, _ = CASES[wrong]
    bundle = make_bundle(room)
    spoil(bundle)
    assert delete(GO_SHIM, bundle, room.top) == expected


@pytest.mark.parametrize("name", ["options.json", "runtime", "init.pid"])
def test_a_fifo_in_the_place_of_a_file_holds_nobody(room: Room, stub: Path, name: str) -> None:
    """The Go shim waits there for ever."""
    bundle = make_bundle(room)
    fifo(name)(bundle)
    assert delete(room.launcher, bundle, room.top) == (PID_UNKNOWN if name == "init.pid" else WHOLE)


@pytest.mark.parametrize(
    "container", ["a b", "ü", "x\ny", "x\ry", "-x", "a%b", "a'b", 'a"b', "a\\b", "\udcff", ".hidden", "a" * 200]
)
def test_a_container_of_any_name_is_deleted(room: Room, stub: Path, container: str) -> None:
    """What a runtime makes of it is the runtime's."""
    stub.write_text(RUNTIME.replace("for word", "shift $(($# - 1)); for word").replace("'%s\\n'", "%s"))
    bundle = make_bundle(room, container)
    (bundle / "rootfs").mkdir()
    for shim in (room.launcher, GO_SHIM):
        called = room.top / "called"
        called.unlink(missing_ok=True)
        command = [str(shim), "-namespace", "default", "-address", "", "-id", container, "delete"]
        env = {**os.environ, "PATH": f"{room.top}:{os.environ['PATH']}"}
        left = f"grep -c {room.top} /proc/self/mountinfo >&2"
        script = f'mount -t tmpfs none rootfs && {{ "$@"; status=$?; }}; {left}; exit $status'
        argv = ["unshare", "-m", "sh", "-c", script, "sh", *command]
        done = subprocess.run(argv, cwd=bundle, env=env, capture_output=True, timeout=20)
        assert done.returncode == 0, done.stderr
        assert done.stderr.splitlines()[-1] == b"0", "nothing is mounted any more"
        assert task_pb2.DeleteResponse.FromString(done.stdout).pid == 4711
        assert called.read_bytes() == os.fsencode(container)


@pytest.mark.parametrize(
    ("mounts", "left_by_go"),
    [
        ("true", 0),
        ("mount -t tmpfs none rootfs", 0),
        ("mount -t tmpfs none rootfs && mount -t tmpfs none rootfs", 0),
        # upstream unmounts what lies in it since 1.7
        ("mount -t tmpfs none rootfs && mkdir rootfs/a && mount -t tmpfs none rootfs/a", 2),
        ("mount -t tmpfs none rootfs && exec 9< rootfs", 1),
    ],
)
def test_no_mount_is_left(room: Room, stub: Path, mounts: str, left_by_go: int) -> None:
    for shim, expected in ((room.launcher, 0), (GO_SHIM, left_by_go)):
        bundle = make_bundle(room, f"c{expected}" if shim == GO_SHIM else "c")
        (bundle / "rootfs").mkdir()
        argv = [str(shim), "-namespace", "default", "-address", "", "-id", bundle.name, "delete"]
        script = f'{mounts} && "$@" > {room.top}/answer && grep -c {bundle}/ /proc/self/mountinfo'
        env = {**os.environ, "PATH": f"{room.top}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", script, "sh", *argv], cwd=bundle, env=env, capture_output=True, timeout=20
        )
        assert int(done.stdout) == expected, done.stderr
        assert task_pb2.DeleteResponse.FromString((room.top / "answer").read_bytes()).pid == 4711
