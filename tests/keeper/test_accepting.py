"""Connections are accepted by the keeper, and all are answered."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable

import pytest
from tests.keeper.conftest import Connection, Running

Start = Callable[..., Running]


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
