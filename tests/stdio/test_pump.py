"""One pump: exact, fair, asleep when there is nothing to do, and cheap."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import itertools
import logging
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.stdio.streams import LIMIT_S, LOG, read_to_end, until_quiet, write_all

from dunnage.stdio import PipeBudget
from dunnage.stdio import pump as pump_module
from dunnage.stdio.pump import TURN_BYTES, Pump, Splice


def refuses_splice(src: int, dst: int, count: int, *, flags: int) -> int:
    raise OSError(errno.EINVAL, "as an old kernel with a terminal")


class Line:
    """A pipe, a pump, a pipe."""

    def __init__(self, *, splice: Splice = os.splice, budget: PipeBudget | None = None) -> None:
        self.source, self.writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.reader, self.sink = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.budget = budget or PipeBudget()
        self.budget.adopt(self.source)
        self.budget.adopt(self.sink)
        self.ended = asyncio.Event()
        self.pump = Pump("line", self.source, self.sink, log=LOG, budget=self.budget, on_end=self._end, splice=splice)

    def _end(self) -> None:
        os.close(self.source)
        os.close(self.sink)
        self.ended.set()


@contextmanager
def counting_turns(pump: Pump) -> Iterator[Callable[[], int]]:
    turns = itertools.count()
    real = pump.turn

    def counted() -> None:
        next(turns)
        real()

    pump.turn = counted  # type: ignore[method-assign]  # the loop gets this one
    yield lambda: int(repr(turns)[6:-1])


@pytest.mark.parametrize("splice", [os.splice, refuses_splice], ids=["spliced", "copied"])
@settings(deadline=None, max_examples=40)
@given(
    written=st.lists(st.integers(1, 200_000), max_size=12),
    read_chunk=st.integers(1, 70_000).filter(lambda n: n > 200 or n % 3 == 0),
    seed=st.integers(0, 255),
)
def test_bytes_arrive_exactly_whatever_the_chunks(
    splice: Splice, written: list[int], read_chunk: int, seed: int
) -> None:
    text = bytes((seed + n * 7 + (n >> 8)) & 255 for n in range(4096))
    if read_chunk < 50:
        written = [size % 3000 for size in written]
    blocks = [(text * (size // 4096 + 1))[:size] for size in written]

    async def scenario() -> None:
        line = Line(splice=splice)
        line.pump.start()
        reading = asyncio.create_task(read_to_end(line.reader, chunk=read_chunk))
        for block in blocks:
            await write_all(line.writer, block, chunk=len(block) or 1)
        os.close(line.writer)
        got = await reading
        assert got == b"".join(blocks)
        await line.ended.wait()
        assert line.pump.moved_bytes == len(got)

    asyncio.run(scenario())


@pytest.mark.parametrize("splice", [os.splice, refuses_splice], ids=["spliced", "copied"])
def test_a_source_that_hung_up_behind_a_full_sink_wakes_nobody(splice: Splice) -> None:
    async def scenario() -> None:
        line = Line(splice=splice)
        with counting_turns(line.pump) as turns:
            line.pump.start()
            sent = 0
            while True:  # until sink and source are both full, and stay so
                try:
                    sent += os.write(line.writer, b"x" * 4096)
                except BlockingIOError:
                    await until_quiet()
                    try:
                        sent += os.write(line.writer, b"x" * 4096)
                    except BlockingIOError:
                        break
            os.close(line.writer)
            await until_quiet()
            before = turns()
            await until_quiet()
            assert turns() == before
        assert len(await read_to_end(line.reader)) == sent
        await line.ended.wait()

    asyncio.run(scenario())


@pytest.mark.parametrize("splice", [os.splice, refuses_splice], ids=["spliced", "copied"])
def test_a_source_that_hangs_up_empty_behind_a_full_sink_has_ended(splice: Splice) -> None:
    async def scenario() -> None:
        line = Line(splice=splice)
        while True:
            try:
                os.write(line.sink, b"x" * 4096)
            except BlockingIOError:
                break
        line.pump.start()
        os.close(line.writer)
        await until_quiet()
        assert line.ended.is_set()
        os.close(line.reader)

    asyncio.run(scenario())


@pytest.mark.parametrize("splice", [os.splice, refuses_splice], ids=["spliced", "copied"])
def test_a_broken_sink_is_logged_once_and_the_source_is_drained(
    splice: Splice, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, LOG.name)

    async def scenario() -> None:
        line = Line(splice=splice)
        os.close(line.reader)
        line.pump.start()
        await write_all(line.writer, b"x" * 500_000)
        os.close(line.writer)
        await asyncio.wait_for(line.ended.wait(), LIMIT_S)

    asyncio.run(scenario())
    assert [record.getMessage() for record in caplog.records] == [
        "error copying line: [Errno 32] Broken pipe; the rest of it is discarded"
    ]


def test_a_moment_without_memory_costs_no_byte() -> None:
    refusals = iter(range(2))

    def short_of_memory(src: int, dst: int, count: int, *, flags: int) -> int:
        if next(refusals, None) is not None:
            raise OSError(errno.ENOMEM, "now")
        return os.splice(src, dst, count, flags=flags)

    async def scenario() -> None:
        line = Line(splice=short_of_memory)
        line.pump.start()
        os.write(line.writer, b"all of it")
        os.close(line.writer)
        assert await read_to_end(line.reader) == b"all of it"
        await line.ended.wait()

    asyncio.run(scenario())


def test_a_broken_sink_is_left_even_when_there_is_no_descriptor_for_dev_null() -> None:
    async def scenario() -> None:
        line = Line()
        os.close(line.reader)
        os.write(line.writer, b"more")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            line.pump.start()
            line.pump.turn()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(line.writer)
        await asyncio.wait_for(line.ended.wait(), LIMIT_S)

    asyncio.run(scenario())


def test_a_source_that_fails_for_ever_ends(caplog: pytest.LogCaptureFixture) -> None:
    tries = itertools.count()

    def fails(src: int, dst: int, count: int, *, flags: int) -> int:
        assert next(tries) < 10
        raise OSError(errno.EIO, "broken")

    async def scenario() -> None:
        line = Line(splice=fails)
        os.write(line.writer, b"more")
        line.pump.start()
        await asyncio.wait_for(line.ended.wait(), LIMIT_S)
        os.close(line.writer)
        os.close(line.reader)

    asyncio.run(scenario())
    assert "error reading line: [Errno 5] broken" in caplog.text


def test_a_stopped_pump_watches_nothing_however_often_it_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump_module, "PAUSE_S", 0.0)

    def has_no_memory(src: int, dst: int, count: int, *, flags: int) -> int:
        raise OSError(errno.ENOMEM, "ever")

    async def scenario() -> None:
        line = Line(splice=has_no_memory)
        line.pump.start()
        line.pump.turn()
        line.pump.let_end()
        line.pump.turn()
        line.pump.stop()
        await until_quiet()
        assert not asyncio.get_running_loop().remove_reader(line.source)
        for fd in (line.source, line.writer, line.reader, line.sink):
            os.close(fd)

    asyncio.run(scenario())


def test_a_stopped_pump_touches_nothing() -> None:
    async def scenario() -> None:
        line = Line()
        line.pump.start()
        line.pump.start()
        line.pump.stop()
        line.pump.stop()
        os.write(line.writer, b"still there")
        await until_quiet()
        assert os.read(line.source, 100) == b"still there"
        assert not line.ended.is_set()
        for fd in (line.source, line.writer, line.reader, line.sink):
            os.close(fd)

    asyncio.run(scenario())


def test_a_turn_ends_so_that_others_have_theirs() -> None:
    async def scenario() -> None:
        moved: list[int] = []

        def endless(src: int, dst: int, count: int, *, flags: int) -> int:
            moved.append(count)
            return min(count, 65536)

        line = Line(splice=endless)
        line.pump.start()
        line.pump.turn()
        assert line.pump.moved_bytes == TURN_BYTES
        line.pump.stop()
        for fd in (line.source, line.writer, line.reader, line.sink):
            os.close(fd)

    asyncio.run(scenario())


MEGABYTES = 200
WRITER = f"import os\nblock = bytes(range(256)) * 1024\nfor _ in range({MEGABYTES * 4}): os.write(1, block)"
COUNTER = "import os\nn = 0\nwhile got := os.read(0, 1 << 18): n += len(got)\nprint(n)"


def timed(carry: Callable[[int, int], None]) -> tuple[float, float]:
    """Seconds, and CPU seconds of this process, for `MEGABYTES` from one process to another."""
    with (
        subprocess.Popen([sys.executable, "-c", WRITER], stdout=subprocess.PIPE) as writer,
        subprocess.Popen([sys.executable, "-c", COUNTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as counter,
    ):
        assert writer.stdout is not None
        assert counter.stdin is not None
        assert counter.stdout is not None
        source, sink = os.dup(writer.stdout.fileno()), os.dup(counter.stdin.fileno())
        writer.stdout.close()
        counter.stdin.close()
        began, cpu = time.monotonic(), time.process_time()
        carry(source, sink)
        spent = time.monotonic() - began, time.process_time() - cpu
        os.close(source)
        os.close(sink)
        assert int(counter.stdout.read()) == MEGABYTES << 20
    return spent


def test_a_pump_costs_less_than_a_copy(capsys: pytest.CaptureFixture[str]) -> None:
    def pumped(source: int, sink: int) -> None:
        async def scenario() -> None:
            os.set_blocking(source, False)
            os.set_blocking(sink, False)
            budget = PipeBudget()
            budget.adopt(source)
            budget.adopt(sink)
            ended = asyncio.Event()
            pump = Pump("throughput", source, sink, log=LOG, budget=budget, on_end=ended.set)
            pump.start()
            await asyncio.wait_for(ended.wait(), 60)

        asyncio.run(scenario())

    def copied(source: int, sink: int) -> None:
        while got := os.read(source, 1 << 18):
            os.write(sink, got)

    pump_s, pump_cpu_s = timed(pumped)
    copy_s, copy_cpu_s = timed(copied)
    with capsys.disabled():
        print(f"\npump {MEGABYTES / pump_s:.0f} MB/s, {pump_cpu_s:.3f} CPU s; ", end="")
        print(f"read and write {MEGABYTES / copy_s:.0f} MB/s, {copy_cpu_s:.3f} CPU s")
    assert pump_cpu_s < copy_cpu_s


def test_hashes_agree_through_many_processes_at_once() -> None:
    """Eight streams at a time share one loop."""

    async def one(number: int) -> None:
        line = Line()
        line.pump.start()
        expected = hashlib.sha256()
        got = asyncio.create_task(read_to_end(line.reader, chunk=1000 * (number + 1)))
        for part in range(50):
            block = hashlib.sha256(b"%d %d" % (number, part)).digest() * (1 + number * 100)
            expected.update(block)
            await write_all(line.writer, block)
        os.close(line.writer)
        assert hashlib.sha256(await got).digest() == expected.digest()
        await line.ended.wait()

    async def scenario() -> None:
        await asyncio.gather(*(one(number) for number in range(8)))

    asyncio.run(scenario())
