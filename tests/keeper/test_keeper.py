"""A real keeper, a real worker, real children."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.keeper.conftest import Connection, Failed, Running, descendants, wait_until_dead

from dunnage.linux.attributes import Attributes

Start = Callable[..., Running]


def attributes_of_this(**changed: Any) -> dict[str, Any]:
    return Attributes.of(os.getpid())._replace(**changed).to_json()


def wait_for_end(running: Running) -> int:
    wait_until_dead(running.pidfd)
    return running.process.wait(10)


# --- workers


def test_first_worker_is_a_child_of_the_keeper_and_has_the_control_socket(start_keeper: Start) -> None:
    keeper = start_keeper("--argument", '{"some": "thing"}')
    pids = keeper.ask("pids")
    assert pids["keeper"] == pids["parent"] == keeper.process.pid
    state = keeper.ask("state")
    assert state["fds"] == ["control"]
    assert (state["name"], state["argument"]) == ("node", {"some": "thing"})
    assert state["accepted"][0] == "control control#1"


def test_names_begin_with_containerd_shim(keeper: Running) -> None:
    pids = keeper.ask("pids")
    for pid, role in ((pids["keeper"], b"keeper"), (pids["worker"], b"worker")):
        assert Path(f"/proc/{pid}/comm").read_text() == "containerd-shim\n"
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        assert argv[:2] == [b"containerd-shim-dunnage-v2", role]
    assert (keeper.state / "lock").read_text() == f"{pids['keeper']}\n"


def test_killed_worker_is_forked_again_with_its_fds_and_children(keeper: Running) -> None:
    first = keeper.ask("pids")["worker"]
    keeper.ask("store_text", name="note", text="remember")
    pid = keeper.ask("spawn", argv=["sleep", "1000"], name="sleeper")
    keeper.kill_worker()
    assert keeper.ask("pids")["worker"] != first
    state = keeper.ask("state")
    assert state["children"] == {str(pid): "sleeper"}
    assert {"control", "note"} <= set(state["fds"])
    assert keeper.ask("text", name="note") == "remember"
    os.kill(pid, signal.SIGTERM)
    assert keeper.finish(pid) == [None, signal.SIGTERM]
    keeper.kill_worker()
    assert keeper.ask("state")["children"] == {}


def test_connection_outlives_the_worker(keeper: Running) -> None:
    """A request that comes while there is no worker is answered by the next one, on the same connection."""
    connection = keeper.connect()
    first = connection.ask("pids")["worker"]
    keeper.kill_worker()
    second = connection.ask("pids")["worker"]
    assert second != first
    assert "control#1" in connection.ask("state")["fds"]


def test_exit_while_there_is_no_worker_waits_for_the_next(keeper: Running) -> None:
    pid = keeper.ask("spawn", argv=["sleep", "1000"])
    pidfd = os.pidfd_open(pid)
    worker = keeper.ask("pids")["worker"]
    os.kill(worker, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    wait_until_dead(pidfd)
    os.kill(worker, signal.SIGKILL)
    assert keeper.finish(pid) == [None, signal.SIGKILL]
    os.close(pidfd)


def test_what_a_dying_worker_asked_last_is_done(keeper: Running) -> None:
    pidfd = os.pidfd_open(keeper.ask("pids")["worker"])
    connection = keeper.connect()
    connection.send("die_storing", name="last")
    wait_until_dead(pidfd)
    os.close(pidfd)
    assert keeper.ask("text", name="last") == "last words"


def test_worker_that_dies_young_again_and_again_is_forked_after_growing_pauses(keeper: Running) -> None:
    began = time.monotonic()
    for _ in range(5):
        keeper.kill_worker()
    keeper.ask("pids")
    assert time.monotonic() - began >= 0.05 + 0.1 + 0.2 + 0.4
    assert "the next is forked in 0.4 s" in keeper.log


def test_second_worker_has_its_own_fds_and_none_of_the_others(keeper: Running) -> None:
    path = keeper.state / "other"
    keeper.ask("store_text", name="secret", text="node's")
    keeper.ask("give_listener", owner="other", path=str(path))
    pid = keeper.ask("fork_worker", name="other", argument=7)
    other = Connection(path)
    state = other.ask("state")
    assert (state["name"], state["argument"], state["fds"]) == ("other", 7, ["control"])
    assert other.ask("pids") == {"worker": pid, "keeper": keeper.process.pid, "parent": keeper.process.pid}
    fds = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3, 100) if os.path.exists(f"/proc/{pid}/fd/{fd}")]
    assert not any("secret" in name or name.endswith("/lock") for name in fds)
    with pytest.raises(Failed, match="exists"):
        keeper.ask("fork_worker", name="other", argument=7)
    os.kill(pid, signal.SIGKILL)
    second = Connection(path)
    assert second.ask("state")["argument"] == 7
    assert second.ask("pids")["worker"] != pid
    other.close()
    second.close()


def test_worker_that_leaves_with_status_0_is_not_forked_again(keeper: Running) -> None:
    path = keeper.state / "pod"
    keeper.ask("give_listener", owner="pod", path=str(path))
    pid = keeper.ask("fork_worker", name="pod", argument=None)
    pod = Connection(path)
    child = pod.ask("spawn", argv=["sleep", "1000"], name="of pod")
    pod.ask("finish", status=0)
    keeper.ask("wait", pid=pid)
    pod.close()
    with contextlib.suppress(ConnectionRefusedError):
        while True:  # until the keeper has closed the listener
            Connection(path).close()
    while set(descendants(keeper.process.pid)) != {keeper.ask("pids")["worker"], child}:
        pass  # /proc's list of children may miss one while another is being reaped
    keeper.kill_worker()
    assert keeper.ask("state")["children"] == {}  # nobody's: if it dies, it is an orphan
    os.kill(child, signal.SIGKILL)
    keeper.ask("deaths")
    assert keeper.ask("unclaimed")[0] == [child]


def test_dead_orphan_is_unclaimed_until_a_worker_claims_it(keeper: Running) -> None:
    shell = keeper.ask("spawn", argv=["sh", "-c", "sh -c 'exit 7' & exit 0"], name="shell")
    keeper.ask("wait", pid=shell)
    keeper.ask("reap", pid=shell)
    while not (found := keeper.ask("unclaimed")[0]):
        keeper.ask("deaths")
    (orphan,) = found
    keeper.ask("claim", name="process", pid=orphan)
    assert keeper.ask("unclaimed")[0] == []
    assert keeper.ask("peek", pid=orphan) == [7, None]
    keeper.kill_worker()
    assert keeper.ask("state")["children"] == {str(orphan): "process"}
    keeper.ask("reap", pid=orphan)


def test_what_is_in_flight_is_told_with_the_orphans(keeper: Running) -> None:
    before = keeper.ask("unclaimed")
    child = keeper.ask("spawn", argv=["sleep", "1000"], name="call")
    assert keeper.ask("unclaimed") == [[], before[1] + 1, before[2] + 1]
    os.kill(child, signal.SIGKILL)
    keeper.ask("wait", pid=child)
    keeper.ask("reap", pid=child)
    assert keeper.ask("unclaimed") == [[], before[1] + 1, before[2]]


def test_fd_given_to_a_living_worker_arrives_there(keeper: Running) -> None:
    path = keeper.state / "other"
    keeper.ask("give_listener", owner="other", path=str(path))
    keeper.ask("fork_worker", name="other", argument=None)
    other = Connection(path)
    other.send("wait_given")
    keeper.ask("store_text", name="gift", text="x", owner="other")
    assert other.receive() == ["gift"]
    other.ask("store_text", name="back", text="x", owner="node")
    assert keeper.ask("wait_given") == ["back"]
    other.close()


# --- spawn


def test_spawn_peek_and_reap_are_exact(keeper: Running) -> None:
    pid = keeper.ask("spawn", argv=["sh", "-c", "exit 7"])
    keeper.ask("wait", pid=pid)
    assert [keeper.ask("peek", pid=pid) for _ in range(3)] == [[7, None]] * 3
    keeper.ask("reap", pid=pid)
    keeper.ask("reap", pid=pid)
    with pytest.raises(Failed, match="ChildProcessError"):
        keeper.ask("peek", pid=pid)
    assert not Path(f"/proc/{pid}").exists()


def test_running_child_is_neither_seen_dead_nor_reaped(keeper: Running) -> None:
    pid = keeper.ask("spawn", argv=["sleep", "1000"])
    assert keeper.ask("peek", pid=pid) is None
    keeper.ask("reap", pid=pid)
    assert keeper.ask("peek", pid=pid) is None
    os.kill(pid, signal.SIGKILL)
    assert keeper.finish(pid) == [None, signal.SIGKILL]


def test_nobody_peeks_at_or_reaps_what_is_no_child_or_a_worker(keeper: Running) -> None:
    worker = keeper.ask("pids")["worker"]
    for pid in (1, worker, os.getpid()):
        with pytest.raises(Failed, match="ChildProcessError"):
            keeper.ask("peek", pid=pid)
        keeper.ask("reap", pid=pid)
    keeper.ask("reap", pid=-1)
    assert keeper.ask("pids")["worker"] == worker


def test_worker_is_told_that_a_child_died(keeper: Running) -> None:
    connection = keeper.connect()
    connection.send("deaths")
    pid = keeper.ask("spawn", argv=["true"])
    connection.receive()
    assert keeper.finish(pid) == [0, None]


def test_missing_command_is_told_in_gos_words(keeper: Running) -> None:
    with pytest.raises(Failed) as missing:
        keeper.ask("spawn", argv=["no-runc"])
    assert missing.value.args == (
        "FileNotFoundError",
        errno.ENOENT,
        'exec: "no-runc": executable file not found in $PATH',
    )
    with pytest.raises(Failed) as path:
        keeper.ask("spawn", argv=["/no/runc"])
    assert path.value.args[2] == "fork/exec /no/runc: no such file or directory"
    with pytest.raises(Failed) as directory:
        keeper.ask("spawn", argv=["true"], cwd="/no/where")
    assert directory.value.args[2] == "chdir /no/where: no such file or directory"
    while descendants(keeper.process.pid) != [keeper.ask("pids")["worker"]]:
        pass  # they are reaped when they are dead, nobody has to ask


def test_command_is_looked_up_in_the_path_of_its_own_environment(keeper: Running, tmp_path: Path) -> None:
    tool = tmp_path / "bin" / "tool"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\nexit 9\n")
    tool.chmod(0o755)
    pid = keeper.ask("spawn", argv=["tool"], env={"PATH": f"/nowhere::{tool.parent}"})
    assert keeper.finish(pid) == [9, None]
    tool.chmod(0o644)
    with pytest.raises(Failed, match="executable file not found"):
        keeper.ask("spawn", argv=["tool"], env={"PATH": str(tool.parent)})


def test_environment_is_the_given_one_and_may_be_large(keeper: Running, tmp_path: Path) -> None:
    env = {"PATH": "/bin", "ODD": "\udcff\udcfe", **{f"V{index}": "x" * 1000 for index in range(500)}}
    pid = keeper.ask("spawn", argv=["env", "-0"], env=env, output=str(tmp_path / "env"))
    assert keeper.finish(pid) == [0, None]
    got = dict(entry.split(b"=", 1) for entry in (tmp_path / "env").read_bytes().rstrip(b"\0").split(b"\0"))
    assert got == {os.fsencode(key): os.fsencode(value) for key, value in env.items()}


def test_child_has_the_given_fds_and_null_for_the_rest(keeper: Running, tmp_path: Path) -> None:
    keeper.ask("store_text", name="note", text="x")
    pid = keeper.ask("spawn", argv=["ls", "-l", "/proc/self/fd"], output=str(tmp_path / "out"))
    assert keeper.finish(pid) == [0, None]
    links = [line.split(" -> ")[0].split()[-1] for line in (tmp_path / "out").read_text().splitlines()[1:]]
    assert links == ["0", "1", "2", "3"]  # 3 is ls's own directory
    assert "0 -> /dev/null" in (tmp_path / "out").read_text()


def test_fds_may_be_placed_where_each_others_sources_lie(keeper: Running) -> None:
    script = 'test "$(cat <&3)" = one && test "$(cat <&4)" = two && test "$(cat <&0)" != one'
    for first, second in ((3, 4), (4, 3)):
        text = script if first == 3 else script.replace("one", "x").replace("two", "one").replace("x", "two", 1)
        assert keeper.finish(keeper.ask("spawn_swapped", script=text, first=first, second=second)) == [0, None]


def test_working_directory_may_be_an_fd(keeper: Running, tmp_path: Path) -> None:
    deep = tmp_path / "a directory"
    deep.mkdir()
    pid = keeper.ask("spawn_in_directory_fd", path=str(deep), output=str(tmp_path / "out"))
    assert keeper.finish(pid) == [0, None]
    assert (tmp_path / "out").read_text() == f"{deep}\n"


def test_two_hundred_and_fifty_fds_travel_and_more_are_refused(keeper: Running, tmp_path: Path) -> None:
    pid = keeper.ask("spawn_with_fds", count=250, output=str(tmp_path / "out"))
    assert keeper.finish(pid) == [0, None]
    assert len((tmp_path / "out").read_text().split()) == 250 + 2 + 1  # and 0, 2, ls's own
    with pytest.raises(Failed, match="at most 250"):
        keeper.ask("spawn_with_fds", count=251, output=str(tmp_path / "out"))


def test_attributes_are_those_asked_for(keeper: Running, tmp_path: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    asked = attributes_of_this(
        umask=0o027,
        nice=7,
        affinity=frozenset(cpus[:1]),
        oom_score_adj=321,
        rlimits={resource.RLIMIT_NOFILE: (123, 456), resource.RLIMIT_CORE: (0, 0)},
    )
    pid = keeper.ask("spawn", argv=["sleep", "1000"], attributes=asked)
    try:
        got = Attributes.of(pid)
        assert (got.umask, got.nice, got.affinity, got.oom_score_adj) == (0o027, 7, frozenset(cpus[:1]), 321)
        assert got.rlimits[resource.RLIMIT_NOFILE] == (123, 456)
        assert got.rlimits[resource.RLIMIT_CORE] == (0, 0)
    finally:
        os.kill(pid, signal.SIGKILL)
    keeper.finish(pid)


def test_attributes_not_asked_for_are_those_the_keeper_was_started_with(start_keeper: Start) -> None:
    keeper = start_keeper(limit="ulimit -S -n 200; umask 037", preexec_fn=lambda: os.nice(3))
    pid = keeper.ask("spawn", argv=["sleep", "1000"])
    got, mine = Attributes.of(pid), Attributes.of(os.getpid())
    assert got.rlimits[resource.RLIMIT_NOFILE] == (200, mine.rlimits[resource.RLIMIT_NOFILE][1])
    assert (got.umask, got.nice, got.oom_score_adj) == (0o037, mine.nice + 3, mine.oom_score_adj)
    soft, hard = keeper.ask("state")["nofile"]
    assert soft == hard  # the worker's own limit is raised
    os.kill(pid, signal.SIGKILL)
    keeper.finish(pid)


def test_child_starts_with_no_signal_blocked_or_ignored(keeper: Running, tmp_path: Path) -> None:
    pid = keeper.ask("spawn", argv=["grep", "Sig[BI]", "/proc/self/status"], output=str(tmp_path / "out"))
    keeper.finish(pid)
    lines = dict(line.split() for line in (tmp_path / "out").read_text().splitlines())
    assert {int(mask, 16) for mask in lines.values()} == {0}


# --- fork


def test_forked_child_runs_a_function_of_the_warm_image_with_named_fds(keeper: Running) -> None:
    entry = "tests.keeper.worker:read_and_add"
    pid = keeper.ask("fork", entry=entry, argument={"number": 1}, texts={"a": "20", "b": "300"})
    assert keeper.finish(pid) == [321 & 0xFF, None]


def test_forked_child_has_no_fd_but_its_own(keeper: Running) -> None:
    keeper.ask("store_text", name="note", text="x")
    pid = keeper.ask("fork", entry="tests.keeper.worker:count_fds", argument=3, texts={"a": ""})
    assert keeper.finish(pid) == [1, None]


def test_failing_function_ends_with_status_1_and_its_traceback_in_the_log(keeper: Running) -> None:
    pid = keeper.ask("fork", entry="tests.keeper.worker:fail", argument=None)
    assert keeper.finish(pid) == [1, None]
    assert "RuntimeError: as told" in keeper.log


def test_large_argument_travels(keeper: Running) -> None:
    argument = {"number": 5, "ballast": "x" * 300_000}
    pid = keeper.ask("fork", entry="tests.keeper.worker:read_and_add", argument=argument, texts={"a": "6"})
    assert keeper.finish(pid) == [11, None]


def test_mounts_are_made_by_a_forked_child_and_are_seen_by_all(keeper: Running, tmp_path: Path) -> None:
    rootfs = tmp_path / "rootfs"
    rootfs.mkdir()
    mounts = [{"type": "tmpfs", "source": "tmpfs", "target": "", "options": ["size=64k"]}]
    argument = {"rootfs": str(rootfs), "mounts": mounts}
    pid = keeper.ask("fork", entry="dunnage.linux.mount:mount_all", argument=argument, texts={"error": ""})
    assert keeper.finish(pid) == [0, None]
    assert os.path.ismount(rootfs)
    pid = keeper.ask("fork", entry="dunnage.linux.mount:unmount_all", argument=argument, texts={"error": ""})
    assert keeper.finish(pid) == [0, None]
    assert not os.path.ismount(rootfs)


# --- orphans


def test_orphan_becomes_the_keepers_child_and_waits_as_a_zombie(keeper: Running, tmp_path: Path) -> None:
    out = tmp_path / "pid"
    script = "sh -c 'read x < gate; exit 5' & echo $!"
    os.mkfifo(tmp_path / "gate")
    parent = keeper.ask("spawn", argv=["sh", "-c", script], cwd=str(tmp_path), output=str(out))
    assert keeper.finish(parent) == [0, None]
    orphan = int(out.read_text())
    pidfd = os.pidfd_open(orphan)
    assert keeper.ask("peek", pid=orphan) is None
    (tmp_path / "gate").write_text("go\n")
    wait_until_dead(pidfd)
    os.close(pidfd)
    keeper.kill_worker()
    assert keeper.ask("peek", pid=orphan) == [5, None]
    assert keeper.finish(orphan) == [5, None]
    with pytest.raises(Failed, match="ChildProcessError"):
        keeper.ask("peek", pid=orphan)


# --- the store and accepting


def test_name_is_replaced_and_released(keeper: Running) -> None:
    keeper.ask("store_text", name="note", text="old")
    keeper.ask("store_text", name="note", text="new")
    keeper.ask("store_text", name="gone", text="x")
    keeper.ask("release", name="gone")
    keeper.ask("release", name="gone")
    keeper.kill_worker()
    assert "gone" not in keeper.ask("state")["fds"]
    assert keeper.ask("text", name="note") == "new"


def test_store_leaks_nothing(keeper: Running) -> None:
    def open_fds() -> int:
        keeper.wait_done()
        return len(os.listdir(f"/proc/{keeper.process.pid}/fd"))

    before = open_fds()
    keeper.ask("store_nulls", count=300)
    assert open_fds() >= before + 299
    keeper.ask("release_nulls", count=300)
    for _ in range(5):
        keeper.finish(keeper.ask("spawn", argv=["true"]))
    keeper.connect().ask("pids")
    keeper.connections[-1].close()
    keeper.ask("pids")
    assert open_fds() <= before + 1  # a connection's end may be on its way


def test_three_hundred_stored_fds_are_inherited(keeper: Running) -> None:
    keeper.ask("store_nulls", count=300)
    keeper.kill_worker()
    assert sum(name.startswith("null") for name in keeper.ask("state")["fds"]) == 300


def test_listener_of_the_worker_is_accepted_on_and_stays_so_when_it_dies(keeper: Running) -> None:
    path = keeper.state / "ttrpc"
    keeper.ask("listen", name="ttrpc:x", path=str(path))
    connection = Connection(path)
    assert any(name.startswith("ttrpc:x ttrpc:x#") for name in connection.ask("state")["accepted"])
    keeper.kill_worker()
    assert connection.ask("pids")["parent"] == keeper.process.pid
    other = Connection(path)
    assert other.ask("pids")["parent"] == keeper.process.pid
    keeper.ask("stop_accepting", name="ttrpc:x")
    keeper.wait_done()
    third = Connection(path)
    third.sock.settimeout(0.3)
    third.send("pids")
    with pytest.raises(TimeoutError):
        third.receive()
    keeper.ask("release", name="ttrpc:x")
    for each in (connection, other, third):
        each.close()


def test_hundred_connections_while_the_worker_is_stopped_are_all_answered(keeper: Running) -> None:
    worker = keeper.ask("pids")["worker"]
    os.kill(worker, signal.SIGSTOP)
    connections = [keeper.connect() for _ in range(100)]
    for connection in connections:
        connection.send("pids")
    os.kill(worker, signal.SIGCONT)
    assert {connection.receive()["worker"] for connection in connections} == {worker}


def test_stopped_worker_does_not_stop_the_keeper(keeper: Running) -> None:
    """When its queue is full, connections wait in the backlog, and come to the next worker."""
    worker = keeper.ask("pids")["worker"]
    os.kill(worker, signal.SIGSTOP)
    connections: list[Connection] = []
    with contextlib.suppress(BlockingIOError):  # the backlog is full, too
        for _ in range(5000):
            connections.append(keeper.connect())
    assert 256 < len(connections) < 5000
    for connection in connections:
        connection.send("pids")
    os.kill(worker, signal.SIGKILL)
    answers = [connection.receive()["worker"] for connection in connections]
    assert len(set(answers)) == 1
    assert worker not in answers


def test_full_table_of_files_stops_accepting_until_one_is_released(start_keeper: Start) -> None:
    keeper = start_keeper(limit="ulimit -n 64")
    first = keeper.connect()
    first.ask("store_nulls", count=30)
    connections = [keeper.connect() for _ in range(40)]
    for connection in connections:
        connection.send("pids")
    poller = select.poll()
    for connection in connections:
        poller.register(connection.sock, select.POLLIN)
    assert poller.poll(10_000)
    # some wait: they are served once others have gone
    for connection in connections:
        connection.receive()
        connection.close()
    assert first.ask("pids")["keeper"] == keeper.process.pid
    assert keeper.log.count("Too many open files") >= 1


def test_listener_that_its_worker_has_shut_down_is_left_alone(keeper: Running) -> None:
    path = keeper.state / "shut"
    keeper.ask("listen", name="shut", path=str(path))
    Connection(path).close()
    keeper.ask("shut_down", name="shut")
    while "nothing more is accepted on shut" not in keeper.log:
        keeper.ask("pids")


def test_log_does_not_grow_for_ever(keeper: Running) -> None:
    keeper.ask("pids")
    with open(keeper.state / "log", "a") as log:
        log.write("x" * (2 << 20))
    keeper.kill_worker()
    keeper.ask("pids")
    assert len(keeper.log) < 4096


def test_message_whose_fds_find_no_room_is_answered_with_an_error(start_keeper: Start, tmp_path: Path) -> None:
    keeper = start_keeper(limit="ulimit -n 64")
    connection = keeper.connect()
    connection.ask("store_nulls", count=45)
    with pytest.raises(Failed, match="table of open files is full"):
        connection.ask("spawn_with_fds", count=20, output=str(tmp_path / "out"))
    connection.ask("release_nulls", count=45)
    pid = connection.ask("spawn_with_fds", count=20, output=str(tmp_path / "out"))
    connection.ask("wait", pid=pid)
    assert connection.ask("peek", pid=pid) == [0, None]
    connection.ask("reap", pid=pid)


# --- its end


def test_keeper_ends_when_its_worker_is_idle(keeper: Running) -> None:
    keeper.ask("idle", after_s=0.01)
    assert wait_for_end(keeper) == 0
    assert not (keeper.state / "control").exists()
    assert (keeper.state / "lock").read_text() == ""
    with open(keeper.state / "lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_child_keeps_an_idle_keeper_alive(keeper: Running) -> None:
    pid = keeper.ask("spawn", argv=["sleep", "1000"])
    keeper.ask("idle", after_s=0.0)
    assert not select.select([keeper.pidfd], [], [], 0.3)[0]
    os.kill(pid, signal.SIGKILL)
    keeper.finish(pid)
    keeper.ask("idle", after_s=0.0)
    assert wait_for_end(keeper) == 0


def test_connection_takes_idleness_back(keeper: Running) -> None:
    keeper.ask("idle", after_s=0.3)
    connection = keeper.connect()
    connection.ask("pids")
    assert not select.select([keeper.pidfd], [], [], 0.6)[0]
    assert connection.ask("pids")["keeper"] == keeper.process.pid


def test_sigterm_ends_a_keeper_without_children(keeper: Running) -> None:
    keeper.ask("pids")
    keeper.process.terminate()
    assert wait_for_end(keeper) == 0
    assert not (keeper.state / "control").exists()


def test_no_signal_ends_a_keeper_with_children(keeper: Running) -> None:
    pid = keeper.ask("spawn", argv=["sleep", "1000"])
    harmless = {signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT}
    for number in harmless | {signal.SIGPIPE, signal.SIGALRM, signal.SIGTSTP, signal.SIGRTMIN, signal.SIGXCPU}:
        keeper.process.send_signal(number)
    assert keeper.ask("pids")["keeper"] == keeper.process.pid
    assert keeper.ask("peek", pid=pid) is None
    os.kill(pid, signal.SIGKILL)
    keeper.finish(pid)


def test_workers_end_when_the_keeper_is_killed(keeper: Running) -> None:
    pidfd = os.pidfd_open(keeper.ask("pids")["worker"])
    keeper.process.kill()
    wait_until_dead(pidfd)
    os.close(pidfd)


# --- what it costs


def test_keeper_and_worker_together_are_small(keeper: Running) -> None:
    pids = keeper.ask("pids")
    total = 0
    for role in ("keeper", "worker"):
        for line in Path(f"/proc/{pids[role]}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
                print(role, line)
    assert total < 30_000
