"""A client that opens its fifo when all is over finds every byte and the end, whoever the worker is by then."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest
from tests.stdio.streams import LIMIT_S, LOG, NAME, Store, fifo_plan, open_reader, read_exactly, until_quiet

from dunnage.stdio import Plan, ProcessIO, plan


def one_fifo(where: Path) -> Plan:
    os.mkfifo(where / "both")
    os.symlink(where / "both", where / "link")
    return plan("", str(where / "both"), str(where / "link"), terminal=False)


async def run(made: Plan, store: Store, script: str) -> tuple[ProcessIO, subprocess.Popen[bytes]]:
    io = await ProcessIO.open(made, keep=store, name=NAME, log=LOG)
    _, stdout, stderr = io.runtime_fds
    process = subprocess.Popen(["sh", "-c", script], stdout=stdout, stderr=stderr)  # noqa: ASYNC220 -- starts it
    io.runtime_started()
    io.start()
    return io, process


def die(made: Plan, store: Store, io: ProcessIO) -> ProcessIO:
    fds = store.lose_worker(io)
    return ProcessIO.recover(made, fds, keep=store, name=NAME, log=LOG, started=True)


async def read_late(io: ProcessIO, *paths: str) -> list[bytes]:
    assert not await io.wait_drained(0.05)
    readers = [asyncio.create_task(asyncio.to_thread(Path(path).read_bytes)) for path in paths]
    assert await io.wait_drained(LIMIT_S)
    got = [await reader for reader in readers]
    io.close()
    return got


@pytest.mark.parametrize("deaths", [0, 2])
def test_it_gets_both_streams_of_one_fifo(store: Store, tmp_path: Path, deaths: int) -> None:
    made = one_fifo(tmp_path)

    async def scenario() -> None:
        io, process = await run(made, store, "echo out; exec >&-; read go <go; echo err >&2".replace("<go", f"<{go}"))
        await until_quiet()
        for _ in range(deaths):
            io = die(made, store, io)
        await asyncio.to_thread(go.write_text, "\n")
        assert process.wait() == 0
        for _ in range(deaths):
            io = die(made, store, io)
        assert await read_late(io, made.stdout) == [b"out\nerr\n"]

    go = tmp_path / "go"
    os.mkfifo(go)
    asyncio.run(scenario())


def test_of_one_fifo_a_client_that_was_there_and_left_is_not_waited_for(store: Store, tmp_path: Path) -> None:
    made = one_fifo(tmp_path)

    async def scenario() -> None:
        client = open_reader(made.stdout)
        io, process = await run(made, store, "echo out; echo err >&2")
        assert sorted((await read_exactly(client, 8)).split()) == [b"err", b"out"]
        os.close(client)
        assert process.wait() == 0
        assert await io.wait_drained(LIMIT_S)
        io.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("before_the_end", [True, False])
def test_it_gets_what_a_dead_worker_has_handed_over(store: Store, tmp_path: Path, before_the_end: bool) -> None:
    made = fifo_plan(tmp_path, "stdout", "stderr")

    async def scenario() -> None:
        script = f"echo out; echo err >&2; read go <{go}"
        io, process = await run(made, store, script)
        if before_the_end:
            io = die(made, store, io)
        await asyncio.to_thread(go.write_text, "\n")
        assert process.wait() == 0
        await until_quiet()
        io = die(made, store, io)
        assert await read_late(io, made.stdout, made.stderr) == [b"out\n", b"err\n"]

    go = tmp_path / "go"
    os.mkfifo(go)
    asyncio.run(scenario())


def test_one_that_was_there_before_a_death_and_left_is_not_waited_for(store: Store, tmp_path: Path) -> None:
    made = fifo_plan(tmp_path, "stdout")

    async def scenario() -> None:
        io = await ProcessIO.open(made, keep=store, name=NAME, log=LOG)
        client = open_reader(made.stdout)
        process = subprocess.Popen(["echo", "out"], stdout=io.runtime_fds[1])  # noqa: ASYNC220 -- starts it
        io.runtime_started()
        io.start()  # sees it
        os.close(client)
        io = die(made, store, io)
        assert process.wait() == 0
        assert await io.wait_drained(LIMIT_S)
        io.close()

    asyncio.run(scenario())
