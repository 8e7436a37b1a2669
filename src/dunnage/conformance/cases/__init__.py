"""The cases, by area; the order is that of the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dunnage.conformance.case import Area, Case
from dunnage.conformance.cases import (
    binary,
    checkpoint,
    crash,
    events,
    exec_ids,
    exec_states,
    init_states,
    limits,
    load,
    options,
    schemes,
    start,
    stats,
    stdio,
    texts,
    unknown,
    wire,
)

AREAS: Final[Sequence[Area]] = (
    binary.AREA,
    start.AREA,
    init_states.AREA,
    exec_states.AREA,
    unknown.AREA,
    exec_ids.AREA,
    stdio.AREA,
    schemes.AREA,
    events.AREA,
    load.AREA,
    texts.AREA,
    options.AREA,
    wire.AREA,
    stats.AREA,
    limits.AREA,
    crash.AREA,
    checkpoint.AREA,
)


def all_cases() -> list[Case]:
    return [case for area in AREAS for case in area]
