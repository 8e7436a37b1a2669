"""Programs that some cases need besides the shim, its runtime and busybox: whether they are there and can run."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import DEVNULL
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

CRIU: Final = "criu"

_CHECKS: Final[Mapping[str, Sequence[str]]] = {
    CRIU: ("check",),  # that the kernel can do what it needs
}


async def missing(names: Iterable[str]) -> set[str]:
    """Those of them that are not in PATH, or say of themselves that they cannot work on this machine."""
    return {name for name in names if not await _can_run(name)}


async def _can_run(name: str) -> bool:
    try:
        child = await asyncio.create_subprocess_exec(
            name, *_CHECKS.get(name, ()), stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL
        )
    except (FileNotFoundError, PermissionError):
        return False
    return await child.wait() == 0
