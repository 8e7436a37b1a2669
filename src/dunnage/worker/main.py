"""Where a worker begins: the keeper forks it and calls ``main``. It may end anywhere; the next one goes on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from typing import Any, TypeVar

from google.protobuf.message import Message

import dunnage
from dunnage import config, log
from dunnage.api import node_pb2
from dunnage.errors import Error, InvalidArgument
from dunnage.keeper.client import Inherited, Keeper
from dunnage.linux.attributes import oom_score_adj_of, set_oom_score_adj
from dunnage.service import messages
from dunnage.service.codes import translate
from dunnage.service.node import SERVICE, NodeService, Served
from dunnage.ttrpc.server import Server
from dunnage.worker.control import ControlServer
from dunnage.worker.dump import Dumps
from dunnage.worker.groups import OtherWorkers, join_cgroup
from dunnage.worker.launches import OOM_SCORE_LIMIT, Launches
from dunnage.worker.recovery import recover
from dunnage.worker.worker import Worker

M = TypeVar("M", bound=Message)

NODE = "node"  # the keeper's name for its first worker

_ACCEPT_PAUSE_S = 0.1


def main(argument: Any, inherited: Inherited) -> int:
    """Serve until the keeper says that it is over."""
    if "control" not in inherited.fds:
        return 0  # it came as the worker before it left, and was given no socket: whoever asked for it asks again
    dumps = Dumps()
    dumps.listen()
    logger = logging.getLogger("dunnage")
    try:
        settings = config.load()
    except InvalidArgument as error:
        log.log_to_stderr("info")
        logger.error("the defaults are used: %s", error)
        settings = config.Config()
    log.log_to_stderr(settings.log_level)
    _give_way_to_containerd()
    asyncio.run(_serve(argument, inherited, settings, logger, dumps))
    return 0


async def _serve(
    argument: Any, inherited: Inherited, settings: config.Config, logger: logging.Logger, dumps: Dumps
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: _log_context(logger, context))
    keeper = Keeper(inherited)
    control = socket.socket(fileno=keeper.fds["control"])
    control_path = control.getsockname()
    state = os.path.dirname(control_path)
    is_node = keeper.name == NODE
    failure = "" if is_node else _join(argument["cgroup"], logger)
    over = asyncio.Event()
    worker = Worker(keeper, settings, state=state, on_idle=None if is_node else over.set, log=logger)
    dumps.worker = worker
    keeper.on_accept = lambda listener, name, fd: _accepted(worker, listener, name, fd)
    if is_node:
        keeper.on_child = worker.host.look_for_orphans
    gone = asyncio.Event()
    keeper.on_closed = lambda: _keeper_gone(worker, gone, over, logger)
    await recover(worker, log=logger)
    if is_node:
        worker.host.look_for_orphans()  # of those that died while there was no worker
    others = OtherWorkers(keeper, state=state, log=logger) if is_node else None
    node = _open_node(worker, others, os.path.join(state, "node") if is_node else f"{control_path}.node")
    node_file = os.stat(node.getsockname())
    launches = Launches(worker, others=others, failure=failure, log=logger)
    launchers = ControlServer(control, launches.answer, logger)
    worker.consider_idling()
    leaving = loop.create_task(_leave_launchers(gone, launchers))
    await over.wait()
    leaving.cancel()
    if not is_node:
        with contextlib.suppress(FileNotFoundError):  # somebody cleaned up
            os.unlink(control_path)  # who asks now finds nobody, and has the node's worker make another
    _unlink(node.getsockname(), node_file)
    launchers.close()
    node.close()


def _give_way_to_containerd() -> None:
    """An OOM score one above the launcher's, which is containerd's, as every shim has it (shim v2, §1.5.11)."""
    try:
        set_oom_score_adj(min(oom_score_adj_of(os.getpid()) + 1, OOM_SCORE_LIMIT))
    except OSError:
        pass  # a user namespace whose limit is reached


async def _leave_launchers(gone: asyncio.Event, launchers: ControlServer) -> None:
    """A worker without a keeper makes no more containers: who asks now finds nobody, and starts a keeper."""
    await gone.wait()
    launchers.close()


def _unlink(path: str, made: os.stat_result) -> None:
    """Remove a socket's file, unless the worker of a later keeper has replaced it."""
    try:
        if os.path.samestat(os.stat(path), made):
            os.unlink(path)
    except FileNotFoundError:
        pass  # somebody cleaned up


def _join(cgroup: str, logger: logging.Logger) -> str:
    """Move into the cgroup that this worker is for; what stands in the way is the answer to each of its starts."""
    if not cgroup:
        return ""
    try:
        join_cgroup(cgroup)
    except Error as error:
        logger.error("%s", error)
        return str(error)
    return ""


def _keeper_gone(worker: Worker, gone: asyncio.Event, over: asyncio.Event, logger: logging.Logger) -> None:
    """The keeper has ended. It does so when nothing is left here; otherwise the containers need this worker still."""
    gone.set()
    if any(served.group.containers for served in worker.groups.values()):
        logger.error("the keeper %d is gone; %d groups are served on", worker.keeper.keeper_pid, len(worker.groups))
        worker.end_alone(over.set)
        return
    for served in worker.groups.values():
        served.leave()  # started, and never to be created
    over.set()


def _accepted(worker: Worker, listener: str, name: str, fd: int) -> None:
    served = worker.groups.get(listener.removeprefix("listener:"))
    if served is None:
        os.close(fd)
        worker.keeper.release(name)
        return
    served.attach(name, fd)


def _open_node(worker: Worker, others: OtherWorkers | None, path: str) -> socket.socket:
    """Serve the node's own socket. It is made anew by each worker: who asks there asks again."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass  # the first worker
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen(128)
    service = NodeService(
        status=lambda: _status(worker),
        containers=lambda: [
            Served(served.group.address, container)
            for served in worker.groups.values()
            for container in served.group.containers.values()
        ],
        events_after=worker.event_log.after,
        others=_nobody if others is None else others.ask_nodes,
    )
    server = Server({SERVICE: service.methods()}, log=worker.log, translate=translate)
    loop = asyncio.get_running_loop()
    accepted = 0

    def accept() -> None:
        nonlocal accepted
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # it went again
        except OSError as error:
            # no descriptor is left: the listener stays readable, so look away for a moment, not to spin
            worker.log.error("the node's socket cannot accept: %s", error)
            loop.remove_reader(listener)
            loop.call_later(_ACCEPT_PAUSE_S, resume)
            return
        accepted += 1
        server.attach(connection, f"node#{accepted}")

    def resume() -> None:
        if listener.fileno() >= 0:
            loop.add_reader(listener, accept)

    resume()
    return listener


async def _nobody(method: str, request: Message, response_class: type[M]) -> list[M]:
    """The workers beside one that is not the node's: it knows none."""
    return []


def _status(worker: Worker) -> node_pb2.StatusResponse:
    response = node_pb2.StatusResponse(
        version=dunnage.__version__,
        keeper_pid=worker.keeper.keeper_pid,
        worker_pid=os.getpid(),
        worker_started=messages.timestamp(worker.started_at),
        key=os.path.basename(worker.state),
        containers=sum(len(served.group.containers) for served in worker.groups.values()),
    )
    response.workers.add(name=worker.keeper.name, pid=os.getpid())
    return response


def _log_context(logger: logging.Logger, context: dict[str, Any]) -> None:
    logger.error("%s", context.get("message"), exc_info=context.get("exception"))
