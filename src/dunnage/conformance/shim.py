"""A shim's binary, run as containerd runs it: its actions, its answers, and the connection to what it left behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from google.protobuf.message import DecodeError, Message

from dunnage.api import bootstrap_pb2, task_pb2
from dunnage.conformance.check import Failed, limit
from dunnage.ttrpc.client import Client

VERSIONS: Final = {2: "containerd.task.v2.Task", 3: "containerd.task.v3.Task"}


class Ran(NamedTuple):
    status: int
    stdout: bytes
    stderr: bytes
    took_s: float


class Address(NamedTuple):
    """What `start` says: where the shim listens, and which version of the Task API it speaks there."""

    address: str
    version: int

    @property
    def path(self) -> Path:
        return Path(self.address.removeprefix("unix://"))

    @classmethod
    def parse(cls, said: bytes) -> Address:
        """A plain address, JSON (containerd 1.7 and later), or a BootstrapResult (2.3 and later)."""
        if not said.startswith((b"{", b"unix:")):
            try:
                result = bootstrap_pb2.BootstrapResult.FromString(said)
            except DecodeError:
                raise Failed(f"start says {said!r}, which is no address") from None
            return cls(result.address, result.version)
        if said.startswith(b"{"):
            answer = json.loads(said)
            return cls(answer["address"], answer["version"])
        return cls(said.decode().strip(), 2)


class Shim:
    """`description` is what differences are written for: ``go 1.6.20~ds1``, ``dunnage 0.1.0``."""

    def __init__(self, path: Path, name: str, version: str) -> None:
        self.path = path
        self.name = name
        self.version = version

    @property
    def description(self) -> str:
        return f"{self.name} {self.version}"

    @classmethod
    async def at(cls, path: Path) -> Shim:
        ran = await run([os.fspath(path), "-v"], cwd=Path("/"))
        text = ran.stdout.decode(errors="replace")
        version = re.search(r"Version:\s*v?(\S+)", text)
        if ran.status or version is None:
            raise Failed(f"{path} -v gives {ran.status} and {text!r}")
        name = "go" if "Go version" in text else path.name.removeprefix("containerd-shim-").removesuffix("-v2")
        return cls(path, name, version[1])

    @property
    def wants_bootstrap(self) -> bool:
        """Whether containerd of its version sends BootstrapParams where others send the options alone."""
        numbers = [int(number) for number in re.findall(r"\d+", self.version)[:2]]
        return self.name == "go" and numbers >= [2, 3]

    async def run(
        self,
        *arguments: str,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
    ) -> Ran:
        return await run([os.fspath(self.path), *arguments], cwd=cwd, env=env, stdin=stdin)


async def run(argv: list[str], *, cwd: Path, env: Mapping[str, str] | None = None, stdin: bytes = b"") -> Ran:
    """Run it to its end, in its own process group; without stdin it has /dev/null there, as containerd gives it."""
    began = time.monotonic()
    source = _filled_pipe(stdin) if stdin else DEVNULL
    try:
        child = await asyncio.create_subprocess_exec(
            *argv, cwd=cwd, env=env, stdin=source, stdout=PIPE, stderr=PIPE, process_group=0
        )
    finally:
        if source != DEVNULL:
            os.close(source)
    try:
        async with asyncio.timeout(limit()):
            stdout, stderr = await child.communicate()
    except TimeoutError:
        child.kill()
        await child.wait()
        raise Failed(f"{' '.join(argv)} takes longer than {limit():g} s") from None
    assert child.returncode is not None
    return Ran(child.returncode, stdout, stderr, time.monotonic() - began)


def _filled_pipe(data: bytes) -> int:
    """The reading end of a pipe that holds all of it: nobody has to feed a shim that does not read its stdin."""
    reading, writing = os.pipe()
    with open(writing, "wb", buffering=0) as pipe:
        os.set_blocking(writing, False)
        if pipe.write(data) != len(data):
            os.close(reading)
            raise ValueError(f"{len(data)} bytes are more than a pipe holds")
    return reading


class Connection:
    """One connection to a shim's Task service, as containerd has one for every container."""

    def __init__(self, client: Client, namespace: str, version: int, closed: asyncio.Event) -> None:
        self.client = client
        self._namespace = namespace
        self._service = VERSIONS[version]
        self.closed = closed

    @classmethod
    async def open(cls, address: Address, namespace: str) -> Connection:
        closed = asyncio.Event()
        client = await Client.connect(address.address, timeout_s=limit(), on_close=closed.set)
        return cls(client, namespace, address.version, closed)

    async def call(self, method: str, *, timeout_s: float | None = None, **fields: Any) -> Any:
        """The answer to the method of that name; its request is made of `fields`."""
        request_class, response_class = _CALLS[method]
        return await self.ask(method, request_class(**fields), response_class, timeout_s=timeout_s)

    async def ask(
        self,
        method: str,
        request: Message,
        response_class: type[Message],
        *,
        service: str | None = None,
        timeout_s: float | None = None,
    ) -> Any:
        """The same with a message, and of a service, that need not be the right ones."""
        return await self.client.call(
            service or self._service,
            method,
            request,
            response_class,
            timeout_s=limit(timeout_s),
            metadata=[("containerd-namespace-ttrpc", self._namespace)],
        )

    def close(self) -> None:
        self.client.close()


def _classes_of(method: Any) -> tuple[type[Message], type[Message]]:
    return method.input_type._concrete_class, method.output_type._concrete_class


_CALLS: Final[Mapping[str, tuple[type[Message], type[Message]]]] = {
    method.name: _classes_of(method) for method in task_pb2.DESCRIPTOR.services_by_name["Task"].methods
}
METHODS: Final = tuple(_CALLS)
