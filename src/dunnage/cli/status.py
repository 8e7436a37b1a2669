"""`dunnage status`: the processes that hold this machine's containers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import click

from dunnage.cli.main import complain_of_silence
from dunnage.cli.table import print_table
from dunnage.client import Node, NodeStatus


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def status(as_json: bool) -> None:
    """Show every keeper and worker of this machine, and how many containers they have."""
    found = asyncio.run(_status())
    if as_json:
        print(json.dumps([_describe(one) for one in found], indent=2))
        return
    rows = [
        (
            one.key,
            str(one.keeper_pid),
            ",".join(str(worker.pid) for worker in one.workers) or str(one.worker_pid),
            str(one.containers),
            one.version,
            one.containerd_address or "-",
        )
        for one in found
    ]
    print_table(("KEY", "KEEPER", "WORKERS", "CONTAINERS", "VERSION", "CONTAINERD"), rows)


async def _status() -> Sequence[NodeStatus]:
    async with Node() as node:
        found = await node.status()
        complain_of_silence(node)
        return found


def _describe(one: NodeStatus) -> dict[str, object]:
    return {
        **one._asdict(),
        "worker_started": one.worker_started and one.worker_started.isoformat(),
        "workers": [worker._asdict() for worker in one.workers],
    }
