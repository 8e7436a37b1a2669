"""The containers that share one address, a pod's or just one: who is there and who is still to come.

A ``start`` announces a container, its Create takes the announcement up, its Delete ends it. A group that has neither
containers nor announcements may close (shim v2, §1.10: Shutdown is called after every container of a group).

A new worker takes up a former one's containers one by one: who names one meanwhile waits (``is_taking_up``). One that
it cannot take up is lost: its name is refused, and its group stays for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from dunnage.container.container import Container
from dunnage.errors import AlreadyExists, FailedPrecondition, NotFound, Unavailable


class Group:
    """One listener's containers. ``containers`` is by id; all are of ``namespace``."""

    def __init__(self, namespace: str, group_id: str, address: str) -> None:
        self.namespace = namespace
        self.id = group_id
        self.address = address
        self.containers: dict[str, Container] = {}
        self.lost: dict[str, str] = {}
        """Those that cannot be taken up, by id, and why."""
        self._creating: dict[str, asyncio.Event] = {}
        self._taking_up: set[str] = set()
        self._announced: dict[str, float] = {}
        self._closed = False

    def container(self, container_id: str) -> Container:
        """Raises NotFound in the words containerd's clients know; FailedPrecondition for one that is lost."""
        self._refuse_lost(container_id)
        if container_id not in self.containers:
            raise NotFound("container not created")
        return self.containers[container_id]

    @property
    def is_empty(self) -> bool:
        """True if nothing is here and nothing is to come."""
        return not (self.containers or self.lost or self._creating or self._announced)

    @property
    def to_come(self) -> dict[str, str]:
        """Those that are not here yet, by id, and what is awaited for each."""
        found = dict.fromkeys(self._announced, "its Create is awaited")
        for container_id in self._creating:
            found[container_id] = "is taken up" if self.is_taking_up(container_id) else "is created"
        return found

    def announce(self, container_id: str, until: float) -> None:
        """A ``start`` was answered: its Create is awaited until then (in the clock of ``expire``)."""
        self._announced[container_id] = until

    def withdraw(self, container_id: str) -> None:
        """No Create is awaited for this id any more."""
        self._announced.pop(container_id, None)

    def expire(self, now: float) -> Iterable[str]:
        """Drop and return the announcements whose time is over."""
        over = [container_id for container_id, until in self._announced.items() if until <= now]
        for container_id in over:
            del self._announced[container_id]
        return over

    def begin_create(self, container_id: str) -> None:
        """Take up an announcement. Raises AlreadyExists for an id that is here or is being created."""
        if self._closed:
            raise Unavailable(f"group {self.id} has ended")
        self._refuse_lost(container_id)
        if container_id in self.containers or container_id in self._creating:
            raise AlreadyExists(f"container {container_id}")
        self._creating[container_id] = asyncio.Event()
        self.withdraw(container_id)

    def end_create(self, container_id: str, container: Container | None) -> None:
        """The Create is over; None: it failed."""
        if container is not None:
            self.containers[container_id] = container
        self._taking_up.discard(container_id)
        over = self._creating.pop(container_id, None)
        if over is not None:
            over.set()

    async def wait_created(self, container_id: str) -> None:
        """Wait until nobody creates this id any more, if somebody does."""
        while container_id in self._creating:
            await self._creating[container_id].wait()

    def begin_take_up(self, container_id: str) -> None:
        """As ``begin_create``, for a container that a former worker had; ``end_create`` ends it, or ``lose``."""
        self.begin_create(container_id)
        self._taking_up.add(container_id)

    def is_taking_up(self, container_id: str) -> bool:
        """True while nothing can be said of this container yet: ``wait_created`` waits until it can."""
        return container_id in self._taking_up

    def lose(self, container_id: str, reason: str) -> None:
        """A former worker's container cannot be taken up: nothing is done with it but what ends it."""
        self.lost[container_id] = reason
        self.withdraw(container_id)
        self.end_create(container_id, None)

    def _refuse_lost(self, container_id: str) -> None:
        if container_id in self.lost:
            raise FailedPrecondition(f"container {container_id} cannot be taken up: {self.lost[container_id]}")

    def close(self) -> None:
        """The group is empty and leaves its address: nothing is created in it any more."""
        self._closed = True
