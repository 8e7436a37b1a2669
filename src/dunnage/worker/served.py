"""A group at its address: the listener the keeper accepts on, the connections, and the Task service behind them.

Everything that a next worker needs is in the keeper's store: ``listener:…``, its connections, and ``group:…``, a memfd
that says who the group is.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import posixpath
import socket
from collections.abc import Mapping
from typing import Any, NamedTuple

from dunnage.container.group import Group
from dunnage.errors import Error, InvalidArgument
from dunnage.events.publisher import Publisher
from dunnage.keeper.client import Keeper
from dunnage.linux.attributes import Attributes
from dunnage.ttrpc.server import Server
from dunnage.worker.notes import Unanswered

SOCKET_DIRECTORY = "/run/containerd/s"  # fixed in every containerd up to 2.2 (shim v2, §1.5.4)
BACKLOG = 4096
SCHED_CORE = "SCHED_CORE"  # in a launcher's environment, not empty: its group has a core scheduling domain of its own
_PATH_BYTES = 106


class Launch(NamedTuple):
    """What a launcher handed down: all that runtime, hooks and log drivers of its container inherit."""

    env: Mapping[str, str]
    attributes: Attributes

    def to_json(self) -> dict[str, Any]:
        return {"env": dict(self.env), "attributes": self.attributes.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Launch:
        return cls(value["env"], Attributes.from_json(value["attributes"]))


def socket_path(directory: str, containerd_address: str, namespace: str, group_id: str) -> str:
    """Where a group listens, as every shim reckons it (shim v2, §1.5.4)."""
    joined = posixpath.normpath("/".join(part for part in (containerd_address, namespace, group_id) if part))
    path = posixpath.join(directory, hashlib.sha256(os.fsencode(joined)).hexdigest())
    if len(os.fsencode(path)) > _PATH_BYTES:
        raise InvalidArgument(f"{path}: unix socket path too long (> {_PATH_BYTES})")
    return path


def listen(path: str) -> socket.socket | None:
    """Listen at ``path``. None: another shim listens there and answers. A dead socket's file is replaced."""
    os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
    for attempt in (1, 2):
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            listener.bind(path)
            os.chmod(path, 0o600)
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRINUSE or attempt == 2:
                raise Error(f"socket {path} cannot be made: {error.strerror}") from error
            if _answers(path):
                return None
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass  # whoever made it has just removed it
            except OSError as reason:
                raise Error(f"socket {path} cannot be made: {reason.strerror}") from reason
        else:
            return listener
    return None


def retire(listener: socket.socket) -> None:
    """Close it, so that nobody finds it at its path from now on, whoever else holds it still."""
    with listener:
        listener.shutdown(socket.SHUT_RDWR)  # else who asks whether it is in use would be told so


class ServedGroup:
    """One group, served. ``leave``, then ``close`` end it; until then it is announced to the keeper."""

    def __init__(
        self,
        group: Group,
        *,
        server: Server,
        publisher: Publisher,
        launch: Launch,
        containerd_address: str,
        ttrpc_address: str,
        keeper: Keeper,
    ) -> None:
        self.group = group
        self.server = server
        self.publisher = publisher
        self.launch = launch
        self.launches: dict[str, Launch] = {}
        self.containerd_address = containerd_address
        self.ttrpc_address = ttrpc_address
        self._keeper = keeper

    @property
    def name(self) -> str:
        return group_name(self.group.namespace, self.group.id)

    @property
    def path(self) -> str:
        return self.group.address.removeprefix("unix://")

    def open(self, listener: socket.socket) -> None:
        """Have the keeper keep all that makes this group, and accept for it. ``listener`` may be closed then."""
        self._keeper.store(f"listener:{self.name}", listener.fileno())
        self.remember()
        self._keeper.accept_on(f"listener:{self.name}")

    def take_launch(self, container_id: str) -> Launch:
        """What the ``start`` of this container handed down, else that of the group's first; no Create is awaited."""
        launch = self.launches.pop(container_id, None)
        if launch is None:
            return self.launch
        try:
            self.remember()
        except OSError as error:
            # a next worker would await a Create in vain for a while: no reason to fail this one
            self.server.log.error("group %s is not written down: %s", self.name, error)
        return launch

    def core_peer(self) -> int | None:
        """Whose core scheduling domain a process of this group shares: that of a living init, 0 where there is none;
        None where the group's launcher asked for no domain (shim v2, §1.5.8)."""
        if not self.launch.env.get(SCHED_CORE):
            return None
        inits = [container.init for container in self.group.containers.values()]
        return next((init.pid for init in inits if init.pid and not init.has_exited), 0)

    def remember(self) -> None:
        """Write down who this group is, and which launches still wait for their Create."""
        about = {
            "namespace": self.group.namespace,
            "id": self.group.id,
            "address": self.group.address,
            "containerd_address": self.containerd_address,
            "ttrpc_address": self.ttrpc_address,
            "launch": self.launch.to_json(),
            "launches": {container_id: launch.to_json() for container_id, launch in self.launches.items()},
        }
        fd = os.memfd_create("dunnage group", os.MFD_CLOEXEC)
        try:
            os.write(fd, json.dumps(about).encode())
            self._keeper.store(f"group:{self.name}", fd)
        finally:
            os.close(fd)

    def attach(self, connection: str, fd: int, unanswered: Unanswered | None = None) -> None:
        """Serve a connection that the keeper accepted; with what a former worker has not answered."""
        before = unanswered or Unanswered()
        try:
            self.server.attach(
                socket.socket(fileno=fd),
                connection,
                replay=before.frames,
                last_stream_id=before.last_stream_id,
                partial=before.partial,
            )
        except (OSError, ValueError) as error:
            self.server.log.error("connection %s cannot be served: %s", connection, error)
            self._keeper.release(connection)

    def leave(self) -> None:
        """Take the address away, so that a new group of the same name may come at once."""
        self.group.close()
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass  # somebody cleaned up
        except OSError as error:
            self.server.log.error("socket %s is left behind: %s", self.path, error.strerror)
        self._keeper.stop_accepting(f"listener:{self.name}")
        self._keeper.release(f"listener:{self.name}")
        self._keeper.release(f"group:{self.name}")

    async def close(self) -> None:
        """End the connections, after ``leave``."""
        await self.server.close()


def group_name(namespace: str, group_id: str) -> str:
    """How the keeper's store calls it; a ``#`` there begins the number of a connection."""
    escaped = group_id.replace("%", "%25").replace("#", "%23")
    return f"{namespace}/{escaped}"


def read_about(fd: int) -> dict[str, Any]:
    """What ``remember`` wrote."""
    about: dict[str, Any] = json.loads(os.pread(fd, os.fstat(fd).st_size, 0))
    return about


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except BlockingIOError:
            return True  # its backlog is full
        except OSError:
            return False
    return True
