"""Where no keeper answers: one is started, only ever one, and what prevents that is said clearly."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import stat
import subprocess
import sys
from pathlib import Path

from tests.launcher.stage import STUB_KEEPER, Room

IGNORING = """
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.execv(sys.argv[1], sys.argv[1:])
"""


def end(pid: int) -> None:
    """Kill it, and wait until it has closed its descriptors."""
    pidfd = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        select.select([pidfd], [], [], 10)
    finally:
        os.close(pidfd)


def test_a_keeper_is_started_and_answers(room: Room) -> None:
    done = room.launch()
    assert (done.returncode, done.stdout, done.stderr) == (0, b"unix:///run/stub", b"")
    assert room.launch().stdout == b"unix:///run/stub"
    ((pid, parent, session, cwd, _),) = room.starts()
    assert cwd == "/"
    assert session not in (pid, str(os.getsid(0)))
    assert parent != str(os.getpid())
    assert (room.state / "local" / "lock").read_text() == f"{pid}\n"
    modes = {name: stat.S_IMODE((room.state / "local" / name).stat().st_mode) for name in ("control", "lock", "log")}
    assert modes == {"control": 0o600, "lock": 0o600, "log": 0o600}
    assert stat.S_IMODE((room.state / "local").stat().st_mode) == 0o700


def test_a_keeper_inherits_its_two_descriptors_and_no_other(room: Room) -> None:
    read, write = os.pipe()
    subprocess.run(room.argv("start"), cwd=room.bundle, stdin=subprocess.DEVNULL, pass_fds=[write], timeout=30)
    os.close(write)
    assert os.read(read, 1) == b""
    os.close(read)
    ((pid, *_),) = room.starts()
    targets = {os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}
    state = room.state / "local"
    assert {target for target in targets if not target.startswith("socket:")} == {
        "/dev/null",
        f"{state}/log",
        f"{state}/lock",
    }


def test_a_parent_that_ignores_its_children_s_ends_leaves_the_keeper_their_statuses(room: Room) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IGNORING, *room.argv("start")],
        cwd=room.bundle,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
    )
    assert (done.stdout, done.stderr) == (b"unix:///run/stub", b"")
    ((keeper, *_),) = room.starts()
    ignored = Path(f"/proc/{keeper}/status").read_text().partition("SigIgn:\t")[2].split()[0]
    assert not int(ignored, 16) & 1 << signal.SIGCHLD - 1


def test_launchers_at_once_start_one_keeper(room: Room) -> None:
    for _ in range(3):
        before = len(room.starts())
        children = [
            subprocess.Popen(room.argv("start"), cwd=room.bundle, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
            for _ in range(8)
        ]
        assert [child.communicate(timeout=60)[0] for child in children] == [b"unix:///run/stub"] * 8
        assert len(room.starts()) == before + 1
        end(int(room.starts()[-1][0]))


def test_a_stale_socket_and_lock_are_taken_over(room: Room) -> None:
    room.listen().close()
    room.close()
    (room.state / "local" / "lock").write_text("1\n")
    assert room.launch().stdout == b"unix:///run/stub"
    assert len(room.starts()) == 1


def test_closed_descriptors_are_no_trouble(room: Room) -> None:
    script = f"exec {room.launcher} -namespace default -id c1 start <&- 2>&-"
    done = subprocess.run(["sh", "-c", script], stdout=subprocess.PIPE, cwd=room.bundle, timeout=30)
    assert done.stdout == b"unix:///run/stub"
    ((pid, *_),) = room.starts()
    assert [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1)] == ["/dev/null"] * 2


def test_a_held_lock_without_a_socket_never_makes_a_second_keeper(room: Room) -> None:
    (room.state / "local").mkdir(parents=True)
    patience = room.launcher.read_text()
    assert "HELD_LOCK_S = 10.0" in patience
    room.launcher.write_text(patience.replace("HELD_LOCK_S = 10.0", "HELD_LOCK_S = 0.5"))
    with open(room.state / "local" / "lock", "w") as lock:
        lock.write("4711\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = room.launch()
    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr.decode() == (
        f"io.containerd.dunnage.v2: keeper 4711 of {room.state}/local lives but does not answer; "
        f"what it logs is in {room.state}/local/log"
    )
    assert not room.starts()


def test_a_keeper_that_never_answers_is_named(room: Room) -> None:
    room.launcher.write_text(room.launcher.read_text().replace("ANSWER_S = 90.0", "ANSWER_S = 0.5"))
    room.listen()
    (room.state / "local" / "lock").write_text("4711\n")
    done = room.launch()
    assert done.returncode == 1
    assert b"keeper 4711 of" in done.stderr
    assert b"lives but does not answer" in done.stderr


def test_a_keeper_that_cannot_start_is_quoted(room: Room) -> None:
    room.install("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'dunnage'\" >&2\nexit 1\n")
    done = room.launch()
    assert done.returncode == 1
    assert done.stderr.decode() == (
        f"io.containerd.dunnage.v2: keeper of {room.state}/local cannot start: "
        "ModuleNotFoundError: No module named 'dunnage'"
    )


def test_an_interpreter_that_is_gone_is_named(room: Room) -> None:
    room.python.unlink()
    done = room.launch()
    assert done.returncode == 1
    assert f"cannot run {room.python}: no such file or directory".encode() in done.stderr
    room.install(STUB_KEEPER)
    assert room.launch().stdout == b"unix:///run/stub"


def test_a_state_root_that_cannot_be_made_is_named(room: Room) -> None:
    room.state.write_text("a file in the way")
    done = room.launch()
    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr.decode() == f"io.containerd.dunnage.v2: mkdir {room.state}/local: not a directory"


def test_a_read_only_state_root_is_named(room: Room) -> None:
    room.state.mkdir()
    script = f"mount -t tmpfs -o ro none {room.state} && exec {room.launcher} -namespace default -id c1 start"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, cwd=room.bundle, timeout=30)
    assert done.returncode == 1
    expected = f"io.containerd.dunnage.v2: mkdir {room.state}/local: read-only file system"
    assert done.stderr.decode() == expected
