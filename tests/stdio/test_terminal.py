"""§5.8: a terminal's two directions, its end, its size."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import subprocess
import termios
import tty
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
    read_to_end,
    until_quiet,
    write_all,
)

from dunnage import errors
from dunnage.stdio import Plan, ProcessIO, plan


class Shell:
    """A process in a terminal that the shim has the master of."""

    def __init__(self, io: ProcessIO, *argv: str) -> None:
        master, slave = pty.openpty()
        attributes = termios.tcgetattr(slave)
        attributes[1] &= ~termios.OPOST
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        io.runtime_started()
        io.attach_terminal(master)
        # setsid --ctty: as runc's init, the leader of a session of its own
        self.process = subprocess.Popen(("setsid", "--ctty", *argv), stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        io.start()

    async def ended(self) -> int:
        return await asyncio.to_thread(self.process.wait, LIMIT_S)


async def opened(made: Plan, store: Store) -> ProcessIO:
    return await ProcessIO.open(made, keep=store, name=NAME, log=LOG)


def test_what_is_typed_is_read_and_what_is_written_is_shown(store: Store, tmp_path: Path) -> None:
    made = fifo_plan(tmp_path, "stdin", "stdout", terminal=True)

    async def scenario() -> None:
        stdout = open_reader(made.stdout)
        io = await opened(made, store)
        client = open_writer(made.stdin)
        assert io.runtime_fds == (None, None, None)
        script = "stty -echo; echo ready; read x; echo got $x; tty >/dev/null && echo tty; stty size"
        shell = Shell(io, "sh", "-c", script)
        assert await read_exactly(stdout, 6) == b"ready\n"
        io.resize(80, 25)
        os.write(client, b"words\n")
        assert await shell.ended() == 0
        assert await io.wait_drained(LIMIT_S)
        assert await read_to_end(stdout) == b"got words\ntty\n25 80\n"
        io.close()
        os.close(client)

    asyncio.run(scenario())


def test_a_megabyte_comes_through_whole(store: Store, tmp_path: Path) -> None:
    made = fifo_plan(tmp_path, "stdout", terminal=True)

    async def scenario() -> None:
        stdout = open_reader(made.stdout)
        io = await opened(made, store)
        shell = Shell(io, "seq", "1", "150000")
        reading = asyncio.create_task(read_to_end(stdout))
        assert await shell.ended() == 0
        io.exited()
        assert await reading == b"".join(b"%d\n" % n for n in range(1, 150001))
        assert await io.wait_drained(LIMIT_S)
        io.close()

    asyncio.run(scenario())


def test_ctrl_c_is_a_signal(store: Store, tmp_path: Path) -> None:
    made = fifo_plan(tmp_path, "stdin", "stdout", terminal=True)

    async def scenario() -> None:
        stdout = open_reader(made.stdout)
        io = await opened(made, store)
        client = open_writer(made.stdin)
        shell = Shell(io, "sh", "-c", "stty -echo; trap 'echo int; exit 3' INT; echo ready; while :; do sleep 1; done")
        assert await read_exactly(stdout, 6) == b"ready\n"
        os.write(client, b"\x03")
        assert await shell.ended() == 3
        io.exited()
        assert b"int\n" in await read_to_end(stdout)
        io.close()
        os.close(client)

    asyncio.run(scenario())


def test_a_terminal_that_nobody_has_open_waits_to_be_opened_again(store: Store, tmp_path: Path) -> None:
    made = fifo_plan(tmp_path, "stdout", terminal=True)

    async def scenario() -> None:
        stdout = open_reader(made.stdout)
        io = await opened(made, store)
        master, slave = pty.openpty()
        path = os.ttyname(slave)
        io.attach_terminal(master)
        io.start()
        os.write(slave, b"one")
        os.close(slave)
        await until_quiet()
        assert await read_exactly(stdout, 3) == b"one"
        again = os.open(path, os.O_RDWR | os.O_NOCTTY)
        os.write(again, b"two")
        assert await read_exactly(stdout, 3) == b"two"
        os.write(again, b"last")
        os.close(again)
        assert await io.wait_drained(LIMIT_S)
        assert await read_to_end(stdout) == b"last"
        assert store.fds == {}
        io.close()

    asyncio.run(scenario())


def test_the_end_of_input_hangs_the_terminal_up(store: Store, tmp_path: Path) -> None:
    made = fifo_plan(tmp_path, "stdin", "stdout", terminal=True)

    async def scenario() -> None:
        stdout = open_reader(made.stdout)
        io = await opened(made, store)
        client = open_writer(made.stdin)
        shell = Shell(io, "sh", "-c", "trap 'exit 4' HUP; echo ready; while :; do sleep 0.1; done")
        assert await read_exactly(stdout, 6) == b"ready\n"
        os.close(client)
        await io.close_stdin()
        assert await shell.ended() == 4
        await read_to_end(stdout)
        assert await io.wait_drained(LIMIT_S)
        with pytest.raises(errors.FailedPrecondition, match="no terminal"):
            io.resize(1, 1)
        io.close()

    asyncio.run(scenario())


def test_a_stalled_reader_loses_nothing_and_input_still_flows(store: Store, tmp_path: Path) -> None:
    made = fifo_plan(tmp_path, "stdin", "stdout", terminal=True)
    os.mkfifo(tmp_path / "seen")

    async def scenario() -> None:
        seen = os.open(tmp_path / "seen", os.O_RDWR | os.O_NONBLOCK)
        stdout = open_reader(made.stdout)
        io = await opened(made, store)
        client = open_writer(made.stdin)
        script = f"stty -echo; echo ready; seq 1 50000 & read x; echo $x > {tmp_path}/seen; wait"
        shell = Shell(io, "sh", "-c", script)
        assert await read_exactly(stdout, 6) == b"ready\n"
        await write_all(client, b"typed\n")
        assert await read_exactly(seen, 6) == b"typed\n"
        os.close(seen)
        reading = asyncio.create_task(read_to_end(stdout))
        assert await shell.ended() == 0
        io.exited()
        assert await reading == b"".join(b"%d\n" % n for n in range(1, 50001))
        io.close()
        os.close(client)

    asyncio.run(scenario())


def test_input_that_a_dead_process_left_unread_blocks_no_client_while_the_reader_stalls(
    store: Store, tmp_path: Path
) -> None:
    made = fifo_plan(tmp_path, "stdin", "stdout", terminal=True)

    async def scenario() -> None:
        stdout = open_reader(made.stdout)
        io = await opened(made, store)
        client = open_writer(made.stdin)
        master, slave = pty.openpty()
        tty.setraw(slave)
        os.set_blocking(slave, False)
        io.attach_terminal(master)
        io.start()
        written = 0
        with contextlib.suppress(BlockingIOError):
            while True:  # until terminal and fifo are full, in both directions
                written += os.write(slave, b"x" * 1000)
                await until_quiet()
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(client, b"y" * 1000)
                await until_quiet()
        os.close(slave)
        io.exited()
        await write_all(client, bytes(1 << 20))
        os.close(client)
        await io.close_stdin()
        await until_quiet()
        assert await read_to_end(stdout) == b"x" * written
        assert await io.wait_drained(LIMIT_S)
        io.close()

    asyncio.run(scenario())


def test_a_terminal_may_go_to_a_file_that_is_there(store: Store, tmp_path: Path) -> None:
    """Neither end is a pipe, so this one is copied."""
    log = tmp_path / "terminal.log"
    log.write_bytes(b"before\n")

    async def scenario() -> None:
        io = await opened(plan("", str(log), "", terminal=True), store)
        shell = Shell(io, "seq", "1", "50000")
        assert await shell.ended() == 0
        assert await io.wait_drained(LIMIT_S)
        io.close()

    asyncio.run(scenario())
    assert log.read_bytes() == b"before\n" + b"".join(b"%d\n" % n for n in range(1, 50001))


def test_what_is_no_terminal_is_refused_and_closed(store: Store, tmp_path: Path) -> None:
    made = fifo_plan(tmp_path, "stdout", terminal=True)

    async def scenario() -> None:
        io = await opened(made, store)
        with pytest.raises(errors.Internal, match="was not attached"):
            io.start()
        with pytest.raises(errors.Error, match="not a terminal"):
            io.attach_terminal(os.open("/dev/null", os.O_RDWR))
        io.close()

    asyncio.run(scenario())
