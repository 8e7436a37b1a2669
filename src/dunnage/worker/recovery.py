"""A new worker takes up where the last one stopped: from the keeper's store and the bundles, nothing else.

Names in the store: ``group:NS/GROUP`` and ``listener:NS/GROUP`` (and ``…#n``, its connections), ``bundle:NS/ID``,
``io:NS/ID…``, ``journal:…``, ``control``, ``node``.
"""

from __future__ import annotations

import logging
import os

from dunnage.container.bundle import Bundle, Record
from dunnage.container.container import Container, Options
from dunnage.container.facts import IO, Mount
from dunnage.worker.notes import Unanswered
from dunnage.worker.served import Launch, ServedGroup, group_name, read_about
from dunnage.worker.worker import Worker


async def recover(worker: Worker, *, log: logging.Logger) -> None:
    """Rebuild groups and containers, then serve their connections, with what was not answered first."""
    unanswered = worker.notes.unanswered()
    fds = dict(worker.keeper.fds)
    for name, fd in fds.items():
        if name.startswith("group:"):
            _take_up_group(worker, fd)
    worker.recover_events()
    for name, fd in fds.items():
        if name.startswith("bundle:"):
            await _take_up_container(worker, name.removeprefix("bundle:"), fd, fds, log)
    for name, fd in fds.items():
        if name.startswith("listener:") and "#" in name:
            _take_up_connection(worker, name, fd, unanswered.get(name), log)
    for served in list(worker.groups.values()):
        worker.close_if_empty(served)


def _take_up_group(worker: Worker, fd: int) -> None:
    about = read_about(fd)
    served = worker.make_group(
        about["namespace"],
        about["id"],
        about["address"],
        launch=Launch.from_json(about["launch"]),
        containerd_address=about["containerd_address"],
        ttrpc_address=about["ttrpc_address"],
    )
    for container_id, launch in about["launches"].items():
        worker.announce(served, container_id, Launch.from_json(launch))


async def _take_up_container(worker: Worker, name: str, fd: int, fds: dict[str, int], log: logging.Logger) -> None:
    namespace, _, container_id = name.partition("/")
    bundle = Bundle(_path_of(fd), fd)
    launched = bundle.read_launch()
    record = bundle.read_record()
    served = worker.groups.get(group_name(namespace, launched["group"])) if launched else None
    if launched is None or served is None:
        log.error("container %s is not known any more: its bundle %s is let go", name, bundle.path)
        worker.keeper.release(f"bundle:{name}")
        bundle.close()
        return
    container = _restored(worker, served, container_id, bundle, record or {}, Launch.from_json(launched))
    if record is None or not record["init"]["pid"]:
        await _undo_create(worker, container, fds)
        return
    served.group.end_create(container_id, container)
    served.group.withdraw(container_id)
    await container.restore(record, _ends(f"io:{name}", fds))


def _restored(
    worker: Worker, served: ServedGroup, container_id: str, bundle: Bundle, record: Record, launch: Launch
) -> Container:
    bundle.path = record.get("bundle", bundle.path)
    io = IO(*record["init"]["io"]) if "init" in record else IO()
    rootfs = tuple(Mount(m[0], m[1], m[2], tuple(m[3])) for m in record.get("rootfs", ()))
    return worker.container_value(
        served,
        container_id,
        bundle,
        io=io,
        rootfs=rootfs,
        options=Options(**record.get("options", {})),
        launch=launch,
    )


async def _undo_create(worker: Worker, container: Container, fds: dict[str, int]) -> None:
    """A Create that the last worker did not finish: undo it; its client's request is served anew."""
    await worker.host.wait_inherited(f"runtime:{container.name}:create")
    await worker.host.wait_inherited(f"mount:{container.name}")
    for end in fds:
        if end.startswith(f"io:{container.name}:"):
            worker.keeper.release(end)
    await container.undo_create()
    container.close()


def _take_up_connection(worker: Worker, name: str, fd: int, unanswered: Unanswered | None, log: logging.Logger) -> None:
    served = worker.groups.get(name.removeprefix("listener:").rpartition("#")[0])
    if served is None:
        worker.keeper.release(name)
        return
    try:
        served.attach(name, fd, unanswered)
    except (OSError, ValueError) as error:
        log.error("connection %s cannot be taken up: %s", name, error)
        worker.keeper.release(name)


def _ends(prefix: str, fds: dict[str, int]) -> dict[str, int]:
    """The descriptors of one container's stdio, by the rest of their names."""
    return {name.removeprefix(prefix): fd for name, fd in fds.items() if name.startswith((f"{prefix}:", f"{prefix}/"))}


def _path_of(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")
