"""The console socket: one real terminal, in time, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from dunnage import errors
from dunnage.runtime.console import ConsoleSocket, _receive_master


def send(path: str, fds: list[int]) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [b"/dev/ptmx"], fds)


@pytest.fixture
def open_fds() -> Callable[[], set[str]]:
    return lambda: set(os.listdir("/proc/self/fd"))


def test_the_master_is_received_and_the_directory_is_gone(tmp_path: Path, open_fds: Callable[[], set[str]]) -> None:
    master, slave = os.openpty()

    async def receive() -> int:
        async with ConsoleSocket.open({"TMPDIR": str(tmp_path)}) as console:
            assert Path(console.path).parent.parent == tmp_path
            assert Path(console.path).parent.name.startswith("pty")
            assert Path(console.path).name == "pty.sock"
            send(console.path, [master])
            return await console.receive(5)

    received = asyncio.run(receive())
    assert os.ttyname(slave).startswith("/dev/pts/")
    assert os.readlink(f"/proc/self/fd/{received}") == os.readlink(f"/proc/self/fd/{master}")
    assert not os.get_inheritable(received)
    assert list(tmp_path.iterdir()) == []
    for fd in (master, slave, received):
        os.close(fd)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "sent 0 file descriptors"), (1, "is not a terminal"), (2, "sent 2 file descriptors")],
)
def test_anything_but_one_terminal_is_refused(
    tmp_path: Path, count: int, text: str, open_fds: Callable[[], set[str]]
) -> None:
    async def receive() -> None:
        async with ConsoleSocket.open({"TMPDIR": str(tmp_path)}) as console:
            null = os.open("/dev/null", os.O_RDWR)
            send(console.path, [null] * count)
            os.close(null)
            await console.receive(5)

    before = open_fds()
    with pytest.raises(errors.Error, match=text):
        asyncio.run(receive())
    assert open_fds() == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("connect", [False, True])
def test_a_terminal_that_does_not_come_is_a_deadline(tmp_path: Path, connect: bool) -> None:
    async def receive() -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            async with ConsoleSocket.open({"TMPDIR": str(tmp_path)}) as console:
                if connect:
                    connection.connect(console.path)
                await console.receive(0.05)

    with pytest.raises(errors.DeadlineExceeded, match=r"no terminal came from the runtime within 0\.05 s"):
        asyncio.run(receive())
    assert list(tmp_path.iterdir()) == []


def test_xdg_runtime_dir_comes_first_and_its_cleaners_are_kept_away(tmp_path: Path) -> None:
    runtime, other = tmp_path / "run", tmp_path / "tmp"
    runtime.mkdir()
    other.mkdir()
    console = ConsoleSocket.open({"XDG_RUNTIME_DIR": str(runtime), "TMPDIR": str(other)})
    directory = Path(console.path).parent
    assert directory.parent == runtime
    assert directory.stat().st_mode & 0o7777 == 0o1755
    console.close()
    console.close()
    assert list(runtime.iterdir()) == []


def test_a_runtime_directory_that_is_gone_is_no_obstacle(tmp_path: Path) -> None:
    console = ConsoleSocket.open({"XDG_RUNTIME_DIR": str(tmp_path / "gone"), "TMPDIR": str(tmp_path)})
    assert Path(console.path).parent.parent == tmp_path
    console.close()


def test_without_descriptors_to_have_no_directory_is_left(tmp_path: Path) -> None:
    with no_descriptor_free(), pytest.raises(OSError, match="Too many open files"):
        ConsoleSocket.open({"TMPDIR": str(tmp_path)})
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_for_which_there_is_no_descriptor_is_not_taken_for_none(tmp_path: Path) -> None:
    with ExitStack() as stack:
        ends = socket.socketpair()
        for end in ends:
            stack.enter_context(end)
        null = os.open("/dev/null", os.O_RDWR)
        socket.send_fds(ends[0], [b"/dev/ptmx"], [null])
        os.close(null)
        with no_descriptor_free(), pytest.raises(errors.Error, match="too many open files"):
            _receive_master(ends[1])


@contextmanager
def no_descriptor_free() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("length", range(60, 140, 4))
def test_a_path_of_any_length_can_be_connected_to(tmp_path: Path, length: int) -> None:
    temp = tmp_path / ("x" * (length - len(str(tmp_path)) - 1)) if length > len(str(tmp_path)) + 1 else tmp_path
    temp.mkdir(exist_ok=True)
    console = ConsoleSocket.open({"TMPDIR": str(temp)})
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(console.path)
    console.close()
    assert not Path(console.path).parent.exists()


def test_another_process_can_take_over(tmp_path: Path) -> None:
    first = ConsoleSocket.open({"TMPDIR": str(tmp_path)})
    second = ConsoleSocket.adopt(first.path, first.listener.detach())
    master, slave = os.openpty()
    send(second.path, [master])
    received = asyncio.run(second.receive(5))
    assert os.isatty(received)
    second.close()
    assert list(tmp_path.iterdir()) == []
    for fd in (master, slave, received):
        os.close(fd)
