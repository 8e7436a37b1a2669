"""A shim that is broken on purpose: another one's answers and events, with one thing wrong.

``BROKEN_SHIM`` is the binary behind it, ``BROKEN`` what is wrong: a row of ``MUTATIONS``, or nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Final

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from dunnage.api import metrics_v1_pb2, options_pb2, task_pb2
from dunnage.api.forward_pb2 import ForwardRequest
from dunnage.conformance.events import SERVICE as EVENTS
from dunnage.conformance.shim import METHODS, VERSIONS
from dunnage.ttrpc.client import Client
from dunnage.ttrpc.errors import Code, ConnectionClosed, RpcError
from dunnage.ttrpc.server import Call, Method, Server

POLL_S: Final = 0.01
SHUTDOWN_S: Final = 5.0
SERVICE: Final = VERSIONS[2]
Answer = Message | RpcError


def unchanged(method: str, answer: Answer) -> Answer:
    return answer


def start_running_again(method: str, answer: Answer) -> Answer:
    if isinstance(answer, RpcError) and answer.message == "cannot start a running process":
        return task_pb2.StartResponse(pid=1)
    return answer


def kill_has_no_class(method: str, answer: Answer) -> Answer:
    if isinstance(answer, RpcError) and method == "Kill":
        return RpcError(Code.UNKNOWN, answer.message)
    return answer


def other_words(method: str, answer: Answer) -> Answer:
    if isinstance(answer, RpcError) and answer.message.startswith("container not created"):
        return RpcError(answer.code, "no such container: not found")
    return answer


def ids_are_shared(method: str, answer: Answer) -> Answer:
    return Empty() if isinstance(answer, RpcError) and answer.code == Code.ALREADY_EXISTS else answer


def short_words(method: str, answer: Answer) -> Answer:
    if isinstance(answer, RpcError) and method == "Create":
        return RpcError(answer.code, answer.message.partition(": ")[0] + ": failed")
    return answer


def no_stats(method: str, answer: Answer) -> Answer:
    return task_pb2.StatsResponse() if method == "Stats" else answer


def empty_is_long(method: str, answer: Answer) -> Answer:
    return task_pb2.WaitResponse(exit_status=1) if method == "CloseIO" else answer


def memory_without_rss(method: str, answer: Answer) -> Answer:
    if isinstance(answer, task_pb2.StatsResponse):
        metrics = metrics_v1_pb2.Metrics.FromString(answer.stats.value)
        metrics.memory.ClearField("rss")
        metrics.memory.ClearField("cache")
        metrics.memory.pg_fault += 1
        answer.stats.value = metrics.SerializeToString()
    return answer


def options_are_dropped(method: str, request: Any) -> None:
    if method == "Create":
        options = options_pb2.Options.FromString(request.options.value)
        options.no_new_keyring = False
        request.options.value = options.SerializeToString()


def log_files_are_dropped(method: str, request: Any) -> None:
    if method == "Create" and request.stdout.startswith("file://"):
        request.stdout = "file:///dev/null"


def no_oom(held: list[ForwardRequest], request: ForwardRequest) -> list[ForwardRequest]:
    return [] if request.envelope.topic == "/tasks/oom" else [request]


def start_after_exit(held: list[ForwardRequest], request: ForwardRequest) -> list[ForwardRequest]:
    if request.envelope.topic == "/tasks/start":
        held.append(request)
        return []
    told = [request, *held]
    held.clear()
    return told


def exits_twice(held: list[ForwardRequest], request: ForwardRequest) -> list[ForwardRequest]:
    return [request] * (2 if request.envelope.topic == "/tasks/exit" else 1)


ANSWERS: Final[dict[str, Callable[[str, Answer], Answer]]] = {
    f.__name__: f
    for f in (
        start_running_again,
        kill_has_no_class,
        other_words,
        ids_are_shared,
        short_words,
        no_stats,
        empty_is_long,
        memory_without_rss,
    )
}
EVENT_MUTATIONS: Final[dict[str, Callable[[list[ForwardRequest], ForwardRequest], list[ForwardRequest]]]] = {
    f.__name__: f for f in (start_after_exit, exits_twice, no_oom)
}
REQUESTS: Final[dict[str, Callable[[str, Any], None]]] = {
    f.__name__: f for f in (options_are_dropped, log_files_are_dropped)
}
SWALLOWED: Final = {"close_io_does_nothing": "CloseIO", "checkpoint_does_nothing": "Checkpoint"}
"""Answered without asking the shim."""
ACTIONS: Final = ("start_talks", "start_reads_nothing", "delete_names_another")


class Proxy:
    """Between a suite and one shim."""

    def __init__(self, broken: str, real: str, listener: socket.socket, events: socket.socket, told_at: str) -> None:
        log = logging.getLogger("broken")
        self.broken, self.real, self.listener, self.events, self.told_at = broken, real, listener, events, told_at
        self.clients: dict[str, Client] = {}
        self.held: list[ForwardRequest] = []
        self.gone = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()
        methods = {name: self._method(name) for name in METHODS}
        self.server = Server({SERVICE: methods}, log=log, on_disconnect=self._left)
        self.forwarder = Server({EVENTS: {"Forward": Method(ForwardRequest, self._forward)}}, log=log)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self.listener, self._accept, self.listener, self.server)
        loop.add_reader(self.events, self._accept, self.events, self.forwarder)
        await self.gone.wait()

    def _accept(self, listener: socket.socket, server: Server) -> None:
        connection, _ = listener.accept()
        server.attach(connection, f"{id(server)} {connection.fileno()} {os.urandom(4).hex()}")

    def _left(self, name: str) -> None:
        client = self.clients.pop(name, None)
        if client is not None:
            client.close()

    async def _client(self, name: str) -> Client:
        if name not in self.clients:

            def closed() -> None:
                self._look_after()
                if self.server.attached(name):
                    self._keep(self.server.disconnect(name))

            self.clients[name] = await Client.connect(self.real, timeout_s=1, on_close=closed)
        return self.clients[name]

    def _method(self, name: str) -> Method:
        descriptor: Any = task_pb2.DESCRIPTOR.services_by_name["Task"].methods_by_name[name]
        request_class: type[Message] = descriptor.input_type._concrete_class
        response_class: type[Message] = descriptor.output_type._concrete_class

        async def handle(request: Any, call: Call) -> Message:
            if SWALLOWED.get(self.broken) == name:
                return Empty()
            client = await self._client(call.connection)
            if self.broken in REQUESTS:
                REQUESTS[self.broken](name, request)
            answer: Answer
            try:
                answer = await client.call(SERVICE, name, request, response_class)
            except ConnectionClosed:
                if name != "Shutdown":
                    raise
                answer = Empty()  # it has ended before its answer had left, which containerd takes for one
            except RpcError as error:
                answer = error
            if name == "Shutdown":
                self._look_after()
            answer = ANSWERS.get(self.broken, unchanged)(name, answer)
            if isinstance(answer, RpcError):
                raise answer
            return answer

        return Method(request_class, handle)

    async def _forward(self, request: ForwardRequest, call: Call) -> Empty:
        mutate = EVENT_MUTATIONS.get(self.broken)
        told = [request] if mutate is None else mutate(self.held, request)
        client = await Client.connect(self.told_at, timeout_s=1)
        for each in told:
            await client.call(EVENTS, "Forward", each, Empty)
        client.close()
        return Empty()

    def _keep(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _look_after(self) -> None:
        self._keep(self._end_with_the_shim())

    async def _end_with_the_shim(self) -> None:
        for _ in range(int(SHUTDOWN_S / POLL_S)):
            try:
                client = await Client.connect(self.real, timeout_s=0)
            except OSError:
                self.gone.set()
                return
            client.close()
            await asyncio.sleep(POLL_S)


def start(arguments: list[str], broken: str, shim: str) -> None:
    told_at = os.environ["TTRPC_ADDRESS"]
    events_path = f"/run/containerd/s/broken-{os.urandom(8).hex()}"
    answer = subprocess.run(
        [shim, *arguments],
        stdin=subprocess.DEVNULL if broken == "start_reads_nothing" else 0,
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, "TTRPC_ADDRESS": events_path},
    ).stdout.decode()
    path = f"/run/containerd/s/broken-{os.path.basename(answer)[:40]}"
    if os.path.exists(path):  # the shim was there before, and so is its proxy
        print(f"unix://{path}", end="")
        return
    sockets = [socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)]
    for sock, name in zip(sockets, (path, events_path), strict=True):
        sock.bind(name)
        os.chmod(name, 0o600)
        sock.listen(64)
        sock.setblocking(False)
    if os.fork() == 0:
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        try:
            asyncio.run(serve(broken, answer, sockets[0], sockets[1], told_at))
        finally:
            for name in (events_path, path, answer.removeprefix("unix://")):  # a killed shim leaves the last
                if os.path.exists(name):
                    os.unlink(name)
            os._exit(0)
    if broken == "start_talks":
        print("by the way", file=sys.stderr)
    print(f"unix://{path}", end="")


async def serve(broken: str, real: str, listener: socket.socket, events: socket.socket, told_at: str) -> None:
    await Proxy(broken, real, listener, events, told_at).run()


def main() -> None:
    broken, shim, arguments = os.environ.get("BROKEN", ""), os.environ["BROKEN_SHIM"], sys.argv[1:]
    if arguments[-1] == "start":
        start(arguments, broken, shim)
        return
    ran = subprocess.run([shim, *arguments], stdout=subprocess.PIPE, check=False)
    out = ran.stdout
    if arguments[-1] == "delete" and broken == "delete_names_another":
        answer = task_pb2.DeleteResponse.FromString(out)
        answer.pid += 1
        out = answer.SerializeToString()
    sys.stdout.buffer.write(out)
    sys.exit(ran.returncode)


if __name__ == "__main__":
    main()
