"""A worker may be killed at any instruction: the next one goes on with what the keeper has, byte for byte."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
import pty
import random
import select
import signal
import socket
import subprocess
import termios
import time
from pathlib import Path

import pytest
from tests.stdio.streams import (
    LIMIT_S,
    LOG,
    NAME,
    Store,
    fifo_plan,
    open_reader,
    open_writer,
    read_exactly,
    read_some,
    read_to_end,
    until_quiet,
)

from dunnage.stdio import Plan, ProcessIO, plan

NUMBERS = 1_000_000
COUNT = ("seq", "-f", "%.0f", "1", str(NUMBERS))  # a format makes it slow enough to outlive many workers


@functools.cache
def expected() -> str:
    return hashlib.sha256(b"".join(b"%d\n" % n for n in range(1, NUMBERS + 1))).hexdigest()


class RemoteStore:
    """The store as a forked worker has it: a socket to the keeper."""

    def __init__(self, keeper: socket.socket) -> None:
        self._keeper = keeper

    def store(self, name: str, fd: int) -> None:
        socket.send_fds(self._keeper, [b"+" + name.encode()], [fd])

    def release(self, name: str) -> None:
        self._keeper.send(b"-" + name.encode())


class Worker:
    """A process that carries the stdio of another until killed, or until all is drained."""

    def __init__(self, made: Plan, store: Store, process: int) -> None:
        self._store = store
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fds = store.inherited()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._socket.close()
                for fd in store.fds.values():
                    os.close(fd)
                asyncio.run(self._carry(made, fds, RemoteStore(theirs), process))
            finally:
                os._exit(1)
        theirs.close()
        for fd in fds.values():
            os.close(fd)
        self.pidfd = os.pidfd_open(self.pid)

    async def _carry(self, made: Plan, fds: dict[str, int], keep: RemoteStore, process: int) -> None:
        io = ProcessIO.recover(made, fds, keep=keep, name=NAME, log=LOG, started=True)
        if made.stdin and not made.terminal:
            await io.close_stdin()
        over = asyncio.Event()
        asyncio.get_running_loop().add_reader(process, over.set)
        await over.wait()
        await io.wait_drained(LIMIT_S)
        io.close()
        os._exit(0)

    def ends_within(self, limit_s: float) -> bool:
        """Be its keeper meanwhile."""
        deadline = time.monotonic() + limit_s
        while (left_s := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select([self.pidfd, self._socket.fileno()], [], [], left_s)
            if self.pidfd in ready:
                return True
            if ready and not self._listen():
                return bool(select.select([self.pidfd], [], [], LIMIT_S)[0])
        return False

    def bury(self) -> None:
        """Kill it if it lives; what it had said to the keeper still counts."""
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        with self._socket:
            while self._listen():
                pass

    def _listen(self) -> bool:
        """One message; False at the end."""
        text, fds, _, _ = socket.recv_fds(self._socket, 4096, 4)
        if text[:1] == b"+":
            self._store.store(text[1:].decode(), fds[0])
            os.close(fds[0])
        elif text:
            self._store.release(text[1:].decode())
        return bool(text)


def carry_with_deaths(made: Plan, store: Store, process: subprocess.Popen[bytes], *, most_s: float) -> int:
    """How many workers it took."""
    chance = random.Random(5)
    pidfd = os.pidfd_open(process.pid)
    workers = 0
    over = False
    while not over:
        worker = Worker(made, store, pidfd)
        workers += 1
        # After the 40th the machine is too slow for this, and the rest goes undisturbed.
        over = worker.ends_within(chance.uniform(0.001, most_s) if workers < 40 else LIMIT_S)
        worker.bury()
    os.close(pidfd)
    print(workers, "workers")
    return workers


def checksum_of(path: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sh", "-c", f"exec sha256sum < {path}"], stdout=subprocess.PIPE)


def told(checksum: subprocess.Popen[bytes]) -> str:
    out, _ = checksum.communicate(timeout=LIMIT_S)
    return out.decode().split()[0]


def test_no_byte_of_pipes_is_lost_however_often_the_worker_dies(store: Store, tmp_path: Path) -> None:
    made = fifo_plan(tmp_path, "stdin", "stdout", "stderr")
    out, err = checksum_of(made.stdout), checksum_of(made.stderr)

    async def begin() -> subprocess.Popen[bytes]:
        io = await ProcessIO.open(made, keep=store, name=NAME, log=LOG)
        stdin, stdout, stderr = io.runtime_fds
        script = f"{' '.join(COUNT)} >&2 & cat; wait"
        process = subprocess.Popen(["sh", "-c", script], stdin=stdin, stdout=stdout, stderr=stderr)  # noqa: ASYNC220 -- starts it
        for fd in store.lose_worker(io).values():
            os.close(fd)
        return process

    process = asyncio.run(begin())
    client = open_writer(made.stdin)
    os.set_blocking(client, True)
    with subprocess.Popen(COUNT, stdout=client) as typing:
        os.close(client)
        workers = carry_with_deaths(made, store, process, most_s=0.02)
        assert (told(out), told(err)) == (expected(), expected())
        assert typing.wait() == 0
    assert process.wait() == 0
    assert workers > 3


def test_no_byte_of_a_terminal_is_lost_however_often_the_worker_dies(store: Store, tmp_path: Path) -> None:
    made = fifo_plan(tmp_path, "stdin", "stdout", terminal=True)
    out = checksum_of(made.stdout)
    master, slave = pty.openpty()
    attributes = termios.tcgetattr(slave)
    attributes[1] &= ~termios.OPOST
    termios.tcsetattr(slave, termios.TCSANOW, attributes)

    async def begin() -> subprocess.Popen[bytes]:
        io = await ProcessIO.open(made, keep=store, name=NAME, log=LOG)
        io.attach_terminal(master)
        process = subprocess.Popen(COUNT, stdin=slave, stdout=slave, stderr=slave)  # noqa: ASYNC220 -- starts it
        for fd in store.lose_worker(io).values():
            os.close(fd)
        return process

    process = asyncio.run(begin())
    os.close(slave)
    workers = carry_with_deaths(made, store, process, most_s=0.02)
    assert told(out) == expected()
    assert process.wait() == 0
    assert workers > 3


def test_no_byte_of_a_log_file_is_lost_however_often_the_worker_dies(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "log"
    made = plan("", f"file://{path}", "", terminal=False)

    async def begin() -> subprocess.Popen[bytes]:
        io = await ProcessIO.open(made, keep=store, name=NAME, log=LOG)
        process = subprocess.Popen(COUNT, stdout=io.runtime_fds[1])  # noqa: ASYNC220 -- starts it
        for fd in store.lose_worker(io).values():
            os.close(fd)
        return process

    process = asyncio.run(begin())
    workers = carry_with_deaths(made, store, process, most_s=0.02)
    assert process.wait() == 0
    assert hashlib.sha256(path.read_bytes()).hexdigest() == expected()
    assert workers > 3


def test_a_reader_does_not_see_the_end_between_two_workers(store: Store, tmp_path: Path) -> None:
    made = fifo_plan(tmp_path, "stdout")

    async def scenario() -> None:
        client = open_reader(made.stdout)
        io = await ProcessIO.open(made, keep=store, name=NAME, log=LOG)
        _, stdout, _ = io.runtime_fds
        assert stdout is not None
        process = os.dup(stdout)
        io.runtime_started()
        io.start()
        os.write(process, b"one")
        assert await read_exactly(client, 3) == b"one"
        fds = store.lose_worker(io)
        os.write(process, b"two")
        with pytest.raises(BlockingIOError):
            os.read(client, 1)
        again = ProcessIO.recover(made, fds, keep=store, name=NAME, log=LOG, started=True)
        assert await read_exactly(client, 3) == b"two"
        os.close(process)
        assert await read_to_end(client) == b""
        assert await again.wait_drained(LIMIT_S)
        again.close()

    asyncio.run(scenario())


def test_stdin_that_was_closed_stays_closed_and_one_that_was_not_stays_open(store: Store, tmp_path: Path) -> None:
    made = fifo_plan(tmp_path, "stdin")

    async def scenario() -> None:
        io = await ProcessIO.open(made, keep=store, name=NAME, log=LOG)
        stdin = io.runtime_fds[0]
        assert stdin is not None
        process = os.dup(stdin)
        os.set_blocking(process, False)
        io.runtime_started()
        io = ProcessIO.recover(made, store.lose_worker(io), keep=store, name=NAME, log=LOG, started=True)
        await until_quiet()
        with pytest.raises(BlockingIOError):
            os.read(process, 1)
        client = open_writer(made.stdin)
        await io.close_stdin()
        io = ProcessIO.recover(made, store.lose_worker(io), keep=store, name=NAME, log=LOG, started=True)
        os.write(client, b"last")
        os.close(client)
        assert await read_exactly(process, 4) == b"last"
        assert await read_some(process, 1) == b""
        os.close(process)
        io.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("kept", range(8))
def test_an_open_cut_short_anywhere_leaves_something_that_closes(store: Store, tmp_path: Path, kept: int) -> None:
    """The store held the first `kept` names when the worker died: the container's ends are gone, so all has ended."""
    made = fifo_plan(tmp_path, "stdin", "stdout", "stderr")

    async def scenario() -> None:
        clients = [open_reader(made.stdout), open_reader(made.stderr)]
        io = await ProcessIO.open(made, keep=store, name=NAME, log=LOG)
        order = [name.removeprefix(f"+{NAME}:") for name in store.history]
        assert len(order) == 7
        fds = dict(store.lose_worker(io))
        for end in order[kept:]:
            os.close(fds.pop(end))
            store.release(f"{NAME}:{end}")
        again = ProcessIO.recover(made, fds, keep=store, name=NAME, log=LOG, started=True)
        assert await again.wait_drained(LIMIT_S)
        again.close()
        for client in clients:
            assert await read_to_end(client) == b""

    asyncio.run(scenario())


