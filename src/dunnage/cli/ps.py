"""`dunnage ps`: every container on the machine that a dunnage worker has, whoever drives it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from dunnage.cli.main import complain_of_silence
from dunnage.cli.table import print_table
from dunnage.client import Listed, Node, Status


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Also those that have ended.")
@click.option("-q", "--quiet", is_flag=True, help="Names only.")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
@click.pass_context
def ps(context: click.Context, everything: bool, quiet: bool, as_json: bool) -> None:
    """List containers: local ones of every namespace, and those of every containerd on this machine."""
    found = [one for one in asyncio.run(_containers()) if everything or one.status.is_alive]
    if as_json:
        print(json.dumps([describe(one) for one in found], indent=2))
        return
    if quiet:
        for one in found:
            print(one.id)
        return
    rows = [
        (
            one.id,
            one.namespace,
            _status_text(one),
            str(one.pid or "-"),
            _age(one.created_at),
            one.key,
            _command_text(one.bundle),
        )
        for one in found
    ]
    print_table(("NAME", "NAMESPACE", "STATUS", "PID", "CREATED", "KEY", "COMMAND"), rows)


def describe(one: Listed) -> dict[str, Any]:
    """A container in words that JSON has."""
    return {
        "id": one.id,
        "namespace": one.namespace,
        "key": one.key,
        "status": one.status.value,
        "pid": one.pid or None,
        "exit_status": one.exit_status,
        "created_at": one.created_at and one.created_at.isoformat(),
        "exited_at": one.exited_at and one.exited_at.isoformat(),
        "bundle": str(one.bundle),
        "runtime": one.runtime,
        "execs": list(one.execs),
        "command": command_of(one.bundle),
    }


def command_of(bundle: Path) -> list[str]:
    """The arguments of a bundle's init; none where its config.json cannot be read."""
    try:
        args = json.loads((bundle / "config.json").read_bytes())["process"]["args"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [str(one) for one in args] if isinstance(args, list) else []


async def _containers() -> Sequence[Listed]:
    async with Node() as node:
        found = await node.delete_ended(await node.containers())
        complain_of_silence(node)
        if not node.silent_keys:
            found += node.dead_containers(found)
        return sorted(
            found, key=lambda one: (one.key, one.namespace, one.created_at or datetime.max.replace(tzinfo=UTC))
        )


def _status_text(one: Listed) -> str:
    if one.status is Status.STOPPED:
        return f"exited ({one.exit_status})"
    return "dead" if one.status is Status.UNKNOWN else one.status.value


def _command_text(bundle: Path) -> str:
    import shlex

    # on one line, and no word of a container's to our terminal
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in shlex.join(command_of(bundle)))
    return text if len(text) <= 40 else f"{text[:39]}…"


def _age(moment: datetime | None) -> str:
    if moment is None:
        return "-"
    seconds = max(0, int((datetime.now(UTC) - moment).total_seconds()))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"
