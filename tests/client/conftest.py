"""A node of its own for each test: a state directory, and a stand-in shim behind it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.client.shim import Shim

from dunnage.client import Node

Test = Callable[[Node, Shim], Coroutine[Any, Any, None]]

LAUNCHER = """
import pathlib, sys
address = "unix://" + sys.argv[1]
pathlib.Path("address").write_text(address)
print(address, end="")
"""


@pytest.fixture
def with_shim(tmp_path: Path) -> Callable[[Test], None]:
    """Runs a coroutine function with a node and the shim behind it."""

    def run(test: Test) -> None:
        async def whole() -> None:
            async with a_node(tmp_path) as (node, shim):
                await test(node, shim)

        asyncio.run(whole())

    return run


@asynccontextmanager
async def a_node(state: Path) -> AsyncIterator[tuple[Node, Shim]]:
    shim = Shim(state / "socket")
    await shim.begin()
    launcher = [sys.executable, "-c", LAUNCHER, str(shim.path)]
    try:
        async with Node(state=state, launcher=launcher) as node:
            yield node, shim
    finally:
        await shim.end()