def test_a_sink_that_is_missing_is_opened_by_its_path(store: Store, tmp_path: Path) -> None:
    made = fifo_plan(tmp_path, "stdout", "stderr")

    async def scenario() -> None:
        client = open_reader(made.stdout)
        io = await ProcessIO.open(made, keep=store, name=NAME, log=LOG)
        ends = [os.dup(fd) for fd in io.runtime_fds[1:] if fd is not None]
        fds = dict(store.lose_worker(io))
        for end in ("stdout.sink", "stderr.sink", "stderr.awaited"):
            os.close(fds.pop(end))
            store.release(f"{NAME}:{end}")
        Path(made.stderr).unlink()
        again = ProcessIO.recover(made, fds, keep=store, name=NAME, log=LOG, started=True)
        for end_fd in ends:
            os.write(end_fd, b"text")
            os.close(end_fd)
        assert await read_to_end(client) == b"text"
        assert await again.wait_drained(LIMIT_S)
        again.close()

    asyncio.run(scenario())


def test_a_terminal_that_had_ended_is_over_for_the_next_worker_too(store: Store, tmp_path: Path) -> None:
    made = fifo_plan(tmp_path, "stdin", "stdout", terminal=True)

    async def scenario() -> None:
        client = open_reader(made.stdout)
        io = await ProcessIO.open(made, keep=store, name=NAME, log=LOG)
        master, slave = pty.openpty()
        io.attach_terminal(master)
        io.start()
        os.write(slave, b"text")
        fds = dict(store.lose_worker(io))
        os.close(slave)
        again = ProcessIO.recover(made, fds, keep=store, name=NAME, log=LOG, started=True)
        assert await read_exactly(client, 4) == b"text"
        fds = dict(store.lose_worker(again))
        os.close(fds.pop("terminal"))
        store.release(f"{NAME}:terminal")
        last = ProcessIO.recover(made, fds, keep=store, name=NAME, log=LOG, started=True)
        assert await last.wait_drained(LIMIT_S)
        assert await read_to_end(client) == b""
        last.close()

    asyncio.run(scenario())
