"""`dunnage update`: other limits for containers that are there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import click

from dunnage.cli.control import each
from dunnage.client import Node, Resources
from dunnage.spec import parse_cpus, parse_limit, parse_memory, parse_pids

N = TypeVar("N", int, float)


@click.command()
@click.option("-m", "--memory", metavar="BYTES", help="Limit of its memory: 64M, 1G; max for none.")
@click.option("--memory-swap", metavar="BYTES", help="Limit of its memory and swap together; max for none.")
@click.option("--memory-reservation", metavar="BYTES", help="What it is brought down to when memory is scarce.")
@click.option("--cpus", metavar="N", help="Limit of its processor time, in processors: 0.5; max for none.")
@click.option("--cpu-shares", type=click.IntRange(2, 262144), metavar="N", help="Its share when others want it too.")
@click.option("--cpuset-cpus", metavar="LIST", help="The processors it may run on: 0-2,4.")
@click.option("--cpuset-mems", metavar="LIST", help="The memory nodes it may use: 0,1.")
@click.option("--pids", "--pids-limit", "pids", metavar="N", help="Limit of its processes and threads; max for none.")
@click.argument("names", nargs=-1, required=True)
@click.pass_context
def update(
    context: click.Context,
    memory: str | None,
    memory_swap: str | None,
    memory_reservation: str | None,
    cpus: str | None,
    cpu_shares: int | None,
    cpuset_cpus: str | None,
    cpuset_mems: str | None,
    pids: str | None,
    names: tuple[str, ...],
) -> None:
    """Change limits of the containers NAMES, also while they run; what is not said stays as it is."""
    resources = Resources(
        memory_bytes=_limit(memory, parse_memory),
        memory_swap_bytes=_limit(memory_swap, parse_memory),
        memory_reservation_bytes=_limit(memory_reservation, parse_memory),
        cpus=_limit(cpus, parse_cpus),
        cpu_shares=cpu_shares,
        cpuset_cpus=cpuset_cpus,
        cpuset_mems=cpuset_mems,
        pids=_limit(pids, parse_pids),
    )
    if not resources.to_oci():
        raise click.UsageError("no limit to change")

    async def change(node: Node, name: str) -> None:
        await (await node.get(name)).update(resources)

    context.exit(asyncio.run(each(context.obj, names, change)))


def _limit(text: str | None, parse: Callable[[str], N]) -> N | None:
    return None if text is None else parse_limit(text, parse)
