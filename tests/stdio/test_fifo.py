"""§5.6, §5.7: a process's pipes and a client's fifos."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
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
    write_all,
)

from dunnage import errors
from dunnage.stdio import Plan, ProcessIO, plan


async def opened(made: Plan, store: Store) -> ProcessIO:
    return await ProcessIO.open(made, keep=store, name=NAME, log=LOG)


def run(io: ProcessIO, *argv: str) -> subprocess.Popen[bytes]:
    """As a runtime would: the process inherits the container's ends, and ours are closed."""
    stdin, stdout, stderr = (subprocess.DEVNULL if fd is None else fd for fd in io.runtime_fds)
    process = subprocess.Popen(argv, stdin=stdin, stdout=stdout, stderr=stderr)
    io.runtime_started()
    io.start()
    return process


def test_null_has_nothing_to_open_and_nothing_to_drain(store: Store) -> None:
    async def scenario() -> None:
        io = await opened(plan("", "", "", terminal=False), store)
        assert io.runtime_fds == (None, None, None)
        io.runtime_started()
        io.start()
        assert await io.wait_drained(LIMIT_S)
        io.close()
        io.close()

    asyncio.run(scenario())
    assert store.history == []


def test_three_streams_reach_their_fifos(store: Store, tmp_path: Path) -> None:
    made = fifo_plan(tmp_path, "stdin", "stdout", "stderr")

    async def scenario() -> None:
        stdout, stderr = open_reader(made.stdout), open_reader(made.stderr)
        io = await opened(made, store)
        client = open_writer(made.stdin)
        process = run(io, "sh", "-c", "cat; echo problem >&2")
        reading = asyncio.create_task(read_to_end(stdout))
        await write_all(client, b"a" * 1_000_000)
        os.close(client)
        await io.close_stdin()
        await io.close_stdin()
        assert await reading == b"a" * 1_000_000
        assert await read_to_end(stderr) == b"problem\n"
        assert process.wait() == 0
        assert await io.wait_drained(LIMIT_S)
        io.close()

    asyncio.run(scenario())


def test_only_the_shims_ends_are_kept_and_each_is_released(store: Store, tmp_path: Path) -> None:
    made = fifo_plan(tmp_path, "stdin", "stdout", "stderr")

    async def scenario() -> None:
        io = await opened(made, store)
        ends = {name.removeprefix(f"{NAME}:") for name in store.fds}
        assert ends == {"stdin.writer", "stdin.fifo", "stdin.pipe"} | {
            f"{stream}.{end}" for stream in ("stdout", "stderr") for end in ("sink", "awaited", "pipe")
        }
        io.close()

    asyncio.run(scenario())


def test_the_processs_pipes_belong_to_the_user_asked_for(store: Store, tmp_path: Path) -> None:
    made = fifo_plan(tmp_path, "stdin", "stdout")

    async def scenario() -> None:
        io = await opened(plan(made.stdin, made.stdout, "", terminal=False, io_uid=1234, io_gid=4321), store)
        for fd in io.runtime_fds[:2]:
            assert fd is not None
            status = os.fstat(fd)
            assert (status.st_uid, status.st_gid) == (1234, 4321)
        assert io.runtime_fds[2] is None
        io.close()

    asyncio.run(scenario())


def test_a_client_may_detach_and_come_back_and_miss_nothing(store: Store, tmp_path: Path) -> None:
    made = fifo_plan(tmp_path, "stdout")

    async def scenario() -> None:
        client = open_reader(made.stdout)
        io = await opened(made, store)
        process = run(io, "sh", "-c", "seq 1 100000")
        got = await read_exactly(client, 1000)
        os.close(client)
        await until_quiet()
        again = open_reader(made.stdout)
        got += await read_to_end(again)
        assert process.wait() == 0
        assert got == b"".join(b"%d\n" % n for n in range(1, 100001))
        io.close()

    asyncio.run(scenario())


def test_a_client_that_comes_late_gets_everything_and_the_end(store: Store, tmp_path: Path) -> None:
    made = fifo_plan(tmp_path, "stdout", "stderr")

    async def scenario() -> None:
        io = await opened(made, store)
        process = run(io, "echo", "quick")
        assert process.wait() == 0
        assert not await io.wait_drained(0.05)
        clients = [asyncio.to_thread(Path(path).read_bytes) for path in (made.stdout, made.stderr)]
        drained, *got = await asyncio.gather(io.wait_drained(LIMIT_S), *clients)
        assert drained
        assert got == [b"quick\n", b""]
        io.close()

    asyncio.run(scenario())


