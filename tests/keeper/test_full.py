"""No room in a table of open files, or for fds on their way: nothing is lost, and nothing runs that is unknown."""

from __future__ import annotations

import array
import contextlib
import errno
import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.keeper.conftest import Connection, Failed, Running, descendants

from dunnage.linux.attributes import oom_score_adj_of

Start = Callable[..., Running]


@pytest.fixture
def full(start_keeper: Start) -> Connection:
    """A connection to the worker of a keeper that has not one fd left."""
    keeper = start_keeper(limit="ulimit -n 64")
    connection = keeper.connect()
    connection.ask("listen", name="listener", path=str(keeper.state / "listener"))
    connection.ask("stop_accepting", name="listener")
    connection.ask("store_nulls", count=100)
    with pytest.raises(Failed, match="ChildProcessError"):
        connection.ask("peek", pid=1)  # all of them have come
    assert keeper.log.count("table of open files is full") > 30
    return connection


def wait_for_worker_alone(keeper: Running, worker: int) -> None:
    while descendants(keeper.process.pid) != [worker]:
        pass  # until the killed one is reaped


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


def test_child_made_with_the_last_fd_is_known_to_its_worker(full: Connection) -> None:
    pid = full.ask("fork", entry="tests.keeper.worker:read_and_add", argument={"number": 5})
    full.ask("wait", pid=pid)
    assert full.ask("peek", pid=pid) == [5, None]
    full.ask("reap", pid=pid)


def test_child_made_with_the_last_fd_has_the_attributes_it_should(full: Connection) -> None:
    keeper = full.ask("pids")["keeper"]
    inherited = oom_score_adj_of(os.getpid())
    Path(f"/proc/{keeper}/oom_score_adj").write_text(str(inherited + 77))
    pid = full.ask("fork", entry="tests.keeper.worker:own_oom_score", argument=None)
    full.ask("wait", pid=pid)
    assert full.ask("peek", pid=pid) == [inherited & 0xFF, None]
    full.ask("reap", pid=pid)


def test_worker_takes_no_fd_but_its_two(full: Connection) -> None:
    full.ask("release_nulls", count=2)
    full.ask("fork_worker", name="other", argument=None)


def test_listener_is_accepted_on_without_a_further_fd(full: Connection) -> None:
    path = Path(full.sock.getpeername()).parent / "listener"
    full.ask("accept_on", name="listener")
    connection = Connection(path)
    connection.send("pids")
    full.ask("release_nulls", count=100)
    assert connection.receive() == full.ask("pids")
    connection.close()


def test_sigterm_with_a_full_table_ends_no_keeper_with_children(full: Connection) -> None:
    pid = full.ask("fork", entry="tests.keeper.worker:wait_for_ever", argument=None)
    keeper = full.ask("pids")["keeper"]
    for _ in range(3):
        os.kill(keeper, signal.SIGTERM)
        assert full.ask("peek", pid=pid) is None
    full.ask("idle", after_s=0.0)
    assert full.ask("peek", pid=pid) is None
    os.kill(pid, signal.SIGKILL)
    full.ask("wait", pid=pid)
    full.ask("reap", pid=pid)


def test_no_child_is_made_that_its_worker_has_no_room_to_watch(keeper: Running) -> None:
    worker = keeper.ask("pids")["worker"]
    with pytest.raises(Failed) as failed:
        keeper.ask("spawn_unwatched", argv=["sleep", "1000"], full_before=True)
    assert failed.value.args[1] == errno.EMFILE
    keeper.wait_done()
    assert descendants(keeper.process.pid) == [worker]


def test_child_that_can_not_be_watched_is_killed_and_reaped_and_the_error_says_so(keeper: Running) -> None:
    worker = keeper.ask("pids")["worker"]
    with pytest.raises(Failed, match="is killed") as failed:
        keeper.ask("spawn_unwatched", argv=["sleep", "1000"], full_before=False)
    assert failed.value.args[1] == errno.EMFILE
    wait_for_worker_alone(keeper, worker)
    _, made, oldest = keeper.ask("unclaimed")
    assert oldest == made + 1  # none is in flight: the keeper has forgotten it


def test_worker_that_can_not_be_watched_is_ended_and_its_name_is_free(keeper: Running) -> None:
    worker = keeper.ask("pids")["worker"]
    with pytest.raises(Failed, match="is killed"):
        keeper.ask("fork_worker_unwatched", name="other", full_before=False)
    wait_for_worker_alone(keeper, worker)
    path = keeper.state / "other"
    keeper.ask("give_listener", owner="other", path=str(path))
    pid = keeper.ask("fork_worker", name="other", argument=None)
    other = Connection(path)
    assert other.ask("pids")["worker"] == pid
    other.close()


def test_connection_that_finds_the_worker_full_is_answered_when_there_is_room(keeper: Running) -> None:
    first = keeper.connect()
    first.ask("fill_own_table")
    second = keeper.connect()
    second.send("pids")
    assert not select.select([second.sock], [], [], 0.15)[0]
    first.ask("make_room")
    assert second.receive() == first.ask("pids")


@contextlib.contextmanager
def fds_on_their_way(count: int) -> Iterator[None]:
    """So many are sent and not received: the kernel counts them per user."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        for _ in range(count // 100):
            fds = array.array("i", [0] * 100)
            ours.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        yield


def test_connection_is_told_when_the_system_passes_fds_again(start_keeper: Start) -> None:
    """A keeper without privileges may have no more fds on their way than open ones."""
    keeper = start_keeper(limit="ulimit -n 200", wrapper=["setpriv", "--bounding-set=-sys_admin,-sys_resource"])
    first = keeper.connect()
    worker = first.ask("pids")
    with fds_on_their_way(500):
        second = keeper.connect()
        second.send("pids")
        while "Too many references" not in keeper.log:
            first.ask("state")
        assert not select.select([second.sock], [], [], 0.15)[0]
    assert second.receive() == worker
    assert keeper.log.count("Too many references") == 1
