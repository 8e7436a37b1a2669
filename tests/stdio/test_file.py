"""§5.6, file://: one description for both streams, at the end of the file."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.stdio.streams import LIMIT_S, LOG, NAME, Store, fifo_plan, open_reader, read_to_end

from dunnage import errors
from dunnage.linux.cached import look
from dunnage.stdio import NotOpened, ProcessIO, file, plan


async def log_to(path: Path, store: Store, script: str) -> None:
    made = plan("", f"file://{path}", f"file://{path}", terminal=False)
    io = await ProcessIO.open(made, keep=store, name=NAME, log=LOG)
    _, stdout, stderr = io.runtime_fds
    argv = ["sh", "-c", script]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)  # noqa: ASYNC220 -- starts it
    io.runtime_started()
    io.start()
    assert await asyncio.to_thread(process.wait) == 0
    assert await io.wait_drained(LIMIT_S)
    io.close()


def test_the_file_and_its_directories_are_made(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "log"
    asyncio.run(log_to(path, store, "echo out; echo err >&2"))
    assert sorted(path.read_text().splitlines()) == ["err", "out"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755


def test_a_file_that_was_there_is_written_on(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "log"
    for word in ("one", "two", "three"):
        asyncio.run(log_to(path, store, f"echo {word}"))
    assert path.read_text() == "one\ntwo\nthree\n"


def test_two_streams_do_not_overwrite_each_other(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "log"
    asyncio.run(log_to(path, store, "seq 1 20000 & seq 100001 120000 >&2; wait"))
    got = path.read_bytes()
    expected = [b"%d" % n for n in (*range(1, 20001), *range(100001, 120001))]
    assert len(got) == sum(len(line) + 1 for line in expected)


def test_a_full_disk_is_logged_and_the_process_goes_on(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        asyncio.run(log_to(path, store, "seq 1 200000"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert path.stat().st_size == 100_000
    assert "error copying stdout of default/c1: [Errno 27] File too large" in caplog.text


def test_a_path_that_cannot_be_made_is_named(store: Store, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    with pytest.raises(errors.Error, match=f"mkdir {tmp_path}/plain: not a directory"):
        asyncio.run(log_to(tmp_path / "plain" / "log", store, "true"))


def forked(entry_argument: object, fds: Mapping[str, int]) -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(file.send_opened(entry_argument, {"answer": os.dup(fds["answer"])}))
    return pid


def test_a_child_opens_what_may_hang(tmp_path: Path) -> None:
    async def fork(argument: object, fds: Mapping[str, int]) -> None:
        pids.append(forked(argument, fds))

    async def scenario() -> None:
        fd = await file.open_elsewhere(fork, str(tmp_path / "x" / "log"), make=True, deadline_s=LIMIT_S)
        os.write(fd, b"here")
        os.close(fd)
        (tmp_path / "plain").write_text("")
        with pytest.raises(errors.Error, match="plain: not a directory"):
            await file.open_elsewhere(fork, str(tmp_path / "plain" / "log"), make=True, deadline_s=LIMIT_S)

    pids: list[int] = []
    asyncio.run(scenario())
    for pid in pids:
        os.waitpid(pid, 0)
    assert (tmp_path / "x" / "log").read_bytes() == b"here"


def test_a_child_opens_what_a_client_has_made(tmp_path: Path) -> None:
    async def fork(argument: object, fds: Mapping[str, int]) -> None:
        pids.append(forked(argument, fds))

    async def scenario() -> None:
        (tmp_path / "plain").write_text("was ")
        fd = await file.open_elsewhere(fork, str(tmp_path / "plain"), make=False, deadline_s=LIMIT_S)
        os.write(fd, b"here")
        os.close(fd)
        os.mkfifo(tmp_path / "fifo")
        place = await file.open_elsewhere(fork, str(tmp_path / "fifo"), make=False, deadline_s=LIMIT_S)
        assert look(place).is_fifo
        assert os.path.samestat(os.fstat(place), os.stat(tmp_path / "fifo"))
        os.close(place)
        with pytest.raises(NotOpened, match=f"^open {tmp_path}/none: no such file or directory$"):
            await file.open_elsewhere(fork, str(tmp_path / "none"), make=False, deadline_s=LIMIT_S)

    pids: list[int] = []
    asyncio.run(scenario())
    for pid in pids:
        os.waitpid(pid, 0)
    assert (tmp_path / "plain").read_bytes() == b"was here"


def test_fifos_that_the_kernel_does_not_remember_are_found_elsewhere(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a kernel before 5.12."""
    monkeypatch.setattr(file, "find_fifo", lambda _path: None)
    asked: list[tuple[str, bool]] = []

    async def open_elsewhere(wanted: str, make: bool) -> int:
        asked.append((wanted, make))
        return file.open_existing(wanted)

    async def scenario() -> None:
        made = fifo_plan(tmp_path, "stdin", "stdout", "stderr")
        io = await ProcessIO.open(made, keep=store, name=NAME, log=LOG, open_elsewhere=open_elsewhere)
        reader = open_reader(tmp_path / "stdout")
        assert io.runtime_fds[1] is not None
        os.write(io.runtime_fds[1], b"said")
        io.runtime_started()
        io.start()
        assert await read_to_end(reader) == b"said"
        io.close()

    asyncio.run(scenario())
    assert asked == [(str(tmp_path / stream), False) for stream in ("stdout", "stderr", "stdin")]


