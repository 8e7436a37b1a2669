"""When the keeper ends, when it does not, and what it costs."""

from __future__ import annotations

import fcntl
import os
import select
import signal
from pathlib import Path

from tests.keeper.conftest import Connection, Running, descendants, wait_until_dead


def wait_for_end(running: Running) -> int:
    wait_until_dead(running.pidfd)
    return running.process.wait(10)


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


def test_idle_keeper_ends_when_the_last_orphan_has_gone_and_nobody_says_so_again(keeper: Running) -> None:
    shell = keeper.ask("spawn", argv=["sh", "-c", "sleep 1000 & exit 0"])
    keeper.finish(shell)
    worker = keeper.ask("pids")["worker"]
    while len(left := set(descendants(keeper.process.pid)) - {worker}) != 1:
        pass  # it is being adopted
    (orphan,) = left
    connection = keeper.connect()
    connection.ask("idle", after_s=0.0)
    assert not select.select([keeper.pidfd], [], [], 0.3)[0]
    os.kill(orphan, signal.SIGKILL)
    connection.ask("wait", pid=orphan)
    connection.ask("reap", pid=orphan)
    assert wait_for_end(keeper) == 0


def test_keeper_ends_when_its_worker_is_idle_and_the_last_other_one_has_ended(keeper: Running) -> None:
    path = keeper.state / "other"
    keeper.ask("give_listener", owner="other", path=str(path))
    keeper.ask("fork_worker", name="other", argument=None)
    other = Connection(path)
    other.ask("pids")
    keeper.ask("idle", after_s=0.0)
    assert not select.select([keeper.pidfd], [], [], 0.3)[0]
    other.ask("finish", status=0)
    other.close()
    assert wait_for_end(keeper) == 0


def test_what_an_idle_worker_has_done_only_puts_the_end_off(keeper: Running) -> None:
    """As for a ``delete`` that comes when all is over: nobody says so again after it."""
    connection = keeper.connect()
    connection.ask("idle", after_s=0.3)
    pid = connection.ask("spawn", argv=["true"])
    connection.ask("wait", pid=pid)
    connection.ask("reap", pid=pid)
    assert wait_for_end(keeper) == 0


def test_a_worker_that_has_something_again_takes_idleness_back(keeper: Running) -> None:
    keeper.ask("idle", after_s=0.3)
    keeper.ask("idle", after_s=None)
    assert not select.select([keeper.pidfd], [], [], 0.6)[0]


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


def test_keeper_and_worker_together_are_small(keeper: Running) -> None:
    pids = keeper.ask("pids")
    total = 0
    for role in ("keeper", "worker"):
        for line in Path(f"/proc/{pids[role]}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
                print(role, line)
    assert total < 30_000


def test_log_does_not_grow_for_ever(keeper: Running) -> None:
    keeper.ask("pids")
    with open(keeper.state / "log", "a") as log:
        log.write("x" * (2 << 20))
    keeper.kill_worker()
    keeper.ask("pids")
    assert len(keeper.log) < 4096
