"""`dunnage stop --all`: how a node is cleaned of local containers, now that killing the shim no longer does it."""

from __future__ import annotations

import asyncio
import os
import select
import signal

import click

from dunnage import errors
from dunnage.cli.main import complain
from dunnage.client import Node, NodeStatus

_KEEPER_EXIT_S = 10.0


@click.command()
@click.option("--all", "everything", is_flag=True, required=True, help="Say that you mean it.")
@click.pass_context
def stop(context: click.Context, everything: bool) -> None:
    """Kill and remove all local containers, of every namespace, and end the keepers that hold no container.

    Containers that a containerd drives are that containerd's, and stay.
    """
    context.exit(asyncio.run(_stop()))


async def _stop() -> int:
    failed = False
    async with Node() as everywhere:
        for namespace in everywhere.local_namespaces():
            async with Node(namespace=namespace) as node:
                for name in node.local_ids():
                    failed |= not await _remove(node, name)
        for keeper in await everywhere.status():
            failed |= not _end(keeper)
    return int(failed)


async def _remove(node: Node, name: str) -> bool:
    try:
        await node.remove(name, force=True)
    except errors.NotFound:
        return True  # somebody else has removed it in the meantime, which is what was wanted
    except errors.Error as error:
        complain(error, f"container {name}")
        return False
    print(f"removed container {name} of namespace {node.namespace}")
    return True


def _end(keeper: NodeStatus) -> bool:
    if keeper.containers:
        print(f"keeper {keeper.keeper_pid} of {keeper.key} has {keeper.containers} containers and stays")
        return True
    try:
        pidfd = os.pidfd_open(keeper.keeper_pid)
    except ProcessLookupError:
        return True
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        ended, _, _ = select.select([pidfd], [], [], _KEEPER_EXIT_S)
    except ProcessLookupError:
        return True
    finally:
        os.close(pidfd)
    print(f"keeper {keeper.keeper_pid} of {keeper.key} {'has ended' if ended else 'does not end'}")
    return bool(ended)
