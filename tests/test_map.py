"""docs/map.md goes through all of upstream's container.go, and what it names is there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

FUNCTIONS = {"NewContainer", "ReadOptions", "WriteOptions", "ReadRuntime", "WriteRuntime", "newInit"}
METHODS = {
    *("All", "ExecdProcesses", "Pid", "Cgroup", "CgroupSet", "Process", "ReserveProcess", "ProcessAdd"),
    *("ProcessRemove", "Start", "Delete", "Exec", "Pause", "Resume", "ResizePty", "Kill", "CloseIO", "Checkpoint"),
    *("Update", "HasPid"),
}


class Row(NamedTuple):
    name: str
    places: tuple[str, ...]
    difference: str
    tests: tuple[str, ...]


def rows(text: str) -> Iterator[Row]:
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 6 and cells[0] == cells[5] == "" and re.fullmatch(r"`\w+`", cells[1]):
            yield Row(cells[1].strip("`"), named(cells[2]), cells[3], named(cells[4]))


def named(cell: str) -> tuple[str, ...]:
    """``path::name`` in backticks, and nothing else but commas."""
    found = tuple(re.findall(r"`([^`]+)`", cell))
    assert cell == ", ".join(f"`{one}`" for one in found), cell
    return found


@cache
def symbols(path: Path) -> frozenset[str]:
    """The functions and classes of a file, those of a class with its name before them."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, kinds):
            found.add(node.name)
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, kinds)}
    return frozenset(found)


def is_there(base: Path, name: str) -> bool:
    path, _, symbol = name.partition("::")
    return (base / path).is_file() and symbol in symbols(base / path)


ROWS = tuple(rows((ROOT / "docs" / "map.md").read_text()))


def test_no_function_is_missing_or_there_twice() -> None:
    names = [row.name for row in ROWS]
    assert sorted(names) == sorted(FUNCTIONS | METHODS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_what_a_row_names_is_there(row: Row) -> None:
    assert row.places
    assert row.tests
    assert row.difference
    assert [name for name in row.places if not is_there(ROOT / "src" / "dunnage", name)] == []
    assert [name for name in row.tests if not is_there(ROOT, name)] == []
    assert all(name.partition("::")[2].startswith("test_") for name in row.tests)


def test_what_is_not_there_is_seen() -> None:
    assert is_there(ROOT, "tests/test_map.py::Row")
    assert not is_there(ROOT, "tests/test_map.py::Column")
    assert not is_there(ROOT, "tests/test_no_map.py::Row")
    assert is_there(ROOT / "src" / "dunnage", "keeper/client.py::Keeper.spawn")
    assert not is_there(ROOT / "src" / "dunnage", "keeper/client.py::Keeper.swim")