def test_both_streams_share_the_description_that_was_opened_elsewhere(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "log"
    asked: list[str] = []

    async def open_elsewhere(wanted: str, make: bool) -> int:
        assert make
        asked.append(wanted)
        return file.open_log(wanted)

    async def scenario() -> None:
        made = plan("", f"file://{path}", f"file://{path}", terminal=False)
        io = await ProcessIO.open(made, keep=store, name=NAME, log=LOG, open_elsewhere=open_elsewhere)
        for fd, text in zip(io.runtime_fds[1:], (b"one", b"two"), strict=True):
            assert fd is not None
            os.write(fd, text)
        io.runtime_started()
        io.start()
        assert await io.wait_drained(LIMIT_S)
        io.close()

    asyncio.run(scenario())
    assert asked == [str(path)]
    assert sorted((path.read_bytes()[:3], path.read_bytes()[3:])) == [b"one", b"two"]


def test_an_opened_file_for_which_there_is_no_descriptor_is_an_error_in_words(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def opens(_argument: object, fds: Mapping[str, int]) -> None:
        with socket.socket(fileno=os.dup(fds["answer"])) as answer, open(tmp_path / "log", "wb") as log:
            socket.send_fds(answer, [b"+"], [log.fileno()])
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))

    try:
        with pytest.raises(errors.Error, match=rf"opening log file {tmp_path}/log: too many open files"):
            asyncio.run(file.open_elsewhere(opens, str(tmp_path / "log"), make=True, deadline_s=LIMIT_S))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_child_that_hangs_or_dies_is_told_from_one_another(tmp_path: Path) -> None:
    kept: list[int] = []

    async def hangs(_argument: object, fds: Mapping[str, int]) -> None:
        kept.append(os.dup(fds["answer"]))

    async def dies(_argument: object, _fds: Mapping[str, int]) -> None:
        pass

    async def scenario() -> None:
        with pytest.raises(errors.DeadlineExceeded, match=r"took more than 0\.05 s"):
            await file.open_elsewhere(hangs, str(tmp_path / "log"), make=True, deadline_s=0.05)
        with pytest.raises(errors.Error, match="the child died"):
            await file.open_elsewhere(dies, str(tmp_path / "log"), make=True, deadline_s=LIMIT_S)

    asyncio.run(scenario())
    for fd in kept:
        os.close(fd)


@pytest.mark.parametrize("scheme", ["file://", ""])
def test_whoever_writes_to_a_file_appends(store: Store, tmp_path: Path, scheme: str) -> None:
    """Two processes that log to one file leave each other's lines, and one that is cut short grows from its start."""
    path = tmp_path / "log"
    path.write_bytes(b"")
    gates = []

    async def begin(number: int) -> tuple[ProcessIO, int]:
        made = plan("", f"{scheme}{path}", "", terminal=False)
        io = await ProcessIO.open(made, keep=store, name=f"{NAME}{number}", log=LOG)
        stdout = io.runtime_fds[1]
        assert stdout is not None
        gates.append(os.dup(stdout))
        io.runtime_started()
        io.start()
        return io, gates[-1]

    async def write(gate: int, line: bytes, expected: bytes) -> None:
        os.write(gate, line)
        async with asyncio.timeout(LIMIT_S):
            while path.read_bytes() != expected:  # noqa: ASYNC110 - nothing tells of a file's growth
                await asyncio.sleep(0.001)

    async def scenario() -> None:
        (one, first), (two, second) = [await begin(number) for number in (1, 2)]
        await write(first, b"1 one\n", b"1 one\n")
        await write(second, b"2 one\n", b"1 one\n2 one\n")
        await write(first, b"1 two\n", b"1 one\n2 one\n1 two\n")
        os.truncate(path, 0)
        await write(second, b"2 two\n", b"2 two\n")
        for io, gate in ((one, first), (two, second)):
            os.close(gate)
            assert await io.wait_drained(LIMIT_S)
            io.close()

    asyncio.run(scenario())
