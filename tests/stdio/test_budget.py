"""Pipes are narrow while idle, wide while busy, and leave half of uid 0's quota to the containers."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.stdio.streams import LIMIT_S, LOG, NAME, Store, fifo_plan, open_reader, read_exactly, read_some

from dunnage.stdio import PipeBudget, ProcessIO
from dunnage.stdio.budget import BUSY_BYTES, DEFAULT_BYTES, IDLE_BYTES

KIB = 1024
# A pipe made without the two capabilities that exempt from the quota.
UNPRIVILEGED = """
import ctypes, fcntl, os, struct
libc = ctypes.CDLL(None, use_errno=True)
header = struct.pack("Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
assert libc.capset(header, bytes(24)) == 0, os.strerror(ctypes.get_errno())
print(fcntl.fcntl(os.pipe()[0], fcntl.F_GETPIPE_SZ))
"""

# 100 processes and 100 clients in one: writes to and reads from whatever is ready.
BUSY = """
import ast, os, select, sys
writers, readers = map(ast.literal_eval, sys.argv[1:])
poll, block = select.epoll(), bytes(1 << 18)
for fd in writers:
    os.set_blocking(fd, False)
    poll.register(fd, select.EPOLLOUT)
for fd in readers:
    poll.register(fd, select.EPOLLIN)
while True:
    for fd, event in poll.poll():
        try:
            os.write(fd, block) if event & select.EPOLLOUT else os.read(fd, 1 << 18)
        except BlockingIOError:
            pass
"""


def capacity(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)


@pytest.fixture
def pipes() -> Iterator[list[int]]:
    fds = [fd for _ in range(3) for fd in os.pipe()]
    yield fds[::2]
    for fd in fds:
        os.close(fd)


def test_an_adopted_pipe_is_cut_and_counted(pipes: list[int]) -> None:
    budget = PipeBudget()
    for number, fd in enumerate(pipes):
        budget.adopt(fd)
        assert capacity(fd) == IDLE_BYTES
        assert budget.used_bytes == (number + 1) * IDLE_BYTES
    budget.forget(pipes[0])
    budget.forget(pipes[0])
    assert budget.used_bytes == 2 * IDLE_BYTES


def test_what_is_no_pipe_costs_nothing(tmp_path: Path) -> None:
    budget = PipeBudget()
    fd = os.open(tmp_path / "file", os.O_CREAT | os.O_WRONLY)
    budget.adopt(fd)
    assert budget.used_bytes == 0
    assert not budget.grow(fd, BUSY_BYTES)
    assert budget.shrink(fd)
    os.close(fd)


def test_growth_stops_at_the_limit(pipes: list[int]) -> None:
    budget = PipeBudget(limit_bytes=BUSY_BYTES + 2 * IDLE_BYTES)
    for fd in pipes:
        budget.adopt(fd)
    assert budget.grow(pipes[0], BUSY_BYTES)
    assert not budget.grow(pipes[0], DEFAULT_BYTES)
    assert not budget.grow(pipes[1], DEFAULT_BYTES)
    assert budget.shrink(pipes[0])
    assert budget.grow(pipes[1], DEFAULT_BYTES)
    assert [capacity(fd) for fd in pipes] == [IDLE_BYTES, DEFAULT_BYTES, IDLE_BYTES]


def test_a_pipe_that_holds_too_much_is_not_cut() -> None:
    reader, writer = os.pipe()
    os.write(writer, bytes(DEFAULT_BYTES))
    budget = PipeBudget()
    budget.adopt(reader)
    assert budget.used_bytes == DEFAULT_BYTES
    assert not budget.shrink(reader)
    os.close(reader)
    os.close(writer)


def test_a_stream_is_wide_while_busy_and_narrow_again(store: Store, tmp_path: Path) -> None:
    made = fifo_plan(tmp_path, "stdout")

    async def scenario() -> None:
        client = open_reader(made.stdout)
        budget = PipeBudget()
        io = await ProcessIO.open(made, keep=store, name=NAME, log=LOG, budget=budget)
        assert capacity(client) == IDLE_BYTES
        stdout = io.runtime_fds[1]
        with subprocess.Popen(["sh", "-c", "head -c 30000000 /dev/zero; exec cat"], stdin=-1, stdout=stdout) as process:  # noqa: ASYNC220 -- starts it
            io.runtime_started()
            io.start()
            widest = 0
            got = 0
            while got < 30_000_000:
                got += len(await read_some(client, BUSY_BYTES))
                widest = max(widest, capacity(client))
            assert widest == BUSY_BYTES
            async with asyncio.timeout(LIMIT_S):
                while capacity(client) > IDLE_BYTES:  # noqa: ASYNC110 -- the kernel tells nobody that a pipe was cut
                    await asyncio.sleep(0.05)
            assert budget.used_bytes == 2 * IDLE_BYTES
            assert not [timer for timer in asyncio.get_running_loop()._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]  # idle means no timers
            assert process.stdin is not None
            process.stdin.close()
            await asyncio.to_thread(process.wait)
        assert await io.wait_drained(LIMIT_S)
        io.close()
        assert budget.used_bytes == 0
        os.close(client)

    asyncio.run(scenario())


def test_a_stalled_stream_holds_at_least_what_a_pipe_and_a_fifo_hold(store: Store, tmp_path: Path) -> None:
    made = fifo_plan(tmp_path, "stdout")

    async def scenario() -> None:
        client = open_reader(made.stdout)
        io = await ProcessIO.open(made, keep=store, name=NAME, log=LOG)
        stdout = io.runtime_fds[1]
        with subprocess.Popen(["head", "-c", str(2 * DEFAULT_BYTES), "/dev/zero"], stdout=stdout) as process:  # noqa: ASYNC220 -- starts it
            io.runtime_started()
            io.start()
            assert await asyncio.to_thread(process.wait) == 0  # it could write all that, though nobody reads
        await read_exactly(client, 2 * DEFAULT_BYTES)
        io.close()
        os.close(client)

    asyncio.run(scenario())


def test_with_100_busy_streams_a_container_still_gets_whole_pipes(store: Store, tmp_path: Path) -> None:
    """100 containers with all three streams are 600 pipes, of which 200 are as busy as can be."""
    streams: list[tuple[ProcessIO, list[int], list[int]]] = []
    budget = PipeBudget()

    async def scenario() -> None:
        for number in range(100):
            (tmp_path / str(number)).mkdir()
            made = fifo_plan(tmp_path / str(number), "stdin", "stdout", "stderr")
            clients = [open_reader(made.stdout), open_reader(made.stderr)]
            io = await ProcessIO.open(made, keep=store, name=f"io:default/{number}", log=LOG, budget=budget)
            ends = [os.dup(fd) for fd in io.runtime_fds if fd is not None]
            io.runtime_started()
            io.start()
            streams.append((io, ends, clients))
        writers, readers = [ends[1] for _, ends, _ in streams], [clients[0] for _, _, clients in streams]
        assert budget.used_bytes == 600 * IDLE_BYTES
        child = subprocess.Popen([sys.executable, "-c", BUSY, repr(writers), repr(readers)], pass_fds=writers + readers)  # noqa: ASYNC220 -- starts it
        try:
            async with asyncio.timeout(LIMIT_S):
                while budget.used_bytes < budget.limit_bytes * 9 // 10:  # noqa: ASYNC110 -- nobody is told of growth
                    await asyncio.sleep(0.01)
            done = await asyncio.to_thread(
                subprocess.run, [sys.executable, "-c", UNPRIVILEGED], capture_output=True, text=True, check=True
            )
            wide = sum(capacity(fd) == BUSY_BYTES for fd in writers + readers)
            print(f"{budget.used_bytes // 4096} pages in 600 pipes, {wide} of them wide")
            assert int(done.stdout) == 64 * KIB
            assert budget.used_bytes <= budget.limit_bytes
        finally:
            child.kill()
            child.wait()

    try:
        asyncio.run(scenario())
    finally:
        for io, ends, clients in streams:
            io.close()
            for fd in (*ends, *clients):
                os.close(fd)
    assert budget.used_bytes == 0
