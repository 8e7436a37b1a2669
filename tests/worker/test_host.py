"""What a worker asks of its keeper: calls with a deadline, deaths that are noted before they are reaped, orphans."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.worker.hosted import Scene

ROOT = Path(__file__).resolve().parents[2]
SCENARIOS = [name.removeprefix("scenario_") for name in vars(Scene) if name.startswith("scenario_")]


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """``play(scenario)`` has a worker run it, again when the worker has died; what it complained of."""
    state = tmp_path / "state"
    state.mkdir()
    lock = os.open(state / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with socket.socket(socket.AF_UNIX) as control:
        control.bind(str(state / "control"))
        control.listen()
        options = ["--state", str(state), "--lock-fd", str(lock), "--control-fd", str(control.fileno())]
        with open(state / "log", "ab") as log:
            keeper = subprocess.Popen(
                [sys.executable, "-m", "dunnage.keeper", *options, "--worker", "tests.worker.hosted:main", "x" * 200],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": f"{ROOT}/src:{ROOT}"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[lock, control.fileno()],
            )
        os.close(lock)

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

    yield ask
    children = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children").read_text().split()
    for pid in (keeper.pid, *map(int, children)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    keeper.wait(10)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_host(play: Callable[[str], str], scenario: str) -> None:
    complaint = play(scenario)
    assert not complaint, complaint
