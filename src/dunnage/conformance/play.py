"""Plays cases with shims, and says of each what came of it."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Final

from dunnage.conformance import programs
from dunnage.conformance.case import Case
from dunnage.conformance.check import Failed
from dunnage.conformance.scene import Host, Scene
from dunnage.conformance.shim import Shim
from dunnage.conformance.table import Mark, Outcome
from dunnage.ttrpc.errors import ConnectionClosed, RpcError

CASE_LIMIT_S: Final = 90.0
Told = Callable[[Case, Outcome], None]


async def play_all(shim: Shim, cases: Sequence[Case], *, runtime: str, told: Told) -> dict[str, Outcome]:
    """One after the other: what is left over from one could be another's."""
    log = logging.getLogger("dunnage.conformance")
    outcomes = {}
    missing = await programs.missing({case.needs for case in cases if case.needs})
    with tempfile.TemporaryDirectory(prefix="conformance-") as directory:
        host = Host(Path(directory), shim, runtime, log)
        try:
            for case in cases:
                outcomes[case.title] = outcome = await play(case, host, missing)
                told(case, outcome)
        finally:
            await host.close()
    return outcomes


async def play(case: Case, host: Host, missing: Collection[str] = ()) -> Outcome:
    if case.needs in missing:
        return Outcome(Mark.UNPLAYED, f"it needs {case.needs}, which is not in PATH or cannot run here")
    began = time.monotonic()
    scene = host.scene()
    failure = ""
    try:
        async with asyncio.timeout(CASE_LIMIT_S):
            await case.play(scene)
            await scene.close()
    except (Failed, RpcError, ConnectionClosed, TimeoutError, OSError) as error:
        failure = _story(error, scene)
    finally:
        await scene.abandon(failed=bool(failure))
    return judge(case, host.shim, failure, time.monotonic() - began)


def judge(case: Case, shim: Shim, failure: str, took_s: float) -> Outcome:
    difference = case.difference_of(shim.description)
    if difference is None:
        return Outcome(Mark.FAILED if failure else Mark.PASSED, failure, took_s)
    if failure:
        return Outcome(Mark.DIFFERS, failure, took_s)
    return Outcome(Mark.STALE if difference.always else Mark.PASSED, "the shim does as the case asks", took_s)


def _story(error: BaseException, scene: Scene) -> str:
    if isinstance(error, Failed):
        return str(error)
    if isinstance(error, RpcError):
        return f"a call is refused with {error!r}"
    if isinstance(error, TimeoutError):
        return f"it takes longer than {CASE_LIMIT_S:g} s"
    return f"{type(error).__name__}: {error}; the shim's log ends with {scene.log[-500:]!r}"
