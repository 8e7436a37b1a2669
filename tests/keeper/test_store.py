"""The store: named fds that outlive workers."""

from __future__ import annotations

import os

from tests.keeper.conftest import Connection, Running


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
