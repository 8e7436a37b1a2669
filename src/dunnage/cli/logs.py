"""`dunnage logs`: what a detached container wrote."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import click

from dunnage import errors
from dunnage.client import Container, Node

# a file has no way to say that it grew but inotify, which the standard library lacks: a person reads this
_FOLLOW_INTERVAL_S = 0.1


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on until it has ended.")
@click.argument("name")
@click.pass_context
def logs(context: click.Context, follow: bool, name: str) -> None:
    """Show what the detached container NAME wrote to stdout and stderr."""
    asyncio.run(_logs(context.obj, name, follow))


async def _logs(namespace: str, name: str, follow: bool) -> None:
    async with Node(namespace=namespace) as node:
        container = await node.get(name)
        log = container.record.log
        if log is None:
            raise errors.FailedPrecondition(
                f"container {name} wrote to whoever ran it; only a detached one (run -d) has a log"
            )
        await _show(container, Path(log), follow)


async def _show(container: Container, path: Path, follow: bool) -> None:
    with open(path, "rb") as file:
        ended = asyncio.ensure_future(container.wait() if follow else asyncio.sleep(0))
        try:
            while True:
                last = not follow or ended.done()
                while block := file.read(65536):
                    sys.stdout.buffer.write(block)
                    sys.stdout.buffer.flush()
                if last:
                    break
                await asyncio.wait((ended,), timeout=_FOLLOW_INTERVAL_S)
            if follow:
                await ended  # which fails where nobody could tell us of its end
        except errors.NotFound:
            pass  # it was removed, after its end
        finally:
            ended.cancel()
