"""A new worker takes up where the last one stopped: from the keeper's store and the bundles, nothing else.

Names in the store: ``group:NS/GROUP`` and ``listener:NS/GROUP`` (and ``…#n``, its connections), ``bundle:NS/ID``,
``io:NS/ID…``, ``journal:…``, ``control``, ``node``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dunnage.container.bundle import Bundle, Record, untold
from dunnage.container.container import Container
from dunnage.container.facts import IO, Checkpoint, Mount, Options
from dunnage.container.states import State
from dunnage.errors import Error
from dunnage.service import messages
from dunnage.stdio import CLIENT_ENDS
from dunnage.worker.served import Launch, ServedGroup, group_name, read_about, retire
from dunnage.worker.worker import Worker

PATIENCE_S = 0.5


async def recover(worker: Worker, *, log: logging.Logger) -> None:
    """Rebuild groups, find their containers, and serve their connections, with what was not answered first; then take
    the containers up.

    Who names a container that is being taken up waits for it, and nobody else; launchers wait ``PATIENCE_S`` at most.
    """
    fds = dict(worker.keeper.fds)
    for name, fd in fds.items():
        if name.startswith("group:"):
            _take_up_group(worker, fd)
    worker.recover_events()
    for name, fd in fds.items():
        if name.startswith("listener:"):
            _take_up_listener(worker, name, fd)
    found: dict[str, list[_Found]] = {name: [] for name in worker.groups}
    for name, fd in fds.items():
        if name.startswith("bundle:"):
            container = _find(worker, name.removeprefix("bundle:"), fd, fds, log)
            if container is not None:
                found[container.served.name].append(container)
    _take_up_connections(worker, fds)  # now that it is known who is there
    done = worker.in_background(_finish(worker, found, log))
    await asyncio.wait((done,), timeout=PATIENCE_S)


class _Found(NamedTuple):
    """A container of the last worker: where it belongs, its bundle and what the store holds of its stdio."""

    served: ServedGroup
    container_id: str
    bundle: Bundle
    record: Record | None
    launch: Launch
    ends: Mapping[str, int]


def _take_up_group(worker: Worker, fd: int) -> None:
    about = read_about(fd)
    os.close(fd)
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


def _take_up_listener(worker: Worker, name: str, fd: int) -> None:
    """The keeper goes on accepting, or begins to, where the last worker did not come to ask it."""
    if "#" in name:
        return
    if name.removeprefix("listener:") in worker.groups:
        os.close(fd)
        worker.keeper.accept_on(name)
    else:  # its group was not written down, or is gone: whoever connects there hears so
        retire(socket.socket(fileno=fd))
        worker.keeper.release(name)


def _take_up_connections(worker: Worker, fds: Mapping[str, int]) -> None:
    unanswered = worker.notes.unanswered()
    for name, fd in fds.items():
        if not name.startswith("listener:") or "#" not in name:
            continue
        served = worker.groups.get(name.removeprefix("listener:").rpartition("#")[0])
        if served is not None:
            served.attach(name, fd, unanswered.pop(name, None))
        else:
            worker.keeper.release(name)
            os.close(fd)
    for name in unanswered:
        worker.notes.disconnected(name)  # nobody is there to hear an answer


def _find(worker: Worker, name: str, fd: int, fds: Mapping[str, int], log: logging.Logger) -> _Found | None:
    """None for what is no container any more, or cannot be read: then it is left as it is, and named."""
    namespace, _, container_id = name.partition("/")
    bundle = Bundle(_path_of(fd), fd)
    served = None
    try:
        launch = bundle.read_launch()
        served = worker.groups.get(group_name(namespace, launch["group"])) if launch else None
        if launch is not None and served is not None:
            record = bundle.read_record()
            ends = _ends(f"io:{name}", fds)
            found = _Found(served, container_id, bundle, record, Launch.from_json(launch), ends)
            _tell_the_rest(worker, found)
            served.group.begin_take_up(container_id)
            return found
    except Exception as error:
        log.error("container %s cannot be taken up: %s", name, error, exc_info=error)
        worker.lose(namespace, container_id, served, _reason(error))
        for end_fd in _ends(f"io:{name}", fds).values():
            os.close(end_fd)  # the store goes on holding what it stands for
        bundle.close()
        return None
    # it was deleted, and the last worker had no time to let go of it
    for end, end_fd in _ends(f"io:{name}", fds).items():
        worker.keeper.release(f"io:{name}{end}")
        os.close(end_fd)
    worker.keeper.release(f"bundle:{name}")
    bundle.close()
    return None


def _tell_the_rest(worker: Worker, found: _Found) -> None:
    """Of the container whose facts the last worker was telling, those that it had not written down yet."""
    for fact in untold(found.record, worker.events_inherited) if found.record is not None else ():
        found.served.publisher.publish(messages.event(found.container_id, fact))


async def _finish(worker: Worker, found: Mapping[str, Sequence[_Found]], log: logging.Logger) -> None:
    groups = [_finish_group(worker, worker.groups[name], containers, log) for name, containers in found.items()]
    await asyncio.gather(*groups)
    if not worker.has_lost:
        worker.host.adopt_the_rest()
    worker.host.recovered()


async def _finish_group(worker: Worker, served: ServedGroup, found: Sequence[_Found], log: logging.Logger) -> None:
    await asyncio.gather(*(_take_up_container(worker, container, log) for container in found))
    if served.group.is_empty:  # else its Shutdown is still to come
        # whoever asks again for something that is gone is answered first
        asyncio.get_running_loop().call_later(PATIENCE_S, worker.close_if_empty, served)


async def _take_up_container(worker: Worker, found: _Found, log: logging.Logger) -> None:
    group, taken_up = found.served.group, None
    try:
        container = _restored(worker, found)
        if found.record is None or _is_being_created(found.record):
            # its bundle is about to forget what the launcher handed down
            worker.announce(found.served, found.container_id, found.launch)
            found.served.remember()
            await _undo_create(worker, container, found.ends)
        else:
            await container.restore(found.record, dict(found.ends))
            taken_up = container
    except Exception as error:
        log.error("container %s cannot be taken up: %s", found.container_id, error, exc_info=error)
        worker.lose(group.namespace, found.container_id, found.served, _reason(error))
        found.bundle.close()  # so that what is written down stays as it is
    finally:
        group.end_create(found.container_id, taken_up)
    if taken_up is not None and taken_up.init.state is State.DELETED:
        worker.forget(found.served, taken_up)


def _is_being_created(record: Record) -> bool:
    """True until there is something to tell of."""
    return record["init"]["state"] == State.CREATED.value and not record["init"]["pid"]


def _reason(error: Exception) -> str:
    if isinstance(error, Error):
        return str(error)
    return f"what is written of it is not understood ({type(error).__name__}: {error})"


def _restored(worker: Worker, found: _Found) -> Container:
    record, bundle = found.record or {}, found.bundle
    bundle.path = record.get("bundle", bundle.path)
    io = IO(*record["init"]["io"]) if "init" in record else IO()
    rootfs = tuple(Mount(m[0], m[1], m[2], tuple(m[3])) for m in record.get("rootfs", ()))
    return worker.container_value(
        found.served,
        found.container_id,
        bundle,
        io=io,
        rootfs=rootfs,
        options=Options(**record.get("options", {})),
        checkpoint=Checkpoint(*record.get("checkpoint", ())),
        launch=found.launch,
    )


async def _undo_create(worker: Worker, container: Container, ends: Mapping[str, int]) -> None:
    """A Create that the last worker did not finish: undo it; its client's request is served anew.

    The client's fifos stay open in the store until the new Create has stored its own: else their reader sees the end.
    """
    name = container.name
    for call in (f"mount:{name}", f"unmount:{name}", f"runtime:{name}:create", f"runtime:{name}:delete"):
        await worker.host.wait_inherited(call)
    for end, fd in ends.items():
        if not end.endswith(CLIENT_ENDS):
            worker.keeper.release(f"io:{container.name}{end}")
        os.close(fd)
    await container.undo_create()
    container.close()


def _ends(prefix: str, fds: Mapping[str, int]) -> dict[str, int]:
    """The descriptors of one container's stdio, by the rest of their names."""
    return {name.removeprefix(prefix): fd for name, fd in fds.items() if name.startswith((f"{prefix}:", f"{prefix}/"))}


def _path_of(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")
