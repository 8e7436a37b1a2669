"""One connection to a worker's socket, and the place where an RPC's status becomes one of `dunnage.errors`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import Message

from dunnage import errors
from dunnage.ttrpc.client import Client
from dunnage.ttrpc.errors import Code, ConnectionClosed, RpcError

M = TypeVar("M", bound=Message)

TASK_SERVICE = "containerd.task.v2.Task"
NODE_SERVICE = "dunnage.node.v1.Node"

# the keeper holds the listener, so a refusal means that it is gone; only a full backlog is worth waiting for
_CONNECT_TIMEOUT_S = 1.0

_CLASSES: dict[int, type[errors.Error]] = {
    Code.CANCELED: errors.Canceled,
    Code.INVALID_ARGUMENT: errors.InvalidArgument,
    Code.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    Code.NOT_FOUND: errors.NotFound,
    Code.ALREADY_EXISTS: errors.AlreadyExists,
    Code.PERMISSION_DENIED: errors.PermissionDenied,
    Code.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
    Code.FAILED_PRECONDITION: errors.FailedPrecondition,
    Code.UNIMPLEMENTED: errors.Unimplemented,
    Code.INTERNAL: errors.Internal,
    Code.UNAVAILABLE: errors.Unavailable,
}


class Connection:
    """Calls to one service behind one socket. It connects when a call needs it.

    `check` may say, by raising, why nobody answers there any more; `explain` may add notes to what was answered.
    """

    def __init__(
        self,
        address: str | Path,
        service: str,
        *,
        connect_timeout_s: float = _CONNECT_TIMEOUT_S,
        check: Callable[[], None] = lambda: None,
        explain: Callable[[errors.Error], None] = lambda error: None,
    ) -> None:
        self.address = str(address)
        self._service = service
        self._connect_timeout_s = connect_timeout_s
        self._check = check
        self._explain = explain
        self._client: Client | None = None
        self._connecting = asyncio.Lock()

    async def call(self, method: str, request: Message, response: type[M], *, timeout_s: float | None = None) -> M:
        """One call; `timeout_s` None waits as long as it takes. Raises what it answers as `dunnage.errors`."""
        client = await self._connected()
        try:
            return await client.call(self._service, method, request, response, timeout_s=timeout_s)
        except RpcError as error:
            told = failure(error.code, error.message)
            self._explain(told)
            raise told from error
        except ConnectionClosed as error:
            self._check()
            raise errors.Unavailable(f"the worker at {self.address} closed the connection during {method}") from error
        except TimeoutError as error:
            raise errors.DeadlineExceeded(f"{method} was not answered within {timeout_s} s") from error

    async def call_to_its_end(self, method: str, request: Message, response: type[M], *, timeout_s: float | None) -> M:
        """As `call`, but cancelled only once the answer is there: a worker makes what it was told to, heard or not."""
        answer = asyncio.ensure_future(self.call(method, request, response, timeout_s=timeout_s))
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            with contextlib.suppress(errors.Error):
                await answer  # cancelled once more, this is over at once
            raise

    async def close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            client.close()

    async def _connected(self) -> Client:
        async with self._connecting:  # one for all calls that come meanwhile
            if self._client is None or self._client.closed:
                try:
                    self._client = await Client.connect(self.address, timeout_s=self._connect_timeout_s)
                except (OSError, TimeoutError) as error:
                    self._check()
                    said = getattr(error, "strerror", None) or "no answer"
                    raise errors.Unavailable(f"no worker answers at {self.address}: {said.lower()}") from error
            return self._client


def failure(code: int, message: str) -> errors.Error:
    """The error that an RPC's status means, with the worker's own words."""
    return _CLASSES.get(code, errors.Error)(message)
