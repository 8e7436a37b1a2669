"""containerd's part played by the test itself: a bundle, the launcher's `start`, and calls straight to the socket.

The launcher runs in containerd's mount namespace, as it would.
For what `ctr` would never send. The address is that of a running containerd, which so gets the events, and whose
clean-up ends the keeper.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Self

from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from tests.containerd.harness import Containerd

from dunnage.api import mount_pb2, task_pb2, ttrpc_pb2

_HEADER = struct.Struct(">IIBB")
_REQUEST, _RESPONSE = 1, 2

SPEC = {
    "ociVersion": "1.0.2",
    "process": {
        "args": ["/bin/sleep", "1000"],
        "env": ["PATH=/bin"],
        "cwd": "/",
        "user": {"uid": 0, "gid": 0},
    },
    "root": {"path": "rootfs"},
    "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
    "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")]},
}


class Answer(NamedTuple):
    """``code`` 0 and the payload, or an error's code and message."""

    code: int
    message: str
    payload: bytes


class Connection:
    """A ttrpc connection on which one call after the other waits; ``send`` and ``wait`` for two at once."""

    def __init__(self, address: str, service: str = "containerd.task.v2.Task") -> None:
        self._service = service
        self._stream = -1
        self._answers: dict[int, Answer] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(address.removeprefix("unix://"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, method: str, request: Message) -> int:
        self._stream += 2
        body = ttrpc_pb2.Request(service=self._service, method=method, payload=request.SerializeToString())
        text = body.SerializeToString()
        self._socket.sendall(_HEADER.pack(len(text), self._stream, _REQUEST, 0) + text)
        return self._stream

    def wait(self, stream: int, timeout_s: float = 20) -> Answer:
        self._socket.settimeout(timeout_s)
        while stream not in self._answers:
            length, came, kind, _ = _HEADER.unpack(self._read(_HEADER.size))
            body = self._read(length)
            if kind == _RESPONSE:
                response = ttrpc_pb2.Response.FromString(body)
                self._answers[came] = Answer(response.status.code, response.status.message, response.payload)
        return self._answers.pop(stream)

    def call(self, method: str, request: Message, timeout_s: float = 20) -> Answer:
        return self.wait(self.send(method, request), timeout_s)

    def _read(self, count: int) -> bytes:
        text = b""
        while len(text) < count:
            chunk = self._socket.recv(count - len(text))
            assert chunk, "the shim closed the connection"
            text += chunk
        return text


class Bundle:
    """A directory such as containerd makes, and the launcher run in it."""

    def __init__(self, containerd: Containerd, container_id: str, *, spec: object = SPEC) -> None:
        self.containerd, self.id = containerd, container_id
        # beside containerd's own bundles, which it would take for its own and remove
        self.path = containerd.directory / "bundles" / containerd.namespace / container_id
        self.launcher = shutil.which(containerd.shim.binary_name, path=containerd.path)
        (self.path / "rootfs").mkdir(parents=True)
        if spec is not None:
            (self.path / "config.json").write_text(spec if isinstance(spec, str) else json.dumps(spec))
        os.mkfifo(self.path / "log", 0o700)
        self._log = os.open(self.path / "log", os.O_RDWR | os.O_NONBLOCK)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._log)
        left = self.mounts()
        for target in reversed(left):
            subprocess.run(["umount", "--lazy", target], check=True)
        shutil.rmtree(self.path)
        assert not left, f"mounts left: {left}"

    def launch(self, action: str = "start", *, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        flags = ["-namespace", self.containerd.namespace, "-address", self.containerd.address, "-id", self.id]
        if action == "delete":
            flags += ["-bundle", str(self.path)]
        environment = self.containerd.environment | {"TTRPC_ADDRESS": f"{self.containerd.address}.ttrpc"}
        enter = ["nsenter", f"--mount=/proc/{self.containerd.pid}/ns/mnt", f"--wd={self.path}"]
        assert self.launcher is not None
        return subprocess.run(
            [*enter, self.launcher, *flags, "-publish-binary", "/usr/bin/containerd", action],
            cwd=self.path,
            input=stdin,
            capture_output=True,
            timeout=30,
            env=environment,
            check=False,
        )

    def connect(self) -> Connection:
        started = self.launch()
        assert started.returncode == 0, started
        return Connection(started.stdout.decode())

    def create(self, rootfs: Iterable[mount_pb2.Mount], options: Any | None = None) -> task_pb2.CreateTaskRequest:
        return task_pb2.CreateTaskRequest(id=self.id, bundle=str(self.path), rootfs=rootfs, options=options)

    def mounts(self) -> list[str]:
        targets = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        return [target for target in targets if target.startswith(f"{self.path}/")]


def busybox_rootfs(directory: Path) -> mount_pb2.Mount:
    """A root with busybox in it, as a mount to be made."""
    (directory / "bin").mkdir(parents=True, exist_ok=True)
    for name in ("dev", "proc", "sys"):
        (directory / name).mkdir(exist_ok=True)
    shutil.copy("/bin/busybox", directory / "bin/busybox")
    for applet in ("sh", "sleep", "true"):
        if not (directory / "bin" / applet).exists():
            (directory / "bin" / applet).symlink_to("busybox")
    return mount_pb2.Mount(type="bind", source=str(directory), options=["rbind", "rw"])
