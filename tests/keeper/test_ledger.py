"""The ledger of children: how each ended is told as often as one asks, until it is reaped."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from tests.keeper.conftest import Failed, Running, wait_until_dead

from dunnage.keeper.ledger import Ledger


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


def test_the_oldest_call_in_flight_is_told_with_the_orphans(keeper: Running) -> None:
    _, made, oldest = keeper.ask("unclaimed")
    assert oldest == made + 1, "there is none: it is the next one"
    first, second = (keeper.ask("spawn", argv=["sleep", "1000"], name="call") for _ in range(2))
    assert keeper.ask("unclaimed") == [[], made + 2, made + 1]
    for child, left in ((first, made + 2), (second, made + 3)):
        os.kill(child, signal.SIGKILL)
        keeper.ask("wait", pid=child)
        keeper.ask("reap", pid=child)
        assert keeper.ask("unclaimed") == [[], made + 2, left]


def test_child_that_nobody_wants_may_be_reaped_by_another_request() -> None:
    ledger = Ledger()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as child:
        assert child.stdin is not None
        ledger.record(child.pid, "child", "worker")
        ledger.reap_when_dead(child.pid)
        assert ledger.of("worker") == {child.pid: "child"}
        child.stdin.close()
        child.wait()
    ledger.reap_unwanted()
    assert ledger.of("worker") == {}
