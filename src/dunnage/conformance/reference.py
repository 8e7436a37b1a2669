"""Reads ``tables.md``: what is documented of the Go shim's states, as data, and no code of anybody's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

Cells = Mapping[str, Mapping[str, str]]
"""By operation, then by state."""


def cells(section: str) -> Cells:
    """The table below the heading of that name."""
    _, _, rest = Path(__file__).with_name("tables.md").read_text().partition(f"\n## {section}\n\n")
    header, _, *rows = (_split(line) for line in rest.partition("\n\n")[0].strip().splitlines())
    return {row[0]: dict(zip(header[1:], _without_same(row[1:]), strict=True)) for row in rows}


def _split(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _without_same(row: list[str]) -> list[str]:
    out: list[str] = []
    for cell in row:
        out.append(out[-1] if cell == "same" else cell)
    return out
