"""Rows in columns: plain text for programs and files, bold headings where a person looks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print the rows under their headings; two spaces between columns, whole cells always unless it is a terminal."""
    if sys.stdout.isatty():
        _print_rich(headings, rows)
        return
    widths = [max(len(row[column]) for row in (headings, *rows)) for column in range(len(headings))]
    for row in (headings, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_rich(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console

    Console().print(make_rich_table(headings, rows))


def make_rich_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """The same for a person's terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="ellipsis" if heading == headings[-1] else "fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table
