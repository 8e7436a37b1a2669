"""`dunnage kill`, `pause`, `resume`, `wait` and `rm`: what one says to containers that are there."""

from __future__ import annotations

import asyncio
import signal as signals
from collections.abc import Awaitable, Callable, Sequence

import click

from dunnage import errors
from dunnage.cli.main import complain
from dunnage.cli.memory import say_if_out_of_memory
from dunnage.client import Node


@click.command()
@click.option("-s", "--signal", default="KILL", show_default=True, metavar="SIGNAL", help="By name or number.")
@click.option("-a", "--all", "everyone", is_flag=True, help="To every process of the container.")
@click.argument("names", nargs=-1, required=True)
@click.pass_context
def kill(context: click.Context, signal: str, everyone: bool, names: tuple[str, ...]) -> None:
    """Send a signal to the containers NAMES."""
    number = parse_signal(signal)

    async def send(node: Node, name: str) -> None:
        await (await node.get(name)).kill(number, all=everyone)

    context.exit(asyncio.run(each(context.obj, names, send)))


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.pass_context
def pause(context: click.Context, names: tuple[str, ...]) -> None:
    """Freeze every process of the containers NAMES; `dunnage resume` lets them go on."""

    async def freeze(node: Node, name: str) -> None:
        await (await node.get(name)).pause()

    context.exit(asyncio.run(each(context.obj, names, freeze)))


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.pass_context
def resume(context: click.Context, names: tuple[str, ...]) -> None:
    """Let the paused containers NAMES go on."""

    async def thaw(node: Node, name: str) -> None:
        await (await node.get(name)).resume()

    context.exit(asyncio.run(each(context.obj, names, thaw)))


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.pass_context
def wait(context: click.Context, names: tuple[str, ...]) -> None:
    """Wait until the containers NAMES have ended, and print their exit statuses, one a line."""

    async def wait_for(node: Node, name: str) -> None:
        container = await node.get(name)
        status = (await container.wait()).status
        print(status, flush=True)
        await say_if_out_of_memory(container, status)

    context.exit(asyncio.run(each(context.obj, names, wait_for)))


@click.command()
@click.option("-f", "--force", is_flag=True, help="Kill those that run, and remove what is left of dead ones.")
@click.option("--when-stopped", is_flag=True, help="Wait until they have ended.")
@click.argument("names", nargs=-1, required=True)
@click.pass_context
def rm(context: click.Context, force: bool, when_stopped: bool, names: tuple[str, ...]) -> None:
    """Remove the containers NAMES, and print the names of those removed."""

    async def remove(node: Node, name: str) -> None:
        if when_stopped:
            await (await node.get(name)).wait()
        await node.remove(name, force=force)
        print(name, flush=True)

    context.exit(asyncio.run(each(context.obj, names, remove)))


def parse_signal(text: str) -> int:
    """The number of ``9``, ``KILL`` or ``SIGKILL``; ``RTMIN+3`` too."""
    name = text.upper().removeprefix("SIG")
    base, plus, offset = name.partition("+")
    try:
        number = int(base) if base.isdigit() else int(signals.Signals[f"SIG{base}"])
        number += int(offset) if plus else 0
    except (KeyError, ValueError):
        raise errors.InvalidArgument(f"{text!r} is no signal") from None
    if plus and (base != "RTMIN" or not offset.isdigit()):
        raise errors.InvalidArgument(f"{text!r} is no signal: only RTMIN can be added to")
    if not 0 < number <= signals.SIGRTMAX:
        raise errors.InvalidArgument(f"{text!r} is no signal")
    return number


async def each(namespace: str, names: Sequence[str], act: Callable[[Node, str], Awaitable[None]]) -> int:
    """Act on each; what fails is said, and the others go on. Returns 1 when something failed."""
    status = 0
    async with Node(namespace=namespace) as node:
        for name in names:
            try:
                await act(node, name)
            except errors.Error as error:
                complain(error, f"container {name}")
                status = 1
    return status
