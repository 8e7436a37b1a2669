"""One thing that `dunnage doctor` found out."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Verdict(enum.Enum):
    """OK; NOTE, which nothing fails for but somebody should know; MISSING, without which containers do not run."""

    OK = "ok"
    NOTE = "note"
    MISSING = "missing"


class Finding(NamedTuple):
    """What was looked at, what is the case, and what to do about it (empty where nothing is to do)."""

    verdict: Verdict
    subject: str
    fact: str
    remedy: str = ""


def ok(subject: str, fact: str) -> Finding:
    return Finding(Verdict.OK, subject, fact)


def note(subject: str, fact: str, remedy: str = "") -> Finding:
    return Finding(Verdict.NOTE, subject, fact, remedy)


def missing(subject: str, fact: str, remedy: str) -> Finding:
    return Finding(Verdict.MISSING, subject, fact, remedy)
