from __future__ import annotations

from tests.keeper.conftest import Running


def test_first_worker_is_a_child_of_the_keeper_and_has_the_control_socket(keeper: Running) -> None:
    pids = keeper.ask("pids")
    assert pids["keeper"] == pids["parent"] == keeper.process.pid
    state = keeper.ask("state")
    assert state["fds"] == ["control"]
    assert state["name"] == "node"
    assert state["accepted"][0] == "control control#1"
