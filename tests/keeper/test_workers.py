"""Workers: their birth, what they inherit, and what comes after their death."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.keeper.conftest import Connection, Failed, Running, descendants, wait_until_dead

Start = Callable[..., Running]


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
    while keeper.ask("unclaimed")[0] != [child]:
        keeper.ask("deaths")
