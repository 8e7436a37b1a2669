"""A real keeper with a worker of ours, started as the launcher does it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Connection:
    """One connection to the worker."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 500_000))
        self.sock.connect(str(path))
        self.sock.settimeout(20)
        self.file = self.sock.makefile("rwb")

    def send(self, do: str, **arguments: Any) -> None:
        self.file.write(json.dumps({"do": do, "with": arguments}).encode() + b"\n")
        self.file.flush()

    def receive(self) -> Any:
        line = self.file.readline()
        if not line:
            raise EOFError
        reply = json.loads(line)
        if "error" in reply:
            raise Failed(*reply["error"])
        return reply["result"]

    def ask(self, do: str, **arguments: Any) -> Any:
        self.send(do, **arguments)
        return self.receive()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.file.close()
        self.sock.close()


class Failed(Exception):
    """What the worker's request raised: class name, errno, text."""


class Running:
    def __init__(self, state: Path, process: subprocess.Popen[bytes]) -> None:
        self.state = state
        self.process = process
        self.pidfd = os.pidfd_open(process.pid)
        self.connections: list[Connection] = []

    def connect(self) -> Connection:
        connection = Connection(self.state / "control")
        self.connections.append(connection)
        return connection

    def ask(self, do: str, **arguments: Any) -> Any:
        """On a connection of its own."""
        connection = self.connect()
        try:
            return connection.ask(do, **arguments)
        finally:
            connection.close()

    def wait_done(self) -> None:
        """Until the keeper has done what its worker asked for without awaiting an answer."""
        with pytest.raises(Failed, match="ChildProcessError"):
            self.ask("peek", pid=1)  # requests are done in order

    def kill_worker(self) -> int:
        pid: int = self.ask("pids")["worker"]
        pidfd = os.pidfd_open(pid)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        wait_until_dead(pidfd)
        os.close(pidfd)
        return pid

    def finish(self, pid: int) -> list[int | None]:
        """Wait for a child's end, take its status, have it reaped."""
        self.ask("wait", pid=pid)
        status: list[int | None] = self.ask("peek", pid=pid)
        self.ask("reap", pid=pid)
        return status

    @property
    def log(self) -> str:
        return (self.state / "log").read_text()


def wait_until_dead(pidfd: int) -> None:
    assert select.select([pidfd], [], [], 20)[0]


def descendants(pid: int) -> list[int]:
    found = []
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []  # it has just been reaped
    for child in children:
        found += [int(child), *descendants(int(child))]
    return found


@pytest.fixture
def start_keeper(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(*options: str, limit: str = "", wrapper: Sequence[str] = (), **popen: Any) -> Running:
        state = tmp_path / f"state{len(started)}"
        state.mkdir()
        lock = os.open(state / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        control = socket.socket(socket.AF_UNIX)
        control.bind(str(state / "control"))
        control.listen(200)
        arguments = [
            "--state", str(state), "--lock-fd", str(lock), "--control-fd", str(control.fileno()),
            "--worker", "tests.keeper.worker:main", *options, "x" * 200,
        ]  # fmt: skip
        command = [*wrapper, sys.executable, "-m", "dunnage.keeper", *arguments]
        if limit:
            command = ["sh", "-c", f'{limit}; exec "$@"', "sh", *command]
        with open(state / "log", "ab") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": f"{ROOT}/src:{ROOT}"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                pass_fds=[lock, control.fileno()],
                **popen,
            )
        os.close(lock)
        control.close()
        started.append(Running(state, process))
        return started[-1]

    yield start
    for running in started:
        for connection in running.connections:
            connection.close()
        left = descendants(running.process.pid) if running.process.poll() is None else []
        for pid in [running.process.pid, *left]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        running.process.wait(10)
        os.close(running.pidfd)


@pytest.fixture
def keeper(start_keeper: Callable[..., Running]) -> Running:
    return start_keeper()
