"""`dunnage stats`: what containers use, once or as it changes."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import click

from dunnage import errors
from dunnage.cli.main import complain_of_silence
from dunnage.cli.sizes import size_text
from dunnage.cli.table import make_rich_table, print_table
from dunnage.client import LOCAL_KEY, Listed, Node, Stats

_HEADINGS = ("NAME", "NAMESPACE", "CPU", "MEMORY", "LIMIT", "PIDS", "READ", "WRITTEN", "KEY")


class Use(NamedTuple):
    """One container at one moment; `cpus` is how many processors it kept busy since the moment before."""

    container: Listed
    stats: Stats | None
    cpus: float | None


@click.command()
@click.option("--no-stream", is_flag=True, help="Show it once.")
@click.option("--interval", type=click.FloatRange(min=0.1), default=1.0, show_default=True, metavar="SECONDS")
@click.option("--json", "as_json", is_flag=True, help="One JSON array a line for each time, with every field.")
@click.argument("names", nargs=-1)
@click.pass_context
def stats(context: click.Context, no_stream: bool, interval: float, as_json: bool, names: tuple[str, ...]) -> None:
    """Show what the containers NAMES use: processor, memory, processes, disks; without NAMES, all that are alive.

    Every container of this machine is meant then, those of every containerd included. CPU is of one processor: 150% is
    one and a half. MEMORY is without the file cache that could be given back at once.
    """
    asyncio.run(_stats(context.obj, names, interval, once=no_stream, as_json=as_json))


async def _stats(namespace: str, names: Sequence[str], interval_s: float, *, once: bool, as_json: bool) -> None:
    show = _print_json if as_json else _print_table
    async with Node(namespace=namespace) as node:
        before = await _look(node, names, {})
        complain_of_silence(node)
        if not once and not as_json and sys.stdout.isatty():
            await _show_live(node, names, interval_s, before)
            return
        while True:
            await asyncio.sleep(interval_s)
            before = await _look(node, names, before)
            show(list(before.values()))
            if once:
                return


async def _look(node: Node, names: Sequence[str], before: dict[tuple[str, ...], Use]) -> dict[tuple[str, ...], Use]:
    keys = (LOCAL_KEY,) if names else None
    found = [one for one in await node.containers(keys=keys) if not names or one.namespace == node.namespace]
    for name in names:
        if all(one.id != name for one in found):
            raise errors.NotFound(f"container {name} does not exist")
    wanted = [one for one in found if one.id in names] if names else [one for one in found if one.status.is_alive]
    taken = await asyncio.gather(*(_stats_of(node, one, is_named=bool(names)) for one in wanted))
    uses: dict[tuple[str, ...], Use] = {}
    for one, stats in zip(wanted, taken, strict=True):
        key = (one.key, one.namespace, one.id, str(one.created_at))
        earlier = before[key].stats if key in before else None
        uses[key] = Use(one, stats, None if stats is None or earlier is None else stats.cpus_since(earlier))
    return uses


async def _stats_of(node: Node, one: Listed, *, is_named: bool) -> Stats | None:
    if not one.status.is_alive:
        return None
    try:
        return await node.stats(one)
    except (errors.NotFound, errors.Unavailable):
        return None  # it has ended in the meantime
    except errors.Error:
        if is_named:
            raise
        return None  # the others have numbers


async def _show_live(node: Node, names: Sequence[str], interval_s: float, uses: dict[tuple[str, ...], Use]) -> None:
    from rich.live import Live

    with Live(make_rich_table(_HEADINGS, rows_of(list(uses.values()))), auto_refresh=False) as live:
        while True:
            await asyncio.sleep(interval_s)
            uses = await _look(node, names, uses)
            live.update(make_rich_table(_HEADINGS, rows_of(list(uses.values()))), refresh=True)


def rows_of(uses: Sequence[Use]) -> list[tuple[str, ...]]:
    """The cells of a table; a dash for what nobody knows, or what is not limited."""
    return [
        (
            use.container.id,
            use.container.namespace,
            "-" if use.cpus is None else f"{use.cpus * 100:.1f}%",
            _cell(use.stats, lambda stats: size_text(stats.memory.working_bytes)),
            _cell(use.stats, lambda stats: stats.memory.limit_bytes and size_text(stats.memory.limit_bytes)),
            _cell(use.stats, lambda stats: str(stats.pids.current)),
            _cell(use.stats, lambda stats: size_text(stats.io.read_bytes)),
            _cell(use.stats, lambda stats: size_text(stats.io.written_bytes)),
            use.container.key,
        )
        for use in uses
    ]


def describe(use: Use) -> dict[str, Any]:
    """One container's use in words that JSON has."""
    one, stats = use.container, use.stats
    described: dict[str, Any] = {"id": one.id, "namespace": one.namespace, "key": one.key, "status": one.status.value}
    if stats is None:
        return described
    return {
        **described,
        "cpus": use.cpus,
        "memory": stats.memory._asdict(),
        "cpu": stats.cpu._asdict(),
        "pids": stats.pids._asdict(),
        "io": stats.io._asdict(),
        "cgroup": stats.cgroup,
        "raw": stats.raw,
    }


def _cell(stats: Stats | None, text: Callable[[Stats], str | int | None]) -> str:
    return str((stats and text(stats)) or "-")


def _print_json(uses: Sequence[Use]) -> None:
    print(json.dumps([describe(use) for use in uses]), flush=True)


def _print_table(uses: Sequence[Use]) -> None:
    print_table(_HEADINGS, rows_of(uses))
    sys.stdout.flush()