def test_a_client_that_was_there_and_left_is_not_waited_for(store: Store, tmp_path: Path) -> None:
    made = fifo_plan(tmp_path, "stdout")

    async def scenario() -> None:
        client = open_reader(made.stdout)
        io = await opened(made, store)
        os.close(client)
        process = run(io, "echo", "nobody reads this")
        assert process.wait() == 0
        assert await io.wait_drained(LIMIT_S)
        io.close()

    asyncio.run(scenario())


def test_a_client_that_read_and_left_is_not_waited_for(store: Store, tmp_path: Path) -> None:
    made = fifo_plan(tmp_path, "stdout")

    async def scenario() -> None:
        io = await opened(made, store)
        process = run(io, "sh", "-c", "echo 12345678; read x < " + str(tmp_path / "go"))
        client = open_reader(made.stdout)
        assert await read_exactly(client, 4) == b"1234"
        os.close(client)
        await asyncio.to_thread((tmp_path / "go").write_text, "\n")
        assert process.wait() == 0
        assert await io.wait_drained(LIMIT_S)
        io.close()

    os.mkfifo(tmp_path / "go")
    asyncio.run(scenario())


def test_input_ends_only_after_close_and_the_last_client(store: Store, tmp_path: Path) -> None:
    made = fifo_plan(tmp_path, "stdin", "stdout")

    async def scenario() -> None:
        stdout = open_reader(made.stdout)
        io = await opened(made, store)
        process = run(io, "cat")
        for text in (b"one", b"two"):  # a client comes, writes, leaves
            client = open_writer(made.stdin)
            os.write(client, text)
            os.close(client)
            assert await read_exactly(stdout, 3) == text
        client = open_writer(made.stdin)
        await io.close_stdin()
        os.write(client, b"three")
        assert await read_exactly(stdout, 5) == b"three"
        assert process.poll() is None
        os.close(client)
        assert await read_to_end(stdout) == b""
        assert process.wait() == 0
        assert await io.wait_drained(LIMIT_S)
        assert store.fds == {}
        io.close()

    asyncio.run(scenario())


def test_a_burst_of_input_before_the_process_starts_is_not_lost(store: Store, tmp_path: Path) -> None:
    made = fifo_plan(tmp_path, "stdin", "stdout")

    async def scenario() -> None:
        stdout = open_reader(made.stdout)
        early = asyncio.create_task(asyncio.to_thread(Path(made.stdin).write_bytes, b"burst"))
        io = await opened(made, store)
        await early  # its writer came before or after ours, wrote, and has closed
        await io.close_stdin()
        process = run(io, "cat")
        assert await read_to_end(stdout) == b"burst"
        assert process.wait() == 0
        io.close()

    asyncio.run(scenario())


def test_input_that_nobody_takes_does_not_block_the_client(store: Store, tmp_path: Path) -> None:
    made = fifo_plan(tmp_path, "stdin")

    async def scenario() -> None:
        io = await opened(made, store)
        process = run(io, "true")
        assert process.wait() == 0
        client = open_writer(made.stdin)
        await write_all(client, b"x" * 1_000_000)
        os.close(client)
        io.close()

    asyncio.run(scenario())


def test_an_idle_stream_wakes_nobody(store: Store, tmp_path: Path) -> None:
    made = fifo_plan(tmp_path, "stdin", "stdout", "stderr")

    async def scenario() -> None:
        io = await opened(made, store)
        client = open_writer(made.stdin)
        process = run(io, "sh", "-c", "exec 0<&-; echo ready; exec >&- 2>&-; read x < " + str(tmp_path / "go"))
        os.close(client)  # hung up, if the shim had no writer of its own
        stdout = open_reader(made.stdout)
        assert await read_to_end(stdout) == b"ready\n"
        stderr = open_reader(made.stderr)
        assert await read_to_end(stderr) == b""
        loop = asyncio.get_running_loop()
        turns = 0
        real_select = loop._selector.select  # type: ignore[attr-defined]  # what wakes the loop is what is measured

        def counted(timeout: float | None) -> object:
            nonlocal turns
            turns += 1
            return real_select(timeout)

        loop._selector.select = counted  # type: ignore[attr-defined]
        await asyncio.sleep(0.3)
        loop._selector.select = real_select  # type: ignore[attr-defined]
        assert turns <= 3
        await asyncio.to_thread((tmp_path / "go").write_text, "\n")
        process.wait()
        io.close()

    os.mkfifo(tmp_path / "go")
    asyncio.run(scenario())


