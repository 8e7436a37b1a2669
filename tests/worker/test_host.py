"""What a worker asks of its keeper: calls with a deadline, deaths that are noted before they are reaped, orphans."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.worker.hosted import Scene
from tests.worker.house import keeper_running

SCENARIOS = [name.removeprefix("scenario_") for name in vars(Scene) if name.startswith("scenario_")]


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """``play(scenario)`` has a worker run it, again when the worker has died; what it complained of."""
    state = tmp_path / "state"

    def ask(scenario: str) -> str:
        while True:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(30)
                connection.connect(str(state / "control"))
                connection.sendall(scenario.encode())
                with contextlib.suppress(ConnectionResetError):
                    if answer := connection.recv(1 << 20):
                        told: str = json.loads(answer)
                        return told

    with keeper_running(state, "tests.worker.hosted:main"):
        yield ask


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_host(play: Callable[[str], str], scenario: str) -> None:
    complaint = play(scenario)
    assert not complaint, complaint
