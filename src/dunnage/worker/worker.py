"""A worker put together: groups at their addresses, their containers, and what they have in common.

Nothing here decides what a container may do (``container``) or what a launcher is told (``launches``).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from google.protobuf.message import Message

from dunnage.config import Config
from dunnage.container.bundle import Bundle
from dunnage.container.container import Container
from dunnage.container.facts import IO, Checkpoint, Ended, Fact, Mount, Options
from dunnage.container.group import Group
from dunnage.errors import Error
from dunnage.events.publisher import Publisher
from dunnage.keeper.client import Keeper
from dunnage.log import container_logger
from dunnage.runtime.client import Runtime
from dunnage.service import messages
from dunnage.service.codes import translate
from dunnage.service.task import SERVICES, TaskService
from dunnage.stdio import PipeBudget
from dunnage.ttrpc.errors import RpcError
from dunnage.ttrpc.server import Call, Method, Server
from dunnage.worker.drivers import ContainerDrivers
from dunnage.worker.ends import Ends
from dunnage.worker.event_log import EventLog
from dunnage.worker.host import ContainerSpawner, KeeperHost
from dunnage.worker.journal import Journal
from dunnage.worker.notes import RequestNotes
from dunnage.worker.served import Launch, ServedGroup

OTHER_WORKERS_PIPES_BYTES = 2 * 1024 * 1024
_LAST_DELETE_S = 5.0
_LAST_EVENTS_S = 3600.0  # how long the last events of a containerd that does not take them are kept
_LOOKS_FOR_REMOVED_S = (0.0, 1.0, 5.0)  # a delete that was given up may go on elsewhere for so long
_LOOK_S = 1.0  # between two looks whether its socket is there


class Worker:
    """One process's groups and containers. Made inside the running loop."""

    def __init__(
        self, keeper: Keeper, config: Config, *, state: str, on_idle: Callable[[], None] | None, log: logging.Logger
    ) -> None:
        self.keeper = keeper
        self.config = config
        self.state = state
        self._on_idle = on_idle
        self._is_idle = False
        self.log = log
        self.started_at = time.time_ns()
        self.groups: dict[str, ServedGroup] = {}
        # the quota of pipe pages is one for all workers: the node's may have half of it
        budget = PipeBudget() if on_idle is None else PipeBudget(OTHER_WORKERS_PIPES_BYTES)
        self.host = KeeperHost(
            keeper,
            pipe_budget=budget,
            mount_timeout_s=config.mount_timeout_s,
            runtime_timeout_s=config.runtime_timeout_s,
            checkpoint_timeout_s=config.checkpoint_timeout_s,
            log=log,
        )
        self.notes = RequestNotes(Journal("journal:requests", keeper.store, keeper.fds.get("journal:requests")))
        self._event_journal = Journal("journal:events", keeper.store, keeper.fds.get("journal:events"))
        self.events_inherited = self._event_journal.written
        """How many events the workers before this one have written down."""
        self.event_log = EventLog()
        self._publishers: dict[tuple[str, str], Publisher] = {}
        self._ends = Ends(Journal("journal:ends", keeper.store, keeper.fds.get("journal:ends")))
        self._lost: set[tuple[str, str]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    # Groups

    def make_group(
        self,
        namespace: str,
        group_id: str,
        address: str,
        *,
        launch: Launch,
        containerd_address: str,
        ttrpc_address: str,
    ) -> ServedGroup:
        """A group that is not announced to the keeper yet (``ServedGroup.open``), or was before."""
        served: ServedGroup  # made below: the service is its part, and speaks to it
        group = Group(namespace, group_id, address)
        service = TaskService(
            group,
            make_container=lambda *asked: self._make_container(served, *asked),
            on_deleted=lambda _, container: self.forget(served, container),
            on_shutdown=lambda _: self._on_shutdown(served),
            recall=lambda container_id: self._ends.of_container(namespace, container_id),
            read_file=self.host.read_file,
            log=self.log,
        )
        methods = {name: _after_take_up(group, method) for name, method in service.methods().items()}
        server = Server(
            dict.fromkeys(SERVICES, methods),
            log=self.log,
            notes=self.notes,
            translate=self._translate,
            on_disconnect=self.keeper.release,
        )
        served = ServedGroup(
            group,
            server=server,
            publisher=self.publisher(namespace, ttrpc_address),
            launch=launch,
            containerd_address=containerd_address,
            ttrpc_address=ttrpc_address,
            keeper=self.keeper,
        )
        self.groups[served.name] = served
        if self._is_idle:
            self.keeper.idle(None)
            self._is_idle = False
        return served

    def announce(self, served: ServedGroup, container_id: str, launch: Launch) -> None:
        """A ``start`` is about to be answered: the group stays for its Create, for a while."""
        now = asyncio.get_running_loop().time()
        served.launches[container_id] = launch
        served.group.announce(container_id, now + self.config.create_timeout_s)
        asyncio.get_running_loop().call_later(self.config.create_timeout_s + 0.01, self._expire, served)

    def close_if_empty(self, served: ServedGroup) -> None:
        """End a group that has nothing left: its address, its connections, and what only it needed."""
        if not served.group.is_empty or self.groups.get(served.name) is not served:
            return
        del self.groups[served.name]
        served.leave()
        self.in_background(self._close(served))

    def publisher(self, namespace: str, ttrpc_address: str) -> Publisher:
        """The one publisher of a namespace of a containerd: it alone keeps their events in order."""
        key = (namespace, ttrpc_address)
        if key not in self._publishers:
            journal = self._event_journal.for_one(f"{namespace} {ttrpc_address}")
            publisher = Publisher(ttrpc_address or None, namespace, journal=journal, log=self.log)
            publisher.subscribe(self.event_log.add)
            self._publishers[key] = publisher
        return self._publishers[key]

    @property
    def publishers(self) -> Mapping[tuple[str, str], Publisher]:
        """By namespace and containerd's address."""
        return self._publishers

    def recover_events(self) -> None:
        """Go on sending the events that a former worker's containerd has not acknowledged."""
        for label, records in self._event_journal.live_by_label().items():
            namespace, _, ttrpc_address = label.partition(" ")
            self.publisher(namespace, ttrpc_address).recover(records)
            self.in_background(self._release_publisher((namespace, ttrpc_address)))

    def consider_idling(self) -> None:
        """When nothing is left here, the node's worker tells the keeper, and after a while both end; another worker
        waits a moment for the ``delete`` that follows, and ends alone."""
        if self.groups or self._publishers:
            return
        if self._on_idle is None:
            self.keeper.idle(self.config.idle_exit_s)
            self._is_idle = True
        else:
            asyncio.get_running_loop().call_later(_LAST_DELETE_S, self._end_if_idle, self._on_idle)

    def end_alone(self, end: Callable[[], None]) -> None:
        """There is no keeper any more to end this worker: it ends by itself when nothing is left here."""
        self._on_idle = end
        self.consider_idling()

    # Containers

    def find(self, namespace: str, container_id: str) -> tuple[ServedGroup, Container] | None:
        for served in self.groups.values():
            if served.group.namespace == namespace and container_id in served.group.containers:
                return served, served.group.containers[container_id]
        return None

    async def wait_created(self, namespace: str, container_id: str) -> None:
        """Wait for the end of a Create of this container, if there is one under way."""
        for served in list(self.groups.values()):
            if served.group.namespace == namespace:
                await served.group.wait_created(container_id)

    def container_value(
        self, served: ServedGroup, container_id: str, bundle: Bundle, *, io: IO, rootfs: tuple[Mount, ...],
        options: Options, checkpoint: Checkpoint, launch: Launch,
    ) -> Container:  # fmt: skip
        """A container as a value: nothing has been done for it yet."""
        namespace = served.group.namespace
        log = container_logger(lambda: bundle.directory, namespace, container_id)
        runtime = Runtime(
            options.binary_name or self.config.runtime,
            root=os.path.join(options.root or self.config.runtime_root, namespace),
            log_path=bundle.log_path,
            systemd_cgroup=options.systemd_cgroup,
            criu=options.criu_path,
            spawner=ContainerSpawner(self.host, launch.attributes, core_peer=served.core_peer),
            env=launch.env,
            deadline_s=self.config.runtime_timeout_s,
            checkpoint_deadline_s=self.config.checkpoint_timeout_s,
            scope=namespace,
        )

        def tell(fact: Fact) -> None:
            served.publisher.publish(messages.event(container_id, fact))

        return Container(
            namespace,
            container_id,
            bundle,
            io=io,
            rootfs=rootfs,
            options=options,
            checkpoint=checkpoint,
            runtime=runtime,
            host=self.host,
            tell=tell,
            events_written=lambda: self._event_journal.written,
            log=log,
            env=launch.env,
            io_drain_timeout_s=self.config.io_drain_timeout_s,
            drivers=ContainerDrivers(
                self.host, namespace, container_id, bundle, launch.attributes, core_peer=served.core_peer
            ).of,
        )

    def forget(self, served: ServedGroup, container: Container) -> None:
        """A container is gone: remember its bundle for the ``delete`` that follows, and give back what it held.
        Idempotent."""
        if served.group.containers.get(container.id) is not container:
            return
        try:
            self._ends.remember(container.namespace, container.id, container.bundle.identity, container.init.ended)
        except OSError as error:
            self.log.error("the end of container %s is not remembered: %s", container.name, error)
        try:
            container.bundle.forget()
        except OSError as error:
            self.log.error("bundle %s keeps what was written of its container: %s", container.bundle.path, error)
        served.group.containers.pop(container.id, None)
        container.close()

    def lose(self, namespace: str, container_id: str, served: ServedGroup | None, reason: str) -> None:
        """A former worker's container cannot be taken up. It is left as it is until a launcher's ``delete``: its group
        stays, and its name is refused, in all groups of the namespace where nobody knows its own."""
        self._lost.add((namespace, container_id))
        for one in self.groups.values() if served is None else (served,):
            if one.group.namespace == namespace:
                one.group.lose(container_id, reason)

    @property
    def has_lost(self) -> bool:
        return bool(self._lost)

    def forget_lost(self, namespace: str, container_id: str) -> None:
        """A container that could not be taken up is gone: give back what the store holds for it. Idempotent."""
        if (namespace, container_id) not in self._lost:
            return
        self._lost.discard((namespace, container_id))
        name = f"{namespace}/{container_id}"
        for stored in self.keeper.fds:
            if stored == f"bundle:{name}" or stored.startswith((f"io:{name}:", f"io:{name}/")):
                self.keeper.release(stored)
        for served in list(self.groups.values()):
            if served.group.namespace == namespace and served.group.lost.pop(container_id, None) is not None:
                self.close_if_empty(served)
        if not self._lost:
            self.host.adopt_the_rest()

    def look_for_removed(self) -> None:
        """End the containers whose bundles have been removed, now or in the next seconds: containerd got no answer from
        here, had them deleted by their files alone, and will not ask for a Delete."""
        for after_s in _LOOKS_FOR_REMOVED_S:
            asyncio.get_running_loop().call_later(after_s, self._end_removed)

    def begins(self, namespace: str, container_id: str, identity: tuple[int, int]) -> None:
        """A container is about to be made in a bundle directory: what ended under its name or there was another."""
        self._ends.forget(namespace, container_id, identity)

    def cleaned(self, namespace: str, container_id: str, identity: tuple[int, int]) -> Ended | None:
        """How the container of this bundle directory ended, if it has been cleaned up not long ago."""
        return self._ends.of_bundle(namespace, container_id, identity)

    # Called by the services

    def _make_container(
        self,
        served: ServedGroup,
        group: Group,
        container_id: str,
        path: str,
        io: IO,
        rootfs: tuple[Mount, ...],
        options: Options,
        checkpoint: Checkpoint,
    ) -> Container:
        try:
            bundle = Bundle.open(path)
            self.begins(group.namespace, container_id, bundle.identity)
            launch = served.launches.get(container_id, served.launch)
            try:
                bundle.write_launch({"group": group.id, **launch.to_json()})
            except OSError as error:
                bundle.close()
                raise Error(f"bundle {path} cannot be written: {error.strerror}") from error
            self.keeper.store(f"bundle:{group.namespace}/{container_id}", bundle.directory)
        finally:
            served.take_launch(container_id)  # the bundle has it now: a death in between loses nothing
        options = _as_configured(options, self.config)
        return self.container_value(
            served, container_id, bundle, io=io, rootfs=rootfs, options=options, checkpoint=checkpoint, launch=launch
        )  # fmt: skip

    def _on_shutdown(self, served: ServedGroup) -> None:
        # the answer to the Shutdown leaves first: it is sent before the loop's next turn
        asyncio.get_running_loop().call_soon(self.close_if_empty, served)

    def _translate(self, error: BaseException) -> RpcError:
        if not isinstance(error, Error):
            self.log.error("a call failed in an unforeseen way", exc_info=error)
        return translate(error)

    def _expire(self, served: ServedGroup) -> None:
        expired = list(served.group.expire(asyncio.get_running_loop().time()))
        for container_id in expired:
            served.take_launch(container_id)
            self.log.warning("no create came for container %s: its start is dropped", container_id)
        if expired:  # else the group's last container may just have been deleted, and its Shutdown is on its way
            self.close_if_empty(served)

    async def _close(self, served: ServedGroup) -> None:
        await served.close()
        await self._release_publisher((served.group.namespace, served.ttrpc_address))

    async def _release_publisher(self, key: tuple[str, str]) -> None:
        """Close a publisher that no group needs, when containerd has all its events or has been away for too long."""
        publisher = self._publishers.get(key)
        if publisher is not None and self._is_unused(key, publisher):
            await self._flush_last(publisher, key[1])
            if self._is_unused(key, publisher):
                del self._publishers[key]
                self._drop_events(key)  # before there can be another publisher of this name
                await publisher.close()
        self.consider_idling()

    async def _flush_last(self, publisher: Publisher, ttrpc_address: str) -> None:
        """Wait until containerd has its last events; in vain if its socket has gone and does not come back within the
        idle time: then it was taken away, not started again."""
        clock = asyncio.get_running_loop().time
        end = clock() + _LAST_EVENTS_S
        seen = clock()
        while not await publisher.flush(_LOOK_S):
            if os.path.exists(ttrpc_address):
                seen = clock()
            if clock() >= min(end, seen + self.config.idle_exit_s):
                return

    def _drop_events(self, key: tuple[str, str]) -> None:
        """Nobody is left to send what waits: else a later worker would, among the events of later containers."""
        dropped = self._event_journal.live_by_label().get(" ".join(key), ())
        for number, _ in dropped:
            self._event_journal.done(number)
        if dropped:
            self.log.error("%d events of namespace %s are dropped: no containerd takes them at %s", len(dropped), *key)

    def _end_removed(self) -> None:
        for served in list(self.groups.values()):
            for container in list(served.group.containers.values()):
                if container.bundle.is_removed:
                    self.in_background(self._end_without_bundle(served, container))

    async def _end_without_bundle(self, served: ServedGroup, container: Container) -> None:
        self.log.warning("container %s was deleted without us: its bundle is gone", container.name)
        await container.destroy()
        self.forget(served, container)
        self.close_if_empty(served)

    def _end_if_idle(self, end: Callable[[], None]) -> None:
        if self.groups or self._publishers:
            return
        if self.host.has_drivers:  # which nobody would stop
            asyncio.get_running_loop().call_later(_LOOK_S, self._end_if_idle, end)
        else:
            end()

    def _is_unused(self, key: tuple[str, str], publisher: Publisher) -> bool:
        """No group speaks through this publisher any more, and nobody has closed it."""
        used = any((served.group.namespace, served.ttrpc_address) == key for served in self.groups.values())
        return self._publishers.get(key) is publisher and not used

    def in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _as_configured(options: Options, config: Config) -> Options:
    """The options, with what the configuration says where they say nothing and it is not what every shim does then: the
    container is taken up, or deleted by its files alone, where the configuration is another or not known."""
    default = Config()
    runtime = config.runtime if config.runtime != default.runtime else ""
    root = config.runtime_root if config.runtime_root != default.runtime_root else ""
    return options._replace(binary_name=options.binary_name or runtime, root=options.root or root)


def _after_take_up(group: Group, method: Method) -> Method:
    """The same method, which waits while the container it is asked about is being taken up."""
    request_class, handler = method
    if inspect.iscoroutinefunction(handler):

        async def ask(request: Any, call: Call) -> Message:
            if group.is_taking_up(request.id):
                await group.wait_created(request.id)
            answer: Message = await handler(request, call)
            return answer

        return Method(request_class, ask)

    async def wait_and_ask(request: Any, call: Call) -> Message:
        await group.wait_created(request.id)
        answer = handler(request, call)
        return answer if isinstance(answer, Message) else await answer

    def ask_at_once(request: Any, call: Call) -> Message | Awaitable[Message]:
        return wait_and_ask(request, call) if group.is_taking_up(request.id) else handler(request, call)

    return Method(request_class, ask_at_once)
