"""What the stdio tests share: a store that keeps real copies, clients at fifos, and a way to die."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from dunnage.stdio import Plan, ProcessIO, plan

LOG = logging.getLogger("tests.stdio")
NAME = "io:default/c1"
LIMIT_S = 20.0


class Store:
    """The keeper's store: `fds` are its own copies."""

    def __init__(self) -> None:
        self.fds: dict[str, int] = {}
        self.history: list[str] = []
        self.is_deaf = False

    def store(self, name: str, fd: int) -> None:
        self.release(name)
        self.fds[name] = os.dup(fd)
        self.history.append(f"+{name}")

    def release(self, name: str) -> None:
        if self.is_deaf or name not in self.fds:
            return
        os.close(self.fds.pop(name))
        self.history.append(f"-{name}")

    def inherited(self) -> dict[str, int]:
        """What a worker forked now would have, by end."""
        return {name.removeprefix(f"{NAME}:"): os.dup(fd) for name, fd in self.fds.items()}

    def lose_worker(self, io: ProcessIO) -> Mapping[str, int]:
        """The worker dies: its descriptors close and nothing is released. What the next one inherits."""
        self.is_deaf = True
        io.close()
        self.is_deaf = False
        return self.inherited()


def fifo_plan(where: Path, *streams: str, terminal: bool = False) -> Plan:
    paths = dict.fromkeys(("stdin", "stdout", "stderr"), "")
    for stream in streams:
        paths[stream] = str(where / stream)
        os.mkfifo(paths[stream])
    return plan(paths["stdin"], paths["stdout"], paths["stderr"], terminal=terminal)


def open_reader(path: str | Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


def open_writer(path: str | Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_NONBLOCK)


async def read_to_end(fd: int, *, chunk: int = 1 << 16) -> bytes:
    """Everything until the end of `fd`, which is closed."""
    got = bytearray()
    try:
        while more := await read_some(fd, chunk):
            got += more
    finally:
        os.close(fd)
    return bytes(got)


async def read_exactly(fd: int, size: int) -> bytes:
    got = bytearray()
    while len(got) < size:
        more = await read_some(fd, size - len(got))
        assert more, f"ended after {len(got)} of {size} bytes"
        got += more
    return bytes(got)


async def read_some(fd: int, size: int) -> bytes:
    """b"" is the end."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                return os.read(fd, size)
            except BlockingIOError:
                await _ready(fd, writing=False)


async def write_all(fd: int, data: bytes, *, chunk: int = 1 << 16) -> None:
    os.set_blocking(fd, False)
    at = 0
    async with asyncio.timeout(LIMIT_S):
        while at < len(data):
            try:
                at += os.write(fd, data[at : at + chunk])
            except BlockingIOError:
                await _ready(fd, writing=True)


async def _ready(fd: int, *, writing: bool) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    watched = os.dup(fd)  # the event loop may be watching `fd` itself
    (loop.add_writer if writing else loop.add_reader)(watched, ready.set)
    try:
        await ready.wait()
    finally:
        (loop.remove_writer if writing else loop.remove_reader)(watched)
        os.close(watched)


async def until_quiet() -> None:
    """Let the loop do everything it can do now."""
    for _ in range(20):
        await asyncio.sleep(0)
