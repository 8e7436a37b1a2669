"""§5.6, binary:// and binary-v2://: a log driver is started, gets every byte, and is ended."""

from __future__ import annotations

import asyncio
import logging
import os
import pty
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.stdio.drivers import FILES, LocalDrivers, write_driver
from tests.stdio.streams import LIMIT_S, LOG, NAME, Store, read_some, until_quiet

from dunnage import errors
from dunnage.stdio import Plan, ProcessIO, plan
from dunnage.stdio.driver import LIMITS, Limits

TEXT = b"".join(b"%d\n" % number for number in range(1, 150_001))  # about 1 MB

Scenario = Callable[[LocalDrivers], Awaitable[None]]


@pytest.fixture
def perform(store: Store) -> Callable[[Scenario], LocalDrivers]:
    """Runs a scenario; then no driver is left, dead or alive."""

    def run(scenario: Scenario) -> LocalDrivers:
        async def whole() -> LocalDrivers:
            drivers = LocalDrivers()
            try:
                async with asyncio.timeout(LIMIT_S):
                    await scenario(drivers)
                    left = [driver.pid for driver in drivers.running()]
            finally:
                for driver in drivers.running():
                    driver.signal(9)
                    await driver.wait()
            assert left == []
            return drivers

        return asyncio.run(whole())

    return run


def driven_by(path: Path, *, scheme: str = "binary", terminal: bool = False) -> Plan:
    return plan("", f"{scheme}://{path}", f"{scheme}://{path}", terminal=terminal)


async def opened(made: Plan, store: Store, drivers: LocalDrivers, limits: Limits = LIMITS) -> ProcessIO:
    return await ProcessIO.open(made, keep=store, name=NAME, log=LOG, drivers=drivers, driver_limits=limits)


def run(io: ProcessIO, script: str, **settings: int) -> subprocess.Popen[bytes]:
    stdin, stdout, stderr = io.runtime_fds
    assert stdin is None
    process = subprocess.Popen(["sh", "-c", script], stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, **settings)  # type: ignore[call-overload]  # numbers only
    io.runtime_started()
    io.start()
    return process  # type: ignore[no-any-return]  # as above


async def ended(process: subprocess.Popen[bytes]) -> int:
    return await asyncio.to_thread(process.wait, LIMIT_S)


def test_a_driver_gets_both_streams_apart_and_whole(
    perform: Callable[[Scenario], LocalDrivers], store: Store, tmp_path: Path
) -> None:
    driver = write_driver(tmp_path / "driver")

    async def scenario(drivers: LocalDrivers) -> None:
        io = await opened(driven_by(driver), store, drivers)
        process = run(io, "seq 1 150000 & echo oops >&2; wait; exit 3")
        assert await ended(process) == 3
        assert await io.wait_drained(LIMIT_S)
        assert drivers.all[0].status == 0
        io.close()

    perform(scenario)
    assert (tmp_path / "driver.out").read_bytes() == TEXT
    assert (tmp_path / "driver.err").read_bytes() == b"oops\n"


def test_a_driver_sees_the_end_when_the_process_is_deleted_and_not_before(
    perform: Callable[[Scenario], LocalDrivers], store: Store, tmp_path: Path
) -> None:
    driver = write_driver(tmp_path / "driver", 'exec 5>&-; cat <&3 >"$0.out"; echo end >>"$0.out"')

    async def scenario(drivers: LocalDrivers) -> None:
        io = await opened(driven_by(driver), store, drivers)
        assert await ended(run(io, "echo said")) == 0
        io.exited()
        while (tmp_path / "driver.out").read_bytes() != b"said\n":  # noqa: ASYNC110 - nothing tells of a file's growth
            await asyncio.sleep(0.01)
        assert drivers.running()
        assert await io.wait_drained(LIMIT_S)
        io.close()

    perform(scenario)
    assert (tmp_path / "driver.out").read_bytes() == b"said\nend\n"


@pytest.mark.parametrize("scheme", ["binary", "binary-v2"])
def test_a_byte_says_ready(
    perform: Callable[[Scenario], LocalDrivers], store: Store, tmp_path: Path, scheme: str
) -> None:
    driver = write_driver(tmp_path / "driver", "printf r >&5; cat <&3")

    async def scenario(drivers: LocalDrivers) -> None:
        io = await opened(driven_by(driver, scheme=scheme), store, drivers)
        assert drivers.running()
        io.close()
        await io.wait_driver_stopped()

    perform(scenario)


