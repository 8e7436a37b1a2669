"""`dunnage doctor`: what is missing on this machine, what is left over on it, and what to do about either."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import chain

import click

from dunnage.cli import leftovers, machine
from dunnage.cli.finding import Finding, Verdict

_MARKS = {Verdict.OK: ("ok", "green"), Verdict.NOTE: ("note", "yellow"), Verdict.MISSING: ("missing", "red")}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Look for what dunnage needs on this machine, and for what it left behind.

    Ends with 1 where something that containers need is missing.
    """
    found = list(findings())
    if as_json:
        print(json.dumps([{**one._asdict(), "verdict": one.verdict.value} for one in found], indent=2))
    else:
        for one in found:
            _print(one)
    context.exit(int(any(one.verdict is Verdict.MISSING for one in found)))


def findings() -> Iterator[Finding]:
    """Everything that is looked at, in the order in which a person would."""
    return chain(machine.findings(), leftovers.findings())


def _print(one: Finding) -> None:
    word, colour = _MARKS[one.verdict]
    mark = click.style(f"{word:<8}", fg=colour) if sys.stdout.isatty() else f"{word:<8}"
    print(f"{mark}{one.subject}: {one.fact}")
    if one.remedy:
        print(f"        {one.remedy}")
