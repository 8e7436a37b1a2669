"""The node's own service, ``dunnage.node.v1.Node``: what the command line asks of a worker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

from google.protobuf.message import Message

from dunnage.api import forward_pb2, node_pb2
from dunnage.container.container import Container
from dunnage.service import messages
from dunnage.ttrpc.server import Call, Method

SERVICE = "dunnage.node.v1.Node"
_LONGEST_WAIT_S = 60.0

M = TypeVar("M", bound=Message)


class Served(NamedTuple):
    """A container and the address of its Task service."""

    address: str
    container: Container


class Numbered(Protocol):
    @property
    def sequence(self) -> int: ...
    @property
    def envelope(self) -> forward_pb2.Envelope: ...


class AskOthers(Protocol):
    """Asks the node service of every worker beside this one; who does not answer is left out."""

    def __call__(self, method: str, request: Message, response_class: type[M], /) -> Awaitable[Sequence[M]]: ...


class NodeService:
    """``status`` answers what is always true of this worker; ``containers`` lists what it serves now; ``others`` asks
    the workers beside it the same."""

    def __init__(
        self,
        *,
        status: Callable[[], node_pb2.StatusResponse],
        containers: Callable[[], Iterable[Served]],
        events_after: Callable[[int, float], Awaitable[Iterable[Numbered]]],
        others: AskOthers,
    ) -> None:
        self._status = status
        self._containers = containers
        self._events_after = events_after
        self._others = others

    def methods(self) -> Mapping[str, Method]:
        return {
            "Status": Method(node_pb2.StatusRequest, self.status),
            "List": Method(node_pb2.ListRequest, self.list),
            "Events": Method(node_pb2.EventsRequest, self.events),
        }

    async def status(self, request: node_pb2.StatusRequest, call: Call) -> node_pb2.StatusResponse:
        status = self._status()
        for other in await self._others("Status", request, node_pb2.StatusResponse):
            status.containers += other.containers
            status.workers.extend(other.workers)
        return status

    async def list(self, request: node_pb2.ListRequest, call: Call) -> node_pb2.ListResponse:
        response = node_pb2.ListResponse(containers=[_container(served) for served in self._containers()])
        for other in await self._others("List", request, node_pb2.ListResponse):
            response.containers.extend(other.containers)
        return response

    async def events(self, request: node_pb2.EventsRequest, call: Call) -> node_pb2.EventsResponse:
        found = await self._events_after(request.after, min(request.wait_ms / 1000, _LONGEST_WAIT_S))
        return node_pb2.EventsResponse(
            events=[node_pb2.Event(sequence=event.sequence, envelope=event.envelope) for event in found]
        )


def _container(served: Served) -> node_pb2.Container:
    container = served.container
    init = container.init
    return node_pb2.Container(
        namespace=container.namespace,
        id=container.id,
        bundle=container.bundle.path,
        address=served.address,
        pid=init.pid,
        status=messages.init_status(init),
        exit_status=init.status,
        exited_at=messages.timestamp(init.exited_at),
        created_at=messages.timestamp(container.created_at),
        stdout=init.io.stdout,
        runtime=container.runtime_command,
        exec_ids=list(container.execs),
    )