def test_a_driver_that_ends_unsaid_is_ready_for_binary_and_has_failed_for_binary_v2(
    perform: Callable[[Scenario], LocalDrivers], store: Store, tmp_path: Path
) -> None:
    driver = write_driver(tmp_path / "driver", "exit 1")

    async def scenario(drivers: LocalDrivers) -> None:
        io = await opened(driven_by(driver), store, drivers)
        io.close()
        await io.wait_driver_stopped()
        said = r"^logging binary did not call ready \(it may have crashed or exited prematurely\)$"
        with pytest.raises(errors.Error, match=said):
            await opened(driven_by(driver, scheme="binary-v2"), store, drivers)

    perform(scenario)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_driver_that_is_never_ready_is_named_and_killed(
    perform: Callable[[Scenario], LocalDrivers], store: Store, tmp_path: Path, terminal: bool
) -> None:
    driver = write_driver(tmp_path / "driver", "trap '' TERM; exec sleep 1000")

    async def scenario(drivers: LocalDrivers) -> None:
        with pytest.raises(errors.DeadlineExceeded, match=rf"^logging binary {driver} was not ready within 0\.1 s$"):
            await opened(driven_by(driver, terminal=terminal), store, drivers, Limits(ready_s=0.1))
        assert drivers.all[0].status == 128 + 9

    perform(scenario)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_program_that_cannot_be_run_is_an_error_and_leaves_nothing(
    perform: Callable[[Scenario], LocalDrivers], store: Store, tmp_path: Path, terminal: bool
) -> None:
    (tmp_path / "text").write_text("no program")

    async def scenario(drivers: LocalDrivers) -> None:
        for name, reason in (("nothing", "No such file or directory"), ("text", "Permission denied")):
            what = "logging binary" if terminal else "binary"
            with pytest.raises(errors.Error, match=f"^failed to start {what} process: {reason}$"):
                await opened(driven_by(tmp_path / name, terminal=terminal), store, drivers)

    perform(scenario)


def test_where_no_driver_can_be_run_it_is_said(store: Store, tmp_path: Path) -> None:
    with pytest.raises(errors.Unimplemented, match="no logging binary can be run here"):
        asyncio.run(ProcessIO.open(driven_by(tmp_path), keep=store, name=NAME, log=LOG))


