"""`dunnage inspect`: everything about a container, as JSON, the stories of its failures included."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import Any

import click

from dunnage import errors
from dunnage.cli.ps import describe
from dunnage.client import Node, State
from dunnage.client.failures import read_failures


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.pass_context
def inspect(context: click.Context, names: tuple[str, ...]) -> None:
    """Show everything about the container NAME as a JSON object; for several NAMES, an array of them.

    A NAME that no local container has is looked for among those of every containerd on this machine, in the namespace
    of --namespace first. `failures` has the last things that went wrong: the step, the runtime's command with all that
    it logged and wrote, and a hint.
    """
    found = asyncio.run(_inspect(context.obj, names))
    print(json.dumps(found[0] if len(found) == 1 else found, indent=2))


async def _inspect(namespace: str, names: tuple[str, ...]) -> list[dict[str, Any]]:
    async with Node(namespace=namespace) as node:
        return [await _inspect_one(node, name) for name in names]


async def _inspect_one(node: Node, name: str) -> dict[str, Any]:
    try:
        container = await node.get(name)
        record = asdict(container.record)
    except errors.NotFound:
        return await _inspect_others(node, name)
    record["state"] = await _state(container)
    record["bundle"] = str(container.bundle.path)
    record["address"] = f"unix://{container.bundle.read_address()}"
    record["spec"] = container.bundle.read_config()
    record["failures"] = read_failures(container.bundle.path)
    return record


async def _inspect_others(node: Node, name: str) -> dict[str, Any]:
    """A container that is no local one of the namespace. Raises NotFound; FailedPrecondition where there are more."""
    found = [one for one in await node.containers() if one.id == name]
    found = [one for one in found if one.namespace == node.namespace] or found
    if not found:
        raise errors.NotFound(f"container {name} does not exist")
    if len(found) > 1:
        where = ", ".join(f"{one.namespace} of {one.key}" for one in found)
        raise errors.FailedPrecondition(f"container {name} is in several namespaces: {where}")
    (one,) = found
    return {**describe(one), "failures": read_failures(one.bundle)}


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
