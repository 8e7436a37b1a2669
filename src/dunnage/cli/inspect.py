"""`dunnage inspect`: everything about a container, as JSON."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import Any

import click

from dunnage import errors
from dunnage.client import Node, State


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.pass_context
def inspect(context: click.Context, names: tuple[str, ...]) -> None:
    """Show everything about the container NAME as a JSON object; for several NAMES, an array of them."""
    found = asyncio.run(_inspect(context.obj, names))
    print(json.dumps(found[0] if len(found) == 1 else found, indent=2))


async def _inspect(namespace: str, names: tuple[str, ...]) -> list[dict[str, Any]]:
    async with Node(namespace=namespace) as node:
        found = []
        for name in names:
            container = await node.get(name)
            record = asdict(container.record)
            record["state"] = await _state(container)
            record["bundle"] = str(container.bundle.path)
            record["address"] = f"unix://{container.bundle.read_address()}"
            record["spec"] = container.bundle.read_config()
            found.append(record)
        return found


async def _state(container: Any) -> dict[str, Any]:
    try:
        state: State = await container.state()
    except (errors.NotFound, errors.Unavailable) as error:
        return {"status": "dead", "reason": str(error)}
    return {
        "status": state.status.value,
        "pid": state.pid or None,
        "exit_status": None if state.exit is None else state.exit.status,
        "exited_at": state.exit and state.exit.at and state.exit.at.isoformat(),
        "terminal": state.terminal,
        "stdin": state.stdin,
        "stdout": state.stdout,
        "stderr": state.stderr,
    }