def test_a_process_whose_driver_is_gone_is_told_so_by_its_pipe(
    perform: Callable[[Scenario], LocalDrivers], store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    driver = write_driver(tmp_path / "driver", "exec 5>&-; read line <&3; exit 7")

    async def scenario(drivers: LocalDrivers) -> None:
        io = await opened(driven_by(driver), store, drivers)
        process = run(io, "echo one; while echo more; do :; done 2>/dev/null; exit 4", restore_signals=False)
        assert await ended(process) == 4
        assert await io.wait_drained(LIMIT_S)
        io.close()

    perform(scenario)
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 1
    assert told[0].startswith(f"logging binary {driver} of default/c1 (process ")
    assert told[0].endswith(") ended with status 7 before the process it reads from")


@pytest.mark.parametrize(
    ("body", "status", "warns"),
    [
        ("exec 5>&-; exec sleep 1000", 128 + 15, False),
        ("trap 'exit 0' TERM; exec 5>&-; while :; do sleep 0.01; done", 0, False),
        ("trap '' TERM; exec 5>&-; exec sleep 1000", 128 + 9, True),
    ],
    ids=["ends by it", "minds it", "does not"],
)
def test_a_driver_that_does_not_end_at_the_end_is_told_to_stop_and_then_killed(
    perform: Callable[[Scenario], LocalDrivers],
    store: Store,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    body: str,
    status: int,
    warns: bool,
) -> None:
    driver = write_driver(tmp_path / "driver", body)

    async def scenario(drivers: LocalDrivers) -> None:
        io = await opened(driven_by(driver), store, drivers, Limits(stall_s=0.1, stop_s=0.5))
        assert await ended(run(io, "echo unread")) == 0
        assert await io.wait_drained(LIMIT_S)
        assert drivers.all[0].status == status
        io.close()

    perform(scenario)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert any("did not end within 0.5 s of SIGTERM: it is killed" in text for text in warnings) == warns
    assert bool(warnings) == warns


def test_a_driver_that_reads_slowly_has_time_as_long_as_it_reads(
    perform: Callable[[Scenario], LocalDrivers], store: Store, tmp_path: Path
) -> None:
    loop = "while :; do sleep 0.06; part=$(dd bs=1024 count=1 <&3 2>&5 | wc -c); [ $part = 0 ] && break; echo $part"
    driver = write_driver(tmp_path / "driver", f'exec 5>/dev/null; ({loop}; done) >"$0.out"; echo end >>"$0.out"')

    async def scenario(drivers: LocalDrivers) -> None:
        io = await opened(driven_by(driver), store, drivers, Limits(stall_s=0.5, stop_s=0.01))
        assert await ended(run(io, "head -c 16384 /dev/zero")) == 0
        assert await io.wait_drained(LIMIT_S)
        assert drivers.all[0].status == 0
        io.close()

    perform(scenario)
    assert (tmp_path / "driver.out").read_text().split() == ["1024"] * 16 + ["end"]


def test_closing_without_waiting_ends_the_driver_too(
    perform: Callable[[Scenario], LocalDrivers], store: Store, tmp_path: Path
) -> None:
    driver = write_driver(tmp_path / "driver")

    async def scenario(drivers: LocalDrivers) -> None:
        io = await opened(driven_by(driver), store, drivers)
        assert await ended(run(io, "echo said")) == 0
        io.close()
        assert await drivers.all[0].wait() == 0
        await io.wait_driver_stopped()

    perform(scenario)
    assert (tmp_path / "driver.out").read_bytes() == b"said\n"


def test_a_driver_has_a_terminals_output_and_its_end(
    perform: Callable[[Scenario], LocalDrivers], store: Store, tmp_path: Path
) -> None:
    driver = write_driver(tmp_path / "driver")
    os.mkfifo(tmp_path / "stdin")

    async def scenario(drivers: LocalDrivers) -> None:
        made = plan(str(tmp_path / "stdin"), f"binary://{driver}", "", terminal=True)
        io = await opened(made, store, drivers)
        master, slave = pty.openpty()
        io.attach_terminal(master)
        io.start()
        script = "stty -opost -echo; read line; echo got $line; seq 1 150000; exit 5"
        process = subprocess.Popen(["sh", "-c", script], stdin=slave, stdout=slave, stderr=slave)  # noqa: ASYNC220 - starts it
        os.close(slave)
        client = os.open(tmp_path / "stdin", os.O_WRONLY)
        os.write(client, b"line\n")
        assert await ended(process) == 5
        io.exited()
        assert await drivers.all[0].wait() == 0  # it sees the end with the terminal's
        assert await io.wait_drained(LIMIT_S)
        os.close(client)
        io.close()

    perform(scenario)
    assert (tmp_path / "driver.out").read_bytes().removeprefix(b"line\r\n") == b"got line\n" + TEXT
    assert (tmp_path / "driver.err").read_bytes() == b""


def test_a_terminal_goes_on_when_its_driver_is_gone(
    perform: Callable[[Scenario], LocalDrivers], store: Store, tmp_path: Path
) -> None:
    driver = write_driver(tmp_path / "driver", "exec 5>&-; read line <&3; exit 7")

    async def scenario(drivers: LocalDrivers) -> None:
        io = await opened(driven_by(driver, terminal=True), store, drivers)
        master, slave = pty.openpty()
        io.attach_terminal(master)
        io.start()
        process = subprocess.Popen(["seq", "1", "150000"], stdin=slave, stdout=slave, stderr=slave)  # noqa: ASYNC220 - starts it
        os.close(slave)
        assert await ended(process) == 0
        assert await io.wait_drained(LIMIT_S)
        io.close()

    perform(scenario)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_driver_outlives_the_worker_and_sees_no_end(
    perform: Callable[[Scenario], LocalDrivers], store: Store, tmp_path: Path, terminal: bool
) -> None:
    driver = write_driver(tmp_path / "driver")
    made = driven_by(driver, terminal=terminal)

    async def scenario(drivers: LocalDrivers) -> None:
        async def die(io: ProcessIO) -> ProcessIO:
            io._driver = None  # a worker that dies stops nobody
            fds = store.lose_worker(io)
            return ProcessIO.recover(made, fds, keep=store, name=NAME, log=LOG, started=True, drivers=drivers)

        io = await opened(made, store, drivers)
        if terminal:
            master, slave = pty.openpty()
            io.attach_terminal(master)
            io.start()
            held = [slave]
        else:
            held = [os.dup(fd) for fd in io.runtime_fds[1:] if fd is not None]
            io.runtime_started()
            io.start()
        for number in range(5):
            os.write(held[0], b"%d\n" % number)
            io = await die(io)
            await until_quiet()
        for fd in held:
            os.close(fd)
        io = await die(io)
        assert await io.wait_drained(LIMIT_S)
        assert [process.status for process in drivers.all] == [0]
        io.close()

    perform(scenario)
    assert (tmp_path / "driver.out").read_bytes().split() == [b"0", b"1", b"2", b"3", b"4"]


def test_a_terminal_whose_driver_died_with_the_worker_leaves_no_descriptor(
    perform: Callable[[Scenario], LocalDrivers], store: Store, tmp_path: Path
) -> None:
    made = driven_by(write_driver(tmp_path / "driver"), terminal=True)

    async def scenario(drivers: LocalDrivers) -> None:
        io = await opened(made, store, drivers)
        master, slave = pty.openpty()
        io.attach_terminal(master)
        io.start()
        io._driver = None
        fds = store.lose_worker(io)
        drivers.all[0].signal(9)
        await drivers.all[0].wait()
        again = ProcessIO.recover(made, fds, keep=store, name=NAME, log=LOG, started=True, drivers=drivers)
        os.write(slave, b"unheard\n")
        os.close(slave)
        assert await again.wait_drained(LIMIT_S)
        again.close()

    perform(scenario)


def test_a_terminal_that_is_held_open_writes_to_nobody_once_its_driver_is_stopped(
    perform: Callable[[Scenario], LocalDrivers], store: Store, tmp_path: Path
) -> None:
    made = driven_by(write_driver(tmp_path / "driver"), terminal=True)
    another = tmp_path / "of-another"

    async def scenario(drivers: LocalDrivers) -> None:
        io = await opened(made, store, drivers)
        master, slave = pty.openpty()
        io.attach_terminal(master)
        io.start()
        os.write(slave, b"said\n")
        number = io._fds["stdout.driver"]
        assert not await io.wait_drained(0.1)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
        file = os.open(another, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)  # as whatever is opened next may be
        os.write(slave, b"late\n")
        await until_quiet()
        for fd in (file, number, slave):
            os.close(fd)
        io.close()

    perform(scenario)
    assert (tmp_path / "driver.out").read_bytes().split() == [b"said"]
    assert another.read_bytes() == b""


def test_a_worker_that_died_at_the_deletion_leaves_the_next_a_driver_to_wait_for(
    perform: Callable[[Scenario], LocalDrivers], store: Store, tmp_path: Path
) -> None:
    driver = write_driver(tmp_path / "driver", "exec 5>&-; cat <&3 >/dev/null; exec sleep 1000")
    made = driven_by(driver)

    async def scenario(drivers: LocalDrivers) -> None:
        io = await opened(made, store, drivers)
        assert await ended(run(io, "echo said")) == 0
        io._driver = None
        io.close()
        assert not store.fds
        limits = Limits(stall_s=0.05)
        again = ProcessIO.recover(
            made, {}, keep=store, name=NAME, log=LOG, started=True, drivers=drivers, driver_limits=limits
        )
        assert await again.wait_drained(LIMIT_S)
        assert drivers.all[0].status == 128 + 15
        again.close()

    perform(scenario)


def test_no_driver_is_started_beside_one_that_a_dead_worker_left(
    perform: Callable[[Scenario], LocalDrivers], store: Store, tmp_path: Path
) -> None:
    """It died before that one was ready, or told so."""
    driver = write_driver(tmp_path / "driver", f"trap '' TERM; {FILES}")

    async def scenario(drivers: LocalDrivers) -> None:
        first = await opened(driven_by(driver), store, drivers)
        first._driver = None
        for fd in store.lose_worker(first).values():
            os.close(fd)
        for name in list(store.fds):
            store.release(name)
        second = await opened(driven_by(driver), store, drivers)
        assert drivers.lived == [0, 0]
        assert await ended(run(second, "echo said")) == 0
        assert await second.wait_drained(LIMIT_S)
        second.close()

    perform(scenario)
    assert (tmp_path / "driver.out").read_bytes() == b"said\n"


def test_the_pipes_belong_to_whom_the_options_say(
    perform: Callable[[Scenario], LocalDrivers], store: Store, tmp_path: Path
) -> None:
    driver = write_driver(tmp_path / "driver")

    async def scenario(drivers: LocalDrivers) -> None:
        made = plan("", f"binary://{driver}", "", terminal=False, io_uid=1234, io_gid=2345)
        io = await opened(made, store, drivers)
        for fd in io.runtime_fds[1:]:
            assert fd is not None
            owner = os.fstat(fd)
            assert (owner.st_uid, owner.st_gid) == (1234, 2345)
        io.close()
        await io.wait_driver_stopped()

    perform(scenario)


def test_the_pipes_block_and_are_as_wide_as_the_kernels(
    perform: Callable[[Scenario], LocalDrivers], store: Store, tmp_path: Path
) -> None:
    """Nobody pumps: what a process finds there is what it would find in a shell."""
    driver = write_driver(tmp_path / "driver", "exec 5>&-; exec sleep 1000")

    async def scenario(drivers: LocalDrivers) -> None:
        io = await opened(driven_by(driver), store, drivers)
        stdout = io.runtime_fds[1]
        assert stdout is not None
        assert os.get_blocking(stdout)
        assert os.write(stdout, bytes(1 << 16)) == 1 << 16
        read_end = os.open(f"/proc/self/fd/{stdout}", os.O_RDONLY | os.O_NONBLOCK)
        assert len(await read_some(read_end, 1 << 17)) == 1 << 16
        os.close(read_end)
        io.close()
        drivers.all[0].signal(9)
        await io.wait_driver_stopped()

    perform(scenario)
