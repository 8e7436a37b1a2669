"""The log drivers of a container: run with what its launcher handed down, but for the environment, which says no more
than whose output it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from dunnage.container.bundle import Bundle
from dunnage.linux.attributes import Attributes
from dunnage.worker.host import KeeperDriver, KeeperHost


class ContainerDrivers:
    def __init__(
        self,
        host: KeeperHost,
        namespace: str,
        container_id: str,
        bundle: Bundle,
        attributes: Attributes,
        *,
        core_peer: Callable[[], int | None],
    ) -> None:
        self._host = host
        self._namespace = namespace
        self._container_id = container_id
        self._bundle = bundle
        self._attributes = attributes
        self._core_peer = core_peer

    def of(self, exec_id: str) -> ProcessDrivers:
        """Those of the init for an empty id, else of an exec."""
        return ProcessDrivers(self, "/".join(filter(None, (self._namespace, self._container_id, exec_id))), exec_id)

    async def spawn(self, name: str, exec_id: str, argv: Sequence[str], *, fds: Mapping[int, int]) -> KeeperDriver:
        return await self._host.spawn_driver(
            name,
            argv,
            env={"CONTAINER_ID": exec_id or self._container_id, "CONTAINER_NAMESPACE": self._namespace},
            cwd=self._bundle.path,
            fds=fds,
            attributes=self._attributes._replace(core_peer=self._core_peer()),
        )

    def running(self, name: str) -> list[KeeperDriver]:
        return self._host.drivers(name)


class ProcessDrivers(NamedTuple):
    """``stdio.Drivers`` of one process."""

    drivers: ContainerDrivers
    name: str
    exec_id: str

    async def spawn(self, argv: Sequence[str], *, fds: Mapping[int, int]) -> KeeperDriver:
        return await self.drivers.spawn(self.name, self.exec_id, argv, fds=fds)

    def running(self) -> list[KeeperDriver]:
        return self.drivers.running(self.name)
