"""Differences that show in several cases."""

from __future__ import annotations

from typing import Final

from dunnage.conformance.case import Difference

PLAIN_ERROR: Final = Difference(
    "go *",
    "CloseIO hands the error on without its code, which is then Unknown",
    "the case",
    "containerd pull request 4860 made it NotFound for the calls that had the same fault",
)
