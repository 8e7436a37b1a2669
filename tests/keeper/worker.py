"""A worker for the tests: does what it is asked over connections to the control socket, one JSON line each way."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
from collections.abc import Coroutine
from typing import Any

from dunnage.keeper.client import Attributes, Child, Inherited, Keeper
from dunnage.linux.attributes import oom_score_adj_of


def main(argument: Any, inherited: Inherited) -> int:
    return asyncio.run(Worker(argument, inherited).run())


class Worker:
    def __init__(self, argument: Any, inherited: Inherited) -> None:
        self.argument = argument
        self.inherited = inherited
        self.given: list[str] = []
        self.accepted: list[str] = []
        self.pidfds: dict[int, int] = {}
        self.listeners: dict[str, socket.socket] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.given_event = asyncio.Event()
        self.deaths = asyncio.Event()
        self.finished: asyncio.Future[int]
        self.keeper: Keeper
        self.limit: tuple[int, int]

    async def run(self) -> int:
        self.finished = asyncio.get_running_loop().create_future()
        self.keeper = keeper = Keeper(self.inherited)
        keeper.on_accept = self.on_accept
        keeper.on_given = self.on_given
        keeper.on_child = self.deaths.set
        keeper.on_closed = lambda: self.finished.set_result(3)
        for name, fd in keeper.fds.items():
            if "#" in name:
                self.serve(name, fd)
        if "control" in keeper.fds:
            keeper.accept_on("control")
        return await self.finished

    def on_accept(self, listener: str, name: str, fd: int) -> None:
        self.accepted.append(f"{listener} {name}")
        self.serve(name, fd)

    def on_given(self, name: str, fd: int) -> None:
        self.given.append(name)
        self.given_event.set()
        os.close(fd)

    def serve(self, name: str, fd: int) -> None:
        task = asyncio.create_task(self.answer(name, socket.socket(fileno=fd)))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def answer(self, name: str, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=connection, limit=1 << 24)
        while line := await reader.readline():
            request = json.loads(line)
            try:
                result = await getattr(self, f"do_{request['do']}")(**request["with"])
                reply = {"result": result}
            except OSError as error:
                reply = {"error": [type(error).__name__, error.errno, error.strerror]}
            except Exception as error:  # noqa: BLE001 - the test sees it
                reply = {"error": [type(error).__name__, None, str(error)]}
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
        self.keeper.release(name)
        writer.close()

    # --- what a test may ask

    async def do_pids(self) -> dict[str, int]:
        return {"worker": os.getpid(), "keeper": self.keeper.keeper_pid, "parent": os.getppid()}

    async def do_state(self) -> dict[str, Any]:
        return {
            "fds": sorted(self.keeper.fds),
            "children": {str(pid): name for pid, name in self.keeper.children.items()},
            "given": self.given,
            "accepted": self.accepted,
            "argument": self.argument,
            "name": self.keeper.name,
            "open": len(os.listdir("/proc/self/fd")) - 1,
            "nofile": list(resource.getrlimit(resource.RLIMIT_NOFILE)),
        }

    def remember(self, child: Child) -> int:
        self.pidfds[child.pid] = child.pidfd
        return child.pid

    async def do_spawn(
        self,
        argv: list[str],
        env: dict[str, str] | None = None,
        cwd: str = "/",
        output: str | None = None,
        attributes: dict[str, Any] | None = None,
        name: str = "child",
    ) -> int:
        fds = {}
        if output is not None:
            fds[1] = fds[2] = os.open(output, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            return self.remember(
                await self.keeper.spawn(
                    name,
                    argv,
                    env={"PATH": "/usr/bin:/bin"} if env is None else env,
                    cwd=cwd,
                    fds=fds,
                    attributes=Attributes.from_json(attributes) if attributes else None,
                )
            )
        finally:
            if fds:
                os.close(fds[1])

    async def do_spawn_in_directory_fd(self, path: str, output: str) -> int:
        directory = os.open(path, os.O_PATH)
        file = os.open(output, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            return self.remember(
                await self.keeper.spawn("pwd", ["pwd"], env={"PATH": "/bin"}, cwd=directory, fds={1: file})
            )
        finally:
            os.close(directory)
            os.close(file)

    async def do_spawn_swapped(self, script: str, first: int, second: int) -> int:
        """Two memfds "one" and "two", placed where the other one's copy may lie."""
        fds = {}
        for target, text in ((first, b"one"), (second, b"two")):
            fds[target] = os.memfd_create("text")
            os.pwrite(fds[target], text, 0)
        try:
            return self.remember(
                await self.keeper.spawn("swap", ["sh", "-c", script], env={"PATH": "/bin"}, cwd="/", fds=fds)
            )
        finally:
            for fd in fds.values():
                os.close(fd)

    async def do_spawn_with_fds(self, count: int, output: str) -> int:
        null = os.open("/dev/null", os.O_RDONLY)
        file = os.open(output, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            fds = {1: file, **{10 + index: null for index in range(count - 1)}}
            return self.remember(
                await self.keeper.spawn("many", ["ls", "/proc/self/fd"], env={"PATH": "/bin"}, cwd="/", fds=fds)
            )
        finally:
            os.close(null)
            os.close(file)

    async def do_fork(self, entry: str, argument: Any, texts: dict[str, str] | None = None) -> int:
        fds = {}
        for name, text in (texts or {}).items():
            fds[name] = os.memfd_create(name)
            os.pwrite(fds[name], text.encode(), 0)
        try:
            return self.remember(await self.keeper.fork("forked", entry, argument, fds=fds))
        finally:
            for fd in fds.values():
                os.close(fd)

    async def do_fork_worker(self, name: str, argument: Any) -> int:
        return self.remember(await self.keeper.fork_worker(name, argument))

    async def do_spawn_unwatched(self, argv: list[str], *, full_before: bool) -> int:
        """With no room for a pidfd: either from the beginning, or when the child has been asked for."""
        spawn = self.keeper.spawn("unwatched", argv, env={"PATH": "/usr/bin:/bin"}, cwd="/", fds={})
        return await self.make_unwatched(spawn, full_before=full_before)

    async def do_fork_worker_unwatched(self, name: str, *, full_before: bool) -> int:
        return await self.make_unwatched(self.keeper.fork_worker(name, None), full_before=full_before)

    async def make_unwatched(self, making: Coroutine[Any, Any, Child], *, full_before: bool) -> int:
        asked = asyncio.create_task(making)
        if not full_before:
            await asyncio.sleep(0)
        limit = fill_own_table()
        try:
            return self.remember(await asked)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)

    async def do_fill_own_table(self) -> None:
        self.limit = fill_own_table()

    async def do_make_room(self) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, self.limit)

    async def do_wait(self, pid: int) -> None:
        """Until its pidfd is readable: dead, and not reaped."""
        dead = asyncio.Event()
        loop = asyncio.get_running_loop()
        pidfd = self.pidfds.get(pid) or os.pidfd_open(pid)
        self.pidfds[pid] = pidfd
        loop.add_reader(pidfd, dead.set)
        await dead.wait()
        loop.remove_reader(pidfd)

    async def do_peek(self, pid: int) -> list[int | None] | None:
        found = await self.keeper.peek(pid)
        return list(found) if found else None

    async def do_claim(self, name: str, pid: int) -> None:
        self.keeper.claim(name, pid)

    async def do_unclaimed(self) -> list[Any]:
        found = await self.keeper.unclaimed(in_flight_s=600)
        return [sorted(found.pids), found.made, found.oldest]

    async def do_reap(self, pid: int) -> None:
        self.keeper.reap(pid)

    async def do_deaths(self) -> None:
        await self.deaths.wait()
        self.deaths.clear()

    async def do_store_text(self, name: str, text: str, owner: str | None = None) -> None:
        fd = os.memfd_create(name)
        os.pwrite(fd, text.encode(), 0)
        self.keeper.store(name, fd, owner=owner)
        os.close(fd)

    async def do_text(self, name: str) -> str:
        return os.pread(self.keeper.fds[name], 1000, 0).decode()

    async def do_store_nulls(self, count: int) -> None:
        with open("/dev/null", "rb") as null:
            for index in range(count):
                self.keeper.store(f"null{index}", null.fileno())
            await self.keeper.wait_sent()

    async def do_release(self, name: str) -> None:
        self.keeper.release(name)

    async def do_release_nulls(self, count: int) -> None:
        for index in range(count):
            self.keeper.release(f"null{index}")

    async def do_listen(self, name: str, path: str) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(100)
        self.keeper.store(name, listener.fileno())
        self.listeners[name] = listener
        self.keeper.accept_on(name)

    async def do_give_listener(self, owner: str, path: str) -> None:
        """The control socket of a further worker."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(100)
            self.keeper.store("control", listener.fileno(), owner=owner)

    async def do_shut_down(self, name: str) -> None:
        self.listeners[name].shutdown(socket.SHUT_RDWR)

    async def do_accept_on(self, name: str) -> None:
        self.keeper.accept_on(name)

    async def do_stop_accepting(self, name: str) -> None:
        self.keeper.stop_accepting(name)

    async def do_wait_given(self) -> list[str]:
        await self.given_event.wait()
        return self.given

    async def do_idle(self, after_s: float | None) -> None:
        self.keeper.idle(after_s)

    async def do_finish(self, status: int) -> None:
        self.finished.set_result(status)

    async def do_die_storing(self, name: str) -> None:
        """The last request before the end of this worker."""
        await self.do_store_text(name, "last words")
        os.kill(os.getpid(), signal.SIGKILL)


def fill_own_table() -> tuple[int, int]:
    """No further fd can be opened, until the limit is set to what is returned."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limit[1]))
    return limit


def wait_for_ever(_argument: Any, _fds: dict[str, int]) -> int:
    signal.pause()
    return 0


def own_oom_score(_argument: Any, _fds: dict[str, int]) -> int:
    return oom_score_adj_of(os.getpid()) & 0xFF


def read_and_add(argument: Any, fds: dict[str, int]) -> int:
    """An entry for fork: the number in each text, and the argument, added up."""
    return int(argument["number"]) + sum(int(os.pread(fd, 100, 0)) for fd in fds.values())


def fail(_argument: Any, _fds: dict[str, int]) -> int:
    raise RuntimeError("as told")


def count_fds(argument: Any, _fds: dict[str, int]) -> int:
    return len(os.listdir("/proc/self/fd")) - 1 - int(argument)