def test_a_reader_that_stalls_blocks_only_its_own_stream(store: Store, tmp_path: Path) -> None:
    made = fifo_plan(tmp_path, "stdout", "stderr")

    async def scenario() -> None:
        stdout, stderr = open_reader(made.stdout), open_reader(made.stderr)
        io = await opened(made, store)
        process = run(io, "sh", "-c", "seq 1 200000 & seq 1 200000 >&2; wait")
        expected = b"".join(b"%d\n" % n for n in range(1, 200001))
        assert await read_exactly(stderr, len(expected)) == expected
        assert process.poll() is None
        assert await read_exactly(stdout, len(expected)) == expected
        process.wait()
        assert await read_to_end(stdout) == b""
        assert await read_to_end(stderr) == b""
        io.close()

    asyncio.run(scenario())


def test_a_child_that_holds_stdout_makes_the_drain_time_out(store: Store, tmp_path: Path) -> None:
    made = fifo_plan(tmp_path, "stdout")
    os.mkfifo(tmp_path / "go")

    async def scenario() -> None:
        stdout = open_reader(made.stdout)
        io = await opened(made, store)
        process = run(io, "sh", "-c", f"(read x < {tmp_path}/go) & echo parent")
        process.wait()
        assert not await io.wait_drained(0.1)
        assert await read_exactly(stdout, 7) == b"parent\n"
        io.close()
        assert await read_some(stdout, 1) == b""
        os.close(stdout)
        await asyncio.to_thread((tmp_path / "go").write_text, "\n")

    asyncio.run(scenario())


@pytest.mark.parametrize("missing", ["stdin", "stdout", "stderr"])
def test_a_missing_path_is_named_and_leaves_nothing(store: Store, tmp_path: Path, missing: str) -> None:
    made = fifo_plan(tmp_path, "stdin", "stdout", "stderr")
    (tmp_path / missing).unlink()
    with pytest.raises(errors.Error, match=f"open {tmp_path}/{missing}: no such file or directory"):
        asyncio.run(opened(made, store))


def test_without_descriptors_to_have_the_error_is_clear_and_nothing_is_left(store: Store, tmp_path: Path) -> None:
    made = fifo_plan(tmp_path, "stdin", "stdout", "stderr")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def scenario() -> int:
        used = set(map(int, os.listdir("/proc/self/fd")))
        free = [fd for fd in range(256) if fd not in used]
        for room in range(40):
            resource.setrlimit(resource.RLIMIT_NOFILE, (free[room], hard))
            try:
                io = await opened(made, store)
            except errors.Error as error:
                assert "too many open files" in str(error)  # noqa: PT017 -- below, it succeeds
                assert store.fds == {}
            else:
                io.close()
                return room
        raise AssertionError("never enough")

    try:
        assert asyncio.run(scenario()) > 9
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_stdin_must_be_a_fifo(store: Store, tmp_path: Path) -> None:
    (tmp_path / "stdin").write_text("text")
    with pytest.raises(errors.InvalidArgument, match="is not a fifo"):
        asyncio.run(opened(plan(str(tmp_path / "stdin"), "", "", terminal=False), store))


def test_a_regular_file_is_written_at_its_end(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "both"
    path.write_text("before\n")

    async def scenario() -> None:
        io = await opened(plan("", str(path), str(path), terminal=False), store)
        process = run(io, "sh", "-c", "echo out; echo err >&2")
        process.wait()
        assert await io.wait_drained(LIMIT_S)
        io.close()

    asyncio.run(scenario())
    lines = path.read_text().splitlines()
    assert lines[0] == "before"
    assert sorted(lines[1:]) == ["err", "out"]
