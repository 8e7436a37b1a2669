"""`dunnage events`: what happens to containers, as it happens."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from typing import Any

import click

from dunnage.client import Event, Node


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--history", is_flag=True, help="Begin with the events that the workers remember.")
def events(as_json: bool, history: bool) -> None:
    """Show events of every container on this machine as they happen, until interrupted."""
    asyncio.run(_events(as_json, history))


async def _events(as_json: bool, history: bool) -> None:
    async with Node() as node, aclosing(node.events(history=history)) as found:
        async for event in found:
            print(json.dumps(describe(event)) if as_json else line_of(event), flush=True)


def describe(event: Event) -> dict[str, Any]:
    """An event in words that JSON has."""
    return {
        "at": event.at and event.at.isoformat(),
        "key": event.key,
        "namespace": event.namespace,
        "topic": event.topic,
        "event": dict(event.fields),
    }


def line_of(event: Event) -> str:
    """An event on one line: when, where, what, of which container, and what else it says."""
    fields = dict(event.fields)
    name = fields.pop("container_id", "-")
    rest = " ".join(f"{key}={value}" for key, value in fields.items() if isinstance(value, str | int) and value != "")
    moment = event.at.isoformat(timespec="milliseconds") if event.at else "-"
    return f"{moment} {event.namespace} {event.topic} {name} {rest}".rstrip()
