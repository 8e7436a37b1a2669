"""What a container's creation says to the client that comes next (a record), and to the worker (a Create)."""

from __future__ import annotations

import contextlib
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from dunnage import errors
from dunnage.api import mount_pb2, options_pb2, task_pb2
from dunnage.client.bundle import LOCAL_KEY, Bundle, Record
from dunnage.client.connection import TASK_SERVICE, Connection
from dunnage.client.settings import Prepared
from dunnage.client.stdio import Stdio, Streams

CREATE_TIMEOUT_S = 180.0
_NODE_TIMEOUT_S = 5.0


class Wish(NamedTuple):
    """How a container is to be made, whatever is in it. `checkpoint` is where criu's images of it are, or nothing."""

    runtime: str
    stdio: Stdio
    detached: bool
    remove_when_stopped: bool
    checkpoint: str = ""

    def to_record(self, bundle: Bundle, prepared: Prepared) -> Record:
        """What is left for the next client."""
        log = self.stdio.stdout
        return Record(
            id=bundle.id,
            namespace=bundle.namespace,
            created_at=datetime.now(UTC).isoformat(),
            command=list(prepared.spec["process"]["args"]),
            root=prepared.root,
            runtime=self.runtime,
            detached=self.detached,
            terminal=self.stdio.terminal,
            log=str(log) if isinstance(log, Path) else None,
            remove_when_stopped=self.remove_when_stopped,
        )

    def to_request(self, bundle: Bundle, prepared: Prepared, streams: Streams) -> task_pb2.CreateTaskRequest:
        """What the worker is told."""
        # a root of our own for the runtime's state: an id of ours may be one of containerd's too
        root = str(bundle.state / LOCAL_KEY / "runtime")
        options = options_pb2.Options(binary_name=self.runtime, root=root)
        stdin, stdout, stderr = streams.uris
        request = task_pb2.CreateTaskRequest(
            id=bundle.id,
            bundle=str(bundle.path),
            rootfs=[mount_pb2.Mount(type=one.type, source=one.source, options=one.options) for one in prepared.rootfs],
            terminal=self.stdio.terminal,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            checkpoint=self.checkpoint,
        )
        request.options.type_url = options.DESCRIPTOR.full_name
        request.options.value = options.SerializeToString()
        return request


def whole_path(runtime: str) -> str:
    """A runtime's name as it is, and a path said whole: the worker's working directory is not ours."""
    return os.path.abspath(runtime) if "/" in runtime else runtime


async def undo_create(bundle: Bundle, connection: Connection | None, streams: Streams | None) -> None:
    if streams is not None:
        streams.close()
    if connection is None:
        with contextlib.suppress(errors.Error):  # no worker was asked for it yet
            connection = Connection(bundle.read_address(), TASK_SERVICE)
    if connection is not None:
        with contextlib.suppress(errors.Error):  # it seldom came to a container
            delete = task_pb2.DeleteRequest(id=bundle.id)
            await connection.call("Delete", delete, task_pb2.DeleteResponse, timeout_s=CREATE_TIMEOUT_S)
        with contextlib.suppress(errors.Error):  # a worker that is gone has dropped the container with it
            shutdown = task_pb2.ShutdownRequest(id=bundle.id)
            await connection.call("Shutdown", shutdown, _empty(), timeout_s=_NODE_TIMEOUT_S)
        await connection.close()
    bundle.remove()


def _empty() -> Any:
    from google.protobuf.empty_pb2 import Empty

    return Empty
