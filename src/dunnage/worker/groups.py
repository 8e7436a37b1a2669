"""Which worker serves a launcher: the node's, or one of its own for a pod, a container, or a cgroup for shims.

The node's worker answers every launcher first. What belongs to another worker it passes on, over that worker's own
control socket, ``<state>/w-<hash>``; the other worker ends with its last container. Which address belongs to which
worker is kept in the keeper's store (``routes``), for a ``delete`` brings no options along.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import socket
import struct
from typing import Any, TypeVar

from google.protobuf.message import Message

from dunnage.errors import Error, Unavailable
from dunnage.keeper.client import Keeper
from dunnage.service.node import SERVICE
from dunnage.ttrpc.client import Client
from dunnage.ttrpc.errors import RpcError
from dunnage.worker.control import Kind, LaunchAnswer, LaunchRequest, encode_request

LAUNCHER = "DUNNAGE_LAUNCHER_PID"
"""Names the launcher's process in the environment of a request that is passed on, and nowhere else."""

_ANSWER = struct.Struct("<cBII")
_TRIES = 100
_PAUSE_S = 0.05
_NODE_TIMEOUT_S = 2.0

M = TypeVar("M", bound=Message)


class OtherWorkers:
    """The workers beside the node's, by name. Made in the node's worker."""

    def __init__(self, keeper: Keeper, *, state: str, log: logging.Logger) -> None:
        self._keeper = keeper
        self._state = state
        self._log = log
        self._routes: dict[str, str] = {}
        fd = keeper.fds.get("routes")
        if fd is not None:
            self._routes = json.loads(os.pread(fd, os.fstat(fd).st_size, 0))
            os.close(fd)

    @property
    def names(self) -> list[str]:
        """Of the workers that were there when last heard of."""
        return sorted({name for name in self._routes.values() if self._is_there(name)})

    def control_path(self, name: str) -> str:
        return os.path.join(self._state, f"w-{hashlib.sha256(name.encode()).hexdigest()[:16]}")

    def serving(self, address: str) -> str | None:
        """The worker of the group at this address; None: the node's, or nobody."""
        name = self._routes.get(address)
        return name if name is not None and self._is_there(name) else None

    async def ask_nodes(self, method: str, request: Message, response_class: type[M]) -> list[M]:
        """Ask the node service of each; who does not answer in time is left out."""
        answers = []
        for name in self.names:
            try:
                client = await Client.connect(f"{self.control_path(name)}.node", timeout_s=_NODE_TIMEOUT_S)
                try:
                    answers.append(
                        await client.call(SERVICE, method, request, response_class, timeout_s=_NODE_TIMEOUT_S)
                    )
                finally:
                    client.close()
            except (OSError, RpcError) as error:
                self._log.warning("worker %s does not answer %s: %s", name, method, error)
        return answers

    async def ask(self, name: str, request: LaunchRequest, *, cgroup: str = "") -> LaunchAnswer:
        """Have the worker ``name`` answer; it is made if there is none. Raises Unavailable when it never does."""
        passed_on = request._replace(env={**request.env, LAUNCHER: str(request.pid)})
        for _ in range(_TRIES):
            try:
                answer = await _exchange(self.control_path(name), encode_request(passed_on))
            except OSError:
                await self._make(name, cgroup)
                continue
            if answer is not None:
                if answer.status == 0 and answer.stdout.startswith(b"unix://"):
                    self._note_route(os.fsdecode(answer.stdout), name)
                return answer
            await asyncio.sleep(_PAUSE_S)  # it ended with the question: the next one is on its way
        raise Unavailable(f"worker {name} does not answer")

    async def ask_existing(self, name: str, request: LaunchRequest) -> LaunchAnswer | None:
        """As ``ask``, but None where the worker has gone."""
        passed_on = request._replace(env={**request.env, LAUNCHER: str(request.pid)})
        try:
            return await _exchange(self.control_path(name), encode_request(passed_on))
        except OSError:
            self._forget(name)
            return None

    async def _make(self, name: str, cgroup: str) -> None:
        path = self.control_path(name)
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass  # there was none, or it ended in order
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as listener:
            listener.bind(path)
            os.chmod(path, 0o600)
            listener.listen(128)
            self._keeper.store("control", listener.fileno(), owner=name)
            argument: dict[str, Any] = {"state": self._state, "cgroup": cgroup}
            try:
                child = await self._keeper.fork_worker(name, argument)
            except OSError as error:
                # the one before is about to end, or there is no room for another
                self._keeper.release("control", owner=name)
                os.unlink(path)
                self._log.warning("worker %s is not there yet: %s", name, error)
                await asyncio.sleep(_PAUSE_S)
                return
        os.close(child.pidfd)

    def _is_there(self, name: str) -> bool:
        """A worker takes its socket away when it ends in order; one that dies is made again by the keeper."""
        return os.path.exists(self.control_path(name))

    def _note_route(self, address: str, name: str) -> None:
        if self._routes.get(address) != name:
            self._routes = {known: owner for known, owner in self._routes.items() if self._is_there(owner)}
            self._routes[address] = name
            self._save()

    def _forget(self, name: str) -> None:
        self._routes = {address: owner for address, owner in self._routes.items() if owner != name}
        self._save()

    def _save(self) -> None:
        if not self._routes:
            self._keeper.release("routes")
            return
        fd = os.memfd_create("dunnage routes", os.MFD_CLOEXEC)
        try:
            os.write(fd, json.dumps(self._routes).encode())
            self._keeper.store("routes", fd)
        finally:
            os.close(fd)


async def _exchange(path: str, request: bytes) -> LaunchAnswer | None:
    """One question and its answer; None where the connection ended without one. Raises OSError where nobody listens."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as asker:
        await loop.sock_connect(asker, path)
        try:
            await loop.sock_sendall(asker, request)
            data = b""
            while chunk := await loop.sock_recv(asker, 1 << 16):
                data += chunk
        except ConnectionError:
            return None
    if len(data) < _ANSWER.size:
        return None
    kind, status, stdout_bytes, stderr_bytes = _ANSWER.unpack_from(data)
    end = _ANSWER.size + stdout_bytes
    if len(data) != end + stderr_bytes:
        return None
    return LaunchAnswer(Kind(kind), status, data[_ANSWER.size : end], data[end:])


def join_cgroup(path: str, root: str = "/sys/fs/cgroup") -> None:
    """Put this process into a cgroup, in each hierarchy that has it (shim v2, §1.5.10). Error names the path."""
    if os.path.exists(f"{root}/cgroup.controllers"):
        if not path.startswith("/") or os.path.normpath(path) != path or path.startswith(root):
            raise Error(f"failed to load cgroup {path}: it is not a clean path below the cgroup mount")
        directories = [f"{root}{path}"]
    else:
        directories = [os.path.join(root, name, path.lstrip("/")) for name in sorted(os.listdir(root))]
        directories = [directory for directory in directories if os.path.exists(f"{directory}/cgroup.procs")]
        if not directories:
            raise Error(f"failed to load cgroup {path}: no hierarchy has it")
    for directory in directories:
        try:
            with open(f"{directory}/cgroup.procs", "w", encoding="ascii") as file:
                file.write("0")
        except OSError as error:
            raise Error(f"failed to join cgroup {path}: {directory}: {error.strerror}") from error
