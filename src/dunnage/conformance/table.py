"""The table: every case, and a mark for each shim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from dunnage.conformance.case import Case


class Mark(Enum):
    """What came of a case."""

    PASSED = "✓"
    FAILED = "✗"
    DIFFERS = "≠"
    STALE = "!"
    UNPLAYED = "–"

    @property
    def is_good(self) -> bool:
        return self in (Mark.PASSED, Mark.DIFFERS, Mark.UNPLAYED)


MEANINGS = {
    Mark.PASSED: "as asked",
    Mark.FAILED: "otherwise, and no difference is written down",
    Mark.DIFFERS: "differs as written down",
    Mark.STALE: "a difference is written down that is not there",
    Mark.UNPLAYED: "not played, for want of a program",
}


class Outcome(NamedTuple):
    mark: Mark
    why: str = ""
    took_s: float = 0.0


Results = Mapping[str, Mapping[str, Outcome]]  # by shim, then by the case's title


def lines(cases: Sequence[Case], shims: Sequence[str], results: Results) -> list[str]:
    """The whole report."""
    letters = [chr(ord("A") + number) for number in range(len(shims))]
    out = [
        *(f"{letter} = {shim}" for letter, shim in zip(letters, shims, strict=True)),
        "",
        f"{' '.join(letters)}  case",
    ]
    for case in cases:
        marks = [results[shim][case.title].mark.value if case.title in results[shim] else " " for shim in shims]
        out.append(f"{' '.join(marks)}  {case.title}")
    for letter, shim in zip(letters, shims, strict=True):
        out += _reasons(letter, shim, cases, results[shim])
    out += ["", *_counts(cases, shims, letters, results)]
    out += [", ".join(f"{mark.value} {meaning}" for mark, meaning in MEANINGS.items())]
    return out


def _reasons(letter: str, shim: str, cases: Sequence[Case], outcomes: Mapping[str, Outcome]) -> list[str]:
    told = []
    for case in cases:
        outcome = outcomes.get(case.title)
        if outcome is None or outcome.mark is Mark.PASSED:
            continue
        told.append(f"{letter} {outcome.mark.value} {case.title}\n      {outcome.why}")
        difference = case.difference_of(shim)
        if difference is not None and outcome.mark is not Mark.UNPLAYED:
            told.append(f"      {difference.why}; right: {difference.right} ({difference.source})")
    return ["", *told] if told else []


def _counts(cases: Sequence[Case], shims: Sequence[str], letters: Sequence[str], results: Results) -> list[str]:
    areas = dict.fromkeys(case.area for case in cases)
    by_area = ", ".join(f"{area} {sum(case.area == area for case in cases)}" for area in areas)
    counts = [f"{len(cases)} cases: {by_area}"]
    for letter, shim in zip(letters, shims, strict=True):
        outcomes = results[shim].values()
        marks = ", ".join(f"{mark.value} {sum(outcome.mark is mark for outcome in outcomes)}" for mark in Mark)
        counts.append(f"{letter} {marks}, {sum(outcome.took_s for outcome in outcomes):.1f} s")
    return counts
